"""What stands before the first step and the first answer: imports, the time that a run will take."""

import json

import pytest

import base_bert
import multitask_classifier
from config import BETAS, TrainConfig, flags
from helpers import ROOT, run_python
from support.devices import COMPUTE_TYPES

# The program as `python multitask_classifier.py ARGUMENTS`; its exit status and the modules that it imported.
PROGRAM = """
import contextlib, io, json, runpy, sys
program, *sys.argv[1:] = sys.argv[1:]
with contextlib.redirect_stdout(io.StringIO()):
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
print(json.dumps([status, sorted(sys.modules)]))
"""
SLOW = {"transformers", "tensorboard", "matplotlib", "huggingface_hub", "pandas", "scipy", "sklearn"}
QUESTION = ("--option", "predict", "--task", "sst", "--text", "a fine film")


@pytest.mark.parametrize(
    ("arguments", "status", "unwanted"),
    [
        (("--help",), 0, {"torch", "tokenizers", *SLOW}),
        (("--epoch", "3"), 2, {"torch", "tokenizers", *SLOW}),  # mistyped
        (("--schedule", "joined"), 2, {"torch", "tokenizers", *SLOW}),
        (QUESTION, 2, {"torch", "tokenizers", *SLOW}),  # without --checkpoint
        ((*QUESTION, "--checkpoint"), 0, {"torch._dynamo", "torch._inductor", *SLOW}),
    ],
)
def test_a_start_imports_no_more_than_it_needs(arguments, status, unwanted, tmp_path, request):
    """Guards against seconds of imports before --help or the answer to one sentence, which no other test
    would see."""
    if arguments[-1] == "--checkpoint":
        arguments += (request.getfixturevalue("sample_run"),)
    said = json.loads(run_python(PROGRAM, ROOT / "multitask_classifier.py", *arguments, cwd=tmp_path))
    assert said[0] == status
    assert unwanted.isdisjoint(said[1])


def test_names_in_the_settings_are_those_of_the_tables():
    """Guards against a type that a flag offers and no table has: the settings list names without torch."""
    setting = {setting.name: setting for setting in flags(TrainConfig)}
    assert setting["precision"].metadata["allowed"] == tuple(COMPUTE_TYPES)
    assert setting["smart_norm"].metadata["allowed"] == tuple(multitask_classifier.NORMS)
    assert all(0 < TrainConfig(bregman_beta=name).beta(99, 100) < 1 for name in BETAS)
    assert setting["model_name_or_path"].default == base_bert.EMBEDDED
