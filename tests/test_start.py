"""What stands before the first step and the first answer: imports, the time that a run will take."""

import copy
import json

import pytest
import torch

import base_bert
import dry_run
import multitask_classifier
from bert import BertModel
from config import BETAS, TrainConfig, flags
from datasets import Loader, plan_steps, tokenize
from helpers import ROOT, run_python, sample_examples
from multitask_classifier import MultitaskBERT
from mysmartloss import BregmanProximal
from support.devices import COMPUTE_TYPES
from support.messages import Forecast
from tasks import TASKS

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
    ("arguments", "status"),
    [
        (("--help",), 0),
        (("--epoch", "3"), 2),  # mistyped
        (("--schedule", "joined"), 2),
        (QUESTION, 2),  # without --checkpoint
        ((*QUESTION, "--checkpoint"), 0),
    ],
)
def test_a_start_imports_no_more_than_it_needs(arguments, status, tmp_path, request):
    """Guards against seconds of imports before --help or the answer to one sentence, which no other test
    would see."""
    unwanted = {"torch", "tokenizers"}
    if arguments[-1] == "--checkpoint":
        arguments += (request.getfixturevalue("sample_run"),)
        unwanted = {"torch._dynamo", "torch._inductor", "report"}
    said = json.loads(run_python(PROGRAM, ROOT / "multitask_classifier.py", *arguments, cwd=tmp_path))
    assert said[0] == status
    assert (SLOW | unwanted).isdisjoint(said[1])


def test_names_in_the_settings_are_those_of_the_tables():
    """Guards against a type that a flag offers and no table has: the settings list names without torch."""
    setting = {setting.name: setting for setting in flags(TrainConfig)}
    assert setting["precision"].metadata["allowed"] == tuple(COMPUTE_TYPES)
    assert setting["smart_norm"].metadata["allowed"] == tuple(multitask_classifier.NORMS)
    assert all(0 < TrainConfig(bregman_beta=name).beta(99, 100) < 1 for name in BETAS)
    assert setting["model_name_or_path"].default == base_bert.EMBEDDED


@pytest.fixture
def forecasted(encoder, tokenizer):
    """Makes a forecast of a run of the tiny BERT on 40 rows of sst and of sts, with a teacher.

    Asserts that all is as before.
    """

    def made(**settings) -> Forecast:
        config = TrainConfig(tasks=("sst", "sts"), epochs=2, batch_size=8, precision="fp32", **settings)
        data = {
            (name, split): tokenize(sample_examples(name, split, 40), TASKS[name], tokenizer, 64)
            for name in config.tasks
            for split in ("train", "dev", "test")
        }
        parts = config.gradient_accumulation_steps
        loaders = {name: Loader(data[name, "train"], 8 * parts, (0,), shares=parts) for name in config.tasks}
        plan = plan_steps(loaders, config.tasks, config.schedule, config.epochs, None, 0)
        model = MultitaskBERT(BertModel.from_pretrained(encoder), tasks=config.tasks).train()
        teacher = BregmanProximal(model)
        models = {"student": model, "teacher": teacher.teacher}
        before = copy.deepcopy(model.state_dict())
        state = torch.get_rng_state()
        step = multitask_classifier.training_loss
        found = dry_run.forecast(models, loaders, plan, data, config, teacher, step)
        assert torch.equal(torch.get_rng_state(), state) and model.training and model.bert.training
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        return found

    return made

    return made


def test_a_forecast_changes_nothing(forecasted):
    """Guards against a run whose dropout masks, weights or first gradient depend on what was tried before."""
    expected = forecasted(use_smart=True, rdrop_weight=1.0)
    assert min(expected.steps) > 0 and expected.evaluation > 0 and expected.test > 0


def test_a_forecast_counts_batches_parts_and_evaluations(forecasted, monkeypatch):
    """Guards against a time that leaves out parts of a batch, the teacher's evaluations or --smart_every."""
    seconds = {"sst": 1.0, "sts": 10.0}
    monkeypatch.setattr(dry_run, "try_batch", lambda _, task, *others: seconds[task.name])
    monkeypatch.setattr(dry_run, "predicting_seconds", lambda _, data, rows: len(data) / rows)
    plain = forecasted()
    assert list(plain.steps) == [1.0, 10.0] * 10
    assert (plain.every, plain.evaluation, plain.test) == (10, 2 * 10.0, 10.0)
    several = forecasted(gradient_accumulation_steps=5)
    assert list(several.steps) == [5.0, 50.0] * 2
    # a plain step costs 3 passes, SMART 5 more: 4 on average, 8 in the batch that was tried
    lazy = forecasted(use_smart=True, bregman_weight=0.0, smart_every=5, eval_steps=7)
    assert list(lazy.steps) == [0.5, 5.0] * 10 and lazy.every == 7


def test_a_typical_batch_is_a_batch_of_the_run_of_mean_size(tokenizer):
    """Guards against a time from batches without padding, which are faster than those of the run."""
    dataset = tokenize(sample_examples("sts", count=45), TASKS["sts"], tokenizer, 64)
    loader = Loader(dataset, 8, (0,), shares=2)
    sizes = [loader[k].input_ids.numel() for k in range(loader.batches_per_epoch)]
    off = [abs(size - sum(sizes) / len(sizes)) for size in sizes]
    whole = loader[off.index(min(off))]
    assert torch.equal(loader.typical_batch().input_ids, whole.input_ids[::2])


@pytest.mark.parametrize(
    ("step", "took", "said"),
    [
        (0, None, "5:10 min"),  # 100 steps of 2 s, 3 evaluations of 30 s, 20 s for the test files
        (20, 80.0, "7:10 min"),  # steps take twice as long: 320 s, 90 s, 20 s
        (40, None, "3:20 min"),  # one evaluation is done: 120 s, 60 s, 20 s
    ],
)
def test_the_time_that_is_said(step, took, said, capsys):
    """Guards against a time that a student plans an evening by and that leaves out the evaluations."""
    Forecast([2.0] * 100, every=40, evaluation=30.0, test=20.0).say(step, took)
    assert f"about {said} " in capsys.readouterr().out
