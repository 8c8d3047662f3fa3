"""Runs a grid of trainings for a question, one line of JSON each, and the statistics of paired runs.

    a question's file (precision.py, ...) ─ grid of Runs ─ run_grid ─> lines in <question>.jsonl
                                                                      predictions/<question>/<run>.npz

A run is a process of the main program, so a grid can be broken off anywhere. What has a line is not run
again, what has a checkpoint is resumed. The number of steps is fixed beforehand. Dev is scored once, with the
weights of the last step, and nothing is fitted on it. A seed draws the training rows, the same for all arms.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import multitask_classifier
from config import TrainConfig
from datasets import read_examples, tokenize
from evaluation import model_outputs, score
from support.screen import cut
from tasks import TASKS

HERE = Path(__file__).resolve().parent
SAMPLE = HERE.parent / "data" / "sample"


@dataclass(frozen=True)
class Run:
    """One training. Runs of one question that share `tasks` and `seed` are compared with each other.

    arm: what is varied, by name. flags: of the main program. train_rows: how many rows of each task are drawn
    by the seed; None for all. steps: optimizer steps, all tasks together.
    """

    arm: str
    tasks: tuple[str, ...]
    seed: int
    flags: tuple[str, ...]
    steps: int
    train_rows: int | None = None

    @property
    def name(self) -> str:
        """The run's name, also of its files."""
        return "-".join([self.arm, *self.tasks, str(self.seed)]).replace(" ", "_").replace("=", "")


@dataclass(frozen=True)
class Question:
    """A question by its name, and the folder that keeps its lines."""

    name: str
    folder: Path = HERE

    @property
    def file(self) -> Path:
        """Its lines."""
        return self.folder / f"{self.name}.jsonl"

    def predictions(self, run: Run) -> Path:
        """Where the dev predictions of a run are."""
        return self.folder / "predictions" / self.name / f"{run.name}.npz"

    def lines(self) -> list[dict[str, Any]]:
        """What has been run."""
        text = self.file.read_text(encoding="utf-8") if self.file.exists() else ""
        return [json.loads(line) for line in text.splitlines()]


# ------------------------------------------------------------------------------------------ running


def draw_rows(task: str, count: int, seed: int, data_dir: Path, folder: Path) -> Path:
    """A training file of `count` rows that the seed draws from the task's own, in the course's layout."""
    record = TASKS[task]
    examples = read_examples(data_dir / record.filename("train"), record)
    chosen = np.sort(
        np.random.default_rng(seed).choice(len(examples), min(count, len(examples)), replace=False)
    )
    path = folder / f"{task}-{count}-{seed}.csv"
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["id", *record.text_columns, record.label_column])
        writer.writerows([examples[i].id, *examples[i].texts, examples[i].label] for i in chosen)
    return path


def command(run: Run, data_dir: Path, folder: Path) -> list[str]:
    """The command line that starts the run in `folder`, or resumes it."""
    program = [sys.executable, str(HERE.parent / "multitask_classifier.py"), "--no_report"]
    program += ["--output_dir", str(folder)]
    if (folder / "last").exists():
        return [*program, "--resume"]
    # One epoch of all steps, so that dev is scored once. The sample's test files, because nobody reads them.
    fixed = [
        "--epochs",
        "1",
        "--steps_per_epoch",
        str(run.steps),
        "--keep",
        "student",
        "--seed",
        str(run.seed),
    ]
    files = []
    for task in run.tasks:
        files += [f"--{task}_test", str(SAMPLE / TASKS[task].filename("test"))]
        if run.train_rows:
            drawn = draw_rows(task, run.train_rows, run.seed, data_dir, folder.parent / "rows")
            files += [f"--{task}_train", str(drawn)]
    tasks = ["--tasks", ",".join(run.tasks), "--data_dir", str(data_dir)]
    return [*program, *tasks, *fixed, *files, *run.flags]


def commit() -> str:
    """The commit of the code, marked where files differ from it."""
    words = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    return subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()


def machine() -> dict[str, Any]:
    """The processor, as far as it decides precision and speed."""
    if torch.cuda.is_available():
        return {"processor": torch.cuda.get_device_name()}
    capabilities = torch.cpu.get_capabilities()
    names = ("avx512_f", "avx512_bf16", "amx_bf16")
    return {
        "processor": capabilities.get("cpu_name", "unknown"),
        "instructions": [name for name in names if capabilities.get(name)],
        "threads": int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())),
    }


def dev_outcome(run: Run, data_dir: Path, folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Dev scores and losses of a finished run's last weights by task, and the predictions with their labels.

    A task's predictions are kept under its name, the labels under "<task> labels": intervals over dev rows
    are computed from what is kept alone.
    """
    model, tokenizer, record = multitask_classifier.load_model(folder / "best")
    config = TrainConfig.from_dict(record["config"])
    model.compute_type = multitask_classifier.COMPUTE_TYPES[config.precision]
    dev: dict[str, Any] = {}
    predictions = {}
    for name in run.tasks:
        task = TASKS[name]
        dataset = tokenize(
            read_examples(data_dir / task.filename("dev"), task), task, tokenizer, config.max_length
        )
        assert dataset.labels is not None, "dev files have labels"
        logits = model_outputs(model, dataset, config.batch_size)
        predictions[name] = task.predict(logits).numpy()
        predictions[f"{name} labels"] = dataset.labels.numpy()
        loss = float(task.loss(logits, dataset.labels))
        dev[name] = score(task, predictions[name], dataset.labels.numpy()) | {"loss": loss}
    return dev, predictions


def run_one(question: Question, run: Run, data_dir: Path, work_dir: Path) -> dict[str, Any]:
    """Train a run, or the rest of it; keep its predictions and its line. Returns the line."""
    folder = work_dir / question.name / run.name
    code = commit()
    subprocess.run(command(run, data_dir, folder), check=True, stdout=subprocess.DEVNULL)
    dev, predictions = dev_outcome(run, data_dir, folder)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    versions = json.loads((folder / "best" / "run.json").read_text(encoding="utf-8"))["versions"]
    path = question.predictions(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **predictions)
    line = asdict(run) | {"name": run.name, "dev": dev, "seconds": results["train_seconds"]}
    line |= {"precision": results["config"]["precision"], "versions": versions, "commit": code} | machine()
    with question.file.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
    shutil.rmtree(folder)  # its line and its predictions are kept
    return line


def run_grid(question: Question, grid: Sequence[Run], data_dir: Path, work_dir: Path) -> None:
    """Run what has no line yet, in the order of the grid."""
    done = {line["name"] for line in question.lines()}
    left = [run for run in grid if run.name not in done]
    for place, run in enumerate(left, start=1):
        print(cut(f"{question.name} {place}/{len(left)}: {run.name}"), flush=True)
        line = run_one(question, run, data_dir, work_dir)
        mains = {name: scores[TASKS[name].main_metric] for name, scores in line["dev"].items()}
        print(cut(f"  {mains}, {line['seconds']:.0f} s"), flush=True)


def main_of(question: Question, grid: Iterable[Run], table: Callable[[list[dict[str, Any]]], str]) -> None:
    """The command line of a question: run what is left of its grid, or print its table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data_dir", type=Path, default=os.environ.get("SMART_BERT_DATA_DIR"))
    parser.add_argument("--work_dir", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--table", action="store_true", help="print the table of what has been run")
    parser.add_argument(
        "--seeds", type=int, nargs="+", help="run these seeds only: processes share a grid so"
    )
    options = parser.parse_args()
    if options.table:
        print(table(question.lines()))
        return
    if not options.data_dir:
        parser.error("--data_dir: the folder of the course's files is needed (or SMART_BERT_DATA_DIR)")
    chosen = [run for run in grid if not options.seeds or run.seed in options.seeds]
    run_grid(question, chosen, Path(options.data_dir), options.work_dir)
