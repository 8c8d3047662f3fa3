"""What more than one test file needs and that has nothing to do with the size of a BERT."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np

import checkpoint
import multitask_classifier
from datasets import Batch, Example, collate, read_examples, tokenize
from tasks import TASKS

ROOT = Path(multitask_classifier.__file__).resolve().parent
SAMPLE = ROOT / "data" / "sample"
# the flags of a run that takes seconds
FAST = ["--max_train_samples=32", "--max_eval_samples=24", "--batch_size=8"]
FAST += ["--epochs=1", "--steps_per_epoch=6", "--logging_steps=3"]
TRIALS = 4  # batches before the first step of three tasks: the largest one, and a typical one of each task


def warnings_of(caplog) -> list[str]:
    """The warnings, and anything worse, that pytest's `caplog` has caught."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def sample_examples(name: str, split: str = "train", count: int | None = None) -> list[Example]:
    """The first rows of a sample file."""
    task = TASKS[name]
    return read_examples(SAMPLE / task.filename(split), task, split != "test")[:count]


def sample_batch(
    name: str, tokenizer, rows: int = 8, split: str = "train", max_length: int = 64, **settings
) -> Batch:
    """The first rows of a sample file as one batch, with `settings` for `collate`."""
    dataset = tokenize(sample_examples(name, split, rows), TASKS[name], tokenizer, max_length)
    return collate(dataset, np.arange(rows), **settings)


def run_program(*arguments) -> int:
    """Exit status of the command line, run in this process."""
    return multitask_classifier.main([*map(str, arguments)])


def run_stopped(saves: int, *arguments) -> None:
    """Run the command line and stop it, as by SIGTERM, right after its checkpoint of that number."""
    save = checkpoint.save_last
    calls = []

    def save_and_stop(*given):
        save(*given)
        calls.append(1)
        if len(calls) == saves:
            raise checkpoint.Interrupted(15)

    with mock.patch.object(checkpoint, "save_last", save_and_stop):
        assert run_program(*arguments) == 143


def clone_of_project(folder: Path) -> Path:
    """The folder, now with the project's files as they are here."""
    return shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "runs", "__pycache__"))


def run_python(script: str, *arguments: str | Path, cwd: Path, **environment: str) -> str:
    """What the script prints, in a process of its own that finds our modules by PYTHONPATH only."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    result = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout
