"""What the tests of asking share: a short run of the tiny BERT on the sample, and how to ask its model."""

import io
import json
import sys
from pathlib import Path

import pytest

from helpers import run_program, warnings_of

FAST = ["--max_train_samples=32", "--max_eval_samples=24", "--epochs=1", "--steps_per_epoch=6"]


@pytest.fixture(scope="session")
def run_folder(encoder, tmp_path_factory) -> Path:
    """Folder of a run on sst, para and sts."""
    folder = tmp_path_factory.mktemp("asked") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SMART_BERT_DATA_DIR", raising=False)
        # so large a rate that answers differ from text to text
        flags = ["--use_smart", "--lr", 0.05, "--model_name_or_path", encoder, "--output_dir", folder]
        assert run_program(*flags, *FAST) == 0
    return folder


@pytest.fixture
def ask(run_folder, capsys, caplog, monkeypatch):
    """Asks the model: returns the exit status, the answers, and the error line and warnings."""

    def asked(*arguments, stdin: bytes = b"") -> tuple[int, list[dict], str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        caplog.clear()
        flags = ["--option", "predict", "--checkpoint", run_folder, "--precision", "fp32"]
        status = run_program(*flags, *arguments)
        said = capsys.readouterr()
        warnings = "".join(f"{warning}\n" for warning in warnings_of(caplog))
        return status, [json.loads(line) for line in said.out.splitlines()], said.err + warnings

    return asked
