"""Runs a grid of trainings for a question: one line of JSON each, and each run's dev predictions.

    grid of Runs ─ run_grid ─> lines in <question>.jsonl, predictions/<question>/<run>.npz
    lines, predictions ─ `tables.py`, the question's file ─> Markdown, PNG

A run is a process of the main program, so a grid can be interrupted anywhere: finished runs are skipped,
interrupted ones resumed. The number of steps is fixed beforehand. Dev is scored once, with the weights of the
last step, and nothing is fitted on it. A seed draws the training rows, the same for all arms.
"""

import argparse
import csv
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import multitask_classifier
from config import TrainConfig
from datasets import Example, Task, read_examples, sample_rows, tokenize
from evaluation import model_outputs
from experiments.tables import HERE, Line, Question
from support.devices import COMPUTE_TYPES, pick_device
from support.errors import UserError
from support.files import write_text
from support.screen import cut
from tasks import TASKS, score

SAMPLE = HERE.parent / "data" / "sample"


@dataclass(frozen=True)
class Run:
    """One training. Runs of one question that share `tasks`, `seed` and `train_rows` are compared.

    arm: what is varied, by name. flags: of the main program. steps: optimizer steps, all tasks together.
    train_rows: how many rows of each task are drawn by the seed; None for all. wrong_labels: share of the
    drawn rows whose class is moved to a neighbouring one, by the seed.
    """

    arm: str
    tasks: tuple[str, ...]
    seed: int
    flags: tuple[str, ...]
    steps: int
    train_rows: int | None = None
    wrong_labels: float = 0.0

    @property
    def name(self) -> str:
        """The run's name, also of its files."""
        words = "-".join([self.arm, *self.tasks, str(self.seed)]).replace(" ", "_")
        return "".join(letter for letter in words if letter.isalnum() or letter in "-_.")


def write_examples(path: Path, task: Task, examples: Iterable[Example]) -> None:
    """A data file in the course's layout, whole or not at all: another process may be reading it."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t")
    writer.writerow(["id", *task.text_columns, task.label_column])
    writer.writerows([example.id, *example.texts, example.label] for example in examples)
    write_text(path, text.getvalue())


def draw_rows(task: str, run: Run, data_dir: Path, folder: Path) -> Path:
    """A training file of `run.train_rows` rows that the seed draws from the task's own."""
    record = TASKS[task]
    count = run.train_rows or 0
    examples = read_examples(data_dir / record.filename("train"), record)
    random = np.random.default_rng(run.seed)
    drawn = random.choice(len(examples), min(count, len(examples)), replace=False)
    examples = [examples[i] for i in np.sort(drawn)]
    for i in random.choice(len(examples), round(run.wrong_labels * len(examples)), replace=False):
        examples[i] = examples[i]._replace(label=neighbour(record, float(examples[i].label or 0), random))
    wrong = f"-{run.wrong_labels:g}-wrong" if run.wrong_labels else ""
    path = folder / f"{task}-{count}-{run.seed}{wrong}.csv"
    write_examples(path, record, examples)
    return path


def neighbour(task: Task, label: float, random: np.random.Generator) -> float:
    """The class above or below, by chance; of the first and the last class the only neighbour."""
    last = len(task.label_names) - 1
    step = 1 if label == 0 else -1 if label == last else random.choice([-1, 1])
    return float(label + step)


def command(run: Run, data_dir: Path, folder: Path) -> list[str]:
    """The command line that starts the run in `folder`, or resumes it."""
    program = [sys.executable, str(HERE.parent / "multitask_classifier.py"), "--output_dir", str(folder)]
    if (folder / "last").exists():
        return [*program, "--resume"]
    tasks = ",".join(run.tasks)
    words = f"--epochs 1 --steps_per_epoch {run.steps} --keep student --seed {run.seed}"
    words += f" --no_report --tasks {tasks} --eval_tasks {tasks}"
    files: list[str] = []
    for task in run.tasks:  # the sample's short test files, because nobody reads their predictions
        files += [f"--{task}_test", str(SAMPLE / TASKS[task].filename("test"))]
    for task in run.tasks if run.train_rows else ():
        drawn = draw_rows(task, run, data_dir, folder.parent / "rows")
        files += [f"--{task}_train", str(drawn)]
    return [*program, *words.split(), "--data_dir", str(data_dir), *files, *run.flags]


def commit() -> str:
    """The last commit that changed code, marked `-dirty` where code differs from it.

    Lines and pages may be committed while a grid runs: they change no number.
    """
    code = ["--", "*.py", "requirements.txt"]

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words, *code], cwd=HERE.parent, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{HERE.parent}: a grid needs a git checkout ({' '.join(done.stderr.split())})")
        return done.stdout.strip()

    last = git("log", "-1", "--format=%h", "--abbrev=12")
    return last + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")


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


def finished_model(folder: Path) -> tuple[multitask_classifier.MultitaskBERT, Tokenizer, TrainConfig]:
    """The last weights of a finished run, its tokenizer and its settings."""
    model, tokenizer, record = multitask_classifier.load_model(folder / "best")
    config = TrainConfig.from_dict(record["config"])
    role = "teacher" if config.keep == "teacher" else "student"
    # `best` may be of an earlier epoch
    model.load_state_dict(load_file(folder / "last" / f"{role}.safetensors"))
    model.compute_type = COMPUTE_TYPES[config.precision]
    return model.to(pick_device(False)), tokenizer, config


Outcome = Callable[[Run, Path, Path], tuple[dict[str, Any], dict[str, np.ndarray]]]


def dev_outcome(
    run: Run, data_dir: Path, folder: Path
) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
    """`scored` of a finished run's last weights."""
    return scored(*finished_model(folder), run.tasks, data_dir)


def scored(
    model: multitask_classifier.MultitaskBERT,
    tokenizer: Tokenizer,
    config: TrainConfig,
    tasks: Iterable[str],
    data_dir: Path,
) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
    """Dev scores and losses of a model by task, and the predictions with their labels.

    The predictions of a task are stored under its name, the labels under "<task> labels". Intervals over dev
    rows are computed from these.
    """
    dev = {}
    predictions = {}
    for name in tasks:
        task = TASKS[name]
        examples = read_examples(data_dir / task.filename("dev"), task)
        examples = sample_rows(examples, config.max_eval_samples)
        dataset = tokenize(examples, task, tokenizer, config.max_length)
        assert dataset.labels is not None, "dev files have labels"
        logits = model_outputs(model, dataset, config.batch_size)
        predictions[name] = task.predict(logits).numpy()
        predictions[f"{name} labels"] = dataset.labels.numpy()
        loss = float(task.loss(logits, dataset.labels))
        dev[name] = score(task, predictions[name], dataset.labels.numpy()) | {"loss": loss}
    return dev, predictions


def loss_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Task loss by task: (step of the run, mean since the last log line), from a run's `metrics.jsonl`."""
    curves = defaultdict(list)
    for line in map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()):
        kind, _, task = line["kind"].partition("/")
        if kind == "train" and "task" in line:  # texts without labels have no task loss
            curves[task].append((line["step"], round(line["task"], 5)))
    return dict(curves)


def run_one(
    question: Question, run: Run, data_dir: Path, work_dir: Path, outcome: Outcome | None = None
) -> Line:
    """Train or resume a run, store its predictions, append its line. Returns the line."""
    folder = work_dir / question.name / run.name
    code = commit()
    done = subprocess.run(command(run, data_dir, folder), stdout=subprocess.DEVNULL)
    if done.returncode < 0 or done.returncode >= 128:
        raise KeyboardInterrupt  # a signal stopped it, and it has saved
    if done.returncode:
        raise UserError(f"{run.name}: the run ended with status {done.returncode}; see the line above")
    dev, predictions = (outcome or dev_outcome)(run, data_dir, folder)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    versions = json.loads((folder / "best" / "run.json").read_text(encoding="utf-8"))["versions"]
    path = question.predictions(run.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **predictions)
    line = asdict(run) | {"name": run.name, "dev": dev, "train_loss": loss_curves(folder)}
    line |= {"seconds": results["train_seconds"], "precision": results["config"]["precision"]}
    line |= {"versions": versions, "commit": code} | machine()
    with question.file.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
    shutil.rmtree(folder)
    return line


def run_grid(
    question: Question, grid: Sequence[Run], data_dir: Path, work_dir: Path, outcome: Outcome | None = None
) -> None:
    """Run the grid in order. Finished runs are skipped, interrupted ones resumed.

    outcome: scores for the line and arrays for the file, from a finished run's folder; by default dev's.
    Raises UserError if there are lines of another commit, because a comparison is of one code, or if a run
    fails.
    """
    here = commit()
    lines = question.lines()
    if others := {line["commit"] for line in lines} - {here}:
        other = sorted(others)[0]
        raise UserError(
            f"{question.file}: its lines are of commit {other}, this is {here}; continue in"
            f" `git worktree add PATH {other}` with this file copied there, or move the file away"
        )
    done = {line["name"] for line in lines}
    left = [run for run in grid if run.name not in done]
    speeds: list[float] = []  # seconds a step
    for place, run in enumerate(left):
        steps_left = sum(other.steps for other in left[place:])
        cost = f", about {statistics.fmean(speeds) * steps_left / 60:.0f} min left" if speeds else ""
        print(cut(f"{question.name} {place + 1}/{len(left)}: {run.name}{cost}"), flush=True)
        line = run_one(question, run, data_dir, work_dir, outcome)
        speeds.append(line["seconds"] / run.steps)
        mains = {name: round(line["dev"][name][TASKS[name].main_metric], 4) for name in run.tasks}
        print(cut(f"  {mains}, {line['seconds']:.0f} s"), flush=True)


def parse(description: str | None) -> argparse.Namespace:
    """The command line of a question."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data_dir",
        type=Path,
        default=os.environ.get("SMART_BERT_DATA_DIR"),
        help="folder of the course's files (default: $SMART_BERT_DATA_DIR)",
    )
    parser.add_argument(
        "--work_dir", type=Path, default=Path("runs/experiments"), help="folder of unfinished runs"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", help="run only these, so that several processes share a grid"
    )
    options = parser.parse_args()
    if not options.data_dir:
        parser.error("--data_dir: the folder of the course's files is needed (or SMART_BERT_DATA_DIR)")
    return options
