"""Runs a grid of trainings for a question: one line of JSON each, and each run's dev predictions.

    grid of Runs ─ run_grid ─> lines in <question>.jsonl, predictions/<question>/<run>.npz
    lines, predictions ─ the question's tables and pictures ─> Markdown, PNG

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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import multitask_classifier
from config import TrainConfig
from datasets import read_examples, sample_rows, tokenize
from evaluation import model_outputs
from experiments import pictures
from experiments.pictures import Picture, save
from experiments.tables import Line, Table, processor_type, provenance, table
from support.devices import COMPUTE_TYPES, pick_device
from support.errors import UserError, one_line
from support.files import write_text
from support.screen import cut
from tasks import TASKS, score

HERE = Path(__file__).resolve().parent
SAMPLE = HERE.parent / "data" / "sample"


@dataclass(frozen=True)
class Run:
    """One training. Runs of one question that share `tasks`, `seed` and `train_rows` are compared.

    arm: what is varied, by name. flags: of the main program. steps: optimizer steps, all tasks together.
    train_rows: how many rows of each task are drawn by the seed; None for all. eval_tasks: what is scored on
    dev; empty for `tasks`. unlabelled: the task whose other training rows are given without their labels.
    epochs: over how many the steps are spread; one, unless the schedule changes from epoch to epoch.
    """

    arm: str
    tasks: tuple[str, ...]
    seed: int
    flags: tuple[str, ...]
    steps: int
    train_rows: int | None = None
    eval_tasks: tuple[str, ...] = ()
    unlabelled: str = ""
    epochs: int = 1

    @property
    def name(self) -> str:
        """The run's name, also of its files."""
        words = "-".join([self.arm, *self.tasks, str(self.seed)]).replace(" ", "_")
        return "".join(letter for letter in words if letter.isalnum() or letter in "-_.")

    @property
    def scored(self) -> tuple[str, ...]:
        """The tasks that are scored on dev."""
        return self.eval_tasks or self.tasks

    def quick(self) -> "Run":
        """The run on a subset, to see in seconds that it works."""
        flags = (*self.flags, "--max_eval_samples", "100")
        steps = max(2 * len(self.tasks), self.epochs)
        return replace(self, steps=steps, train_rows=64, flags=flags)


# (finished run, folder of the data, folder of the run) -> (results by task for the line, arrays for the .npz)
Outcome = Callable[[Run, Path, Path], tuple[dict[str, Any], dict[str, np.ndarray]]]


@dataclass(frozen=True)
class Question:
    """A question: where its lines are, and what the page shows of them.

    A finished question needs no grid: each line says how its run was made. tables, pictures: made from the
    lines alone. folder: of the lines and predictions. outcome: measures a finished run, by default
    `dev_outcome`. An interrupted outcome starts again; the training before it does not.
    """

    name: str
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    folder: Path = HERE
    outcome: Outcome | None = None

    @property
    def file(self) -> Path:
        """Its lines."""
        return self.folder / f"{self.name}.jsonl"

    def predictions(self, run_name: str) -> Path:
        """Where the dev predictions of a run are."""
        return self.folder / "predictions" / self.name / f"{run_name}.npz"

    def lines(self) -> list[Line]:
        """A line for each finished run."""
        text = self.file.read_text(encoding="utf-8") if self.file.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def load_predictions(self, line: Line, task: str) -> tuple[np.ndarray, np.ndarray]:
        """Dev predictions and labels (rows,) of a line's run."""
        with np.load(self.predictions(line["name"])) as arrays:
            return arrays[task], arrays[f"{task} labels"]

    def page(self) -> str:
        """For the page of experiments: the tables, their provenance, the pictures that were drawn."""
        lines = self.lines()
        parts = [table(each, lines) for each in self.tables]
        if not lines or "commit" in lines[0]:
            parts.append(provenance(lines))
        folder = self.folder / "pictures"
        drawn = [each for each in self.pictures if (folder / f"{each.name}-light.png").exists()]
        return "\n\n".join([*parts, *(pictures.markdown(each, folder.name) for each in drawn)])

    def plot(self) -> list[Path]:
        """Draw the pictures that need only the lines. Returns their paths."""
        lines = self.lines()
        paths = []
        for picture in self.pictures:
            if draw := picture.draw:
                paths += save(picture, partial(draw, lines=lines), self.folder / "pictures")
        return paths


# ------------------------------------------------------------------------------------------ running


def draw_rows(task: str, count: int, seed: int, data_dir: Path, folder: Path, others: bool = False) -> Path:
    """A training file of `count` rows that the seed draws from the task's own, in the course's layout.

    others: of the rows that were not drawn. --unlabelled_file does not read their labels.
    """
    record = TASKS[task]
    examples = read_examples(data_dir / record.filename("train"), record)
    chosen = np.sort(
        np.random.default_rng(seed).choice(len(examples), min(count, len(examples)), replace=False)
    )
    if others:
        chosen = np.setdiff1d(np.arange(len(examples)), chosen)
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t")
    writer.writerow(["id", *record.text_columns, record.label_column])
    writer.writerows([examples[i].id, *examples[i].texts, examples[i].label] for i in chosen)
    path = folder / f"{task}-{count}-{seed}{'-others' if others else ''}.csv"
    write_text(path, text.getvalue())  # whole or not at all: another process may be reading it
    return path


def command(run: Run, data_dir: Path, folder: Path) -> list[str]:
    """The command line that starts the run in `folder`, or resumes it."""
    program = [sys.executable, str(HERE.parent / "multitask_classifier.py"), "--output_dir", str(folder)]
    if (folder / "last").exists():
        return [*program, "--resume"]
    words = f"--epochs {run.epochs} --steps_per_epoch {run.steps // run.epochs}"
    words += f" --keep student --seed {run.seed}"
    words += f" --no_report --tasks {','.join(run.tasks)} --eval_tasks {','.join(run.scored)}"
    files: list[str] = []
    for task in run.scored:  # the sample's short test files, because nobody reads their predictions
        files += [f"--{task}_test", str(SAMPLE / TASKS[task].filename("test"))]
    for task in run.tasks if run.train_rows else ():
        drawn = draw_rows(task, run.train_rows or 0, run.seed, data_dir, folder.parent / "rows")
        files += [f"--{task}_train", str(drawn)]
    if run.unlabelled:
        rows = (run.train_rows or 0, run.seed, data_dir, folder.parent / "rows")
        files += ["--unlabelled_file", str(draw_rows(run.unlabelled, *rows, others=True))]
        files += ["--unlabelled_task", run.unlabelled]
    return [*program, *words.split(), "--data_dir", str(data_dir), *files, *run.flags]


def commit() -> str:
    """The last commit that changed code, marked `-dirty` where code differs from it.

    Lines and pages may be committed while a grid runs: they change no number.
    """
    code = ["--", "*.py", "requirements.txt"]

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words, *code], cwd=HERE.parent, capture_output=True, text=True)
        if done.returncode:
            raise UserError(
                f"{HERE.parent}: a grid needs a git checkout ({one_line(ValueError(done.stderr))})"
            )
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


def last_model(folder: Path) -> tuple[multitask_classifier.MultitaskBERT, Tokenizer, TrainConfig]:
    """The model of a finished run with the last step's weights, its tokenizer and its settings."""
    model, tokenizer, record = multitask_classifier.load_model(folder / "best")
    config = TrainConfig.from_dict(record["config"])
    role = "teacher" if config.keep == "teacher" else "student"
    # `best` may be of an earlier epoch
    model.load_state_dict(load_file(folder / "last" / f"{role}.safetensors"))
    model.compute_type = COMPUTE_TYPES[config.precision]
    return model.to(pick_device(False)), tokenizer, config


def dev_outcome(run: Run, data_dir: Path, folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Dev scores and losses of a finished run's last weights by task, and the predictions with their labels.

    The predictions of a task are stored under its name, the labels under "<task> labels". Intervals over dev
    rows are computed from these.
    """
    model, tokenizer, config = last_model(folder)
    dev: dict[str, Any] = {}
    predictions = {}
    for name in run.scored:
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


def run_one(question: Question, run: Run, data_dir: Path, work_dir: Path) -> Line:
    """Train or resume a run, store its predictions, append its line. Returns the line."""
    folder = work_dir / question.name / run.name
    code = commit()
    done = subprocess.run(command(run, data_dir, folder), stdout=subprocess.DEVNULL)
    if done.returncode < 0 or done.returncode >= 128:
        raise KeyboardInterrupt  # a signal stopped it, and it has saved
    if done.returncode:
        raise UserError(f"{run.name}: the run ended with status {done.returncode}; see the line above")
    dev, predictions = (question.outcome or dev_outcome)(run, data_dir, folder)
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


def check_lines(question: Question) -> None:
    """Raises UserError if there are lines of another commit: a comparison is of one code."""
    here = commit()
    others = {line["commit"] for line in question.lines()} - {here}
    if others:
        other = sorted(others)[0]
        mend = (
            f"continue in `git worktree add PATH {other}` with this file copied there, or move the file away"
        )
        raise UserError(f"{question.file}: its lines are of commit {other}, this is {here}; {mend}")


def run_grid(question: Question, grid: Sequence[Run], data_dir: Path, work_dir: Path) -> None:
    """Run the grid in order. Finished runs are skipped, interrupted ones resumed.

    All arms of a seed and a number of rows run on one type of processor. Runs whose seed was started on
    another type are skipped with a message. Raises UserError if there are lines of another commit, or if a
    run fails.
    """
    check_lines(question)
    here = processor_type(machine())
    types = {
        (tuple(line["tasks"]), line["seed"], line.get("train_rows")): processor_type(line)
        for line in question.lines()
    }
    done = {line["name"] for line in question.lines()}
    left = [run for run in grid if run.name not in done]
    elsewhere = [run for run in left if types.get((run.tasks, run.seed, run.train_rows), here) != here]
    if elsewhere:
        print(cut(f"{question.name}: {len(elsewhere)} runs wait for the processor that began their seeds"))
    left = [run for run in left if run not in elsewhere]
    speeds: list[float] = []  # seconds a step
    for place, run in enumerate(left):
        steps_left = sum(other.steps for other in left[place:])
        cost = f", about {statistics.fmean(speeds) * steps_left / 60:.0f} min left" if speeds else ""
        print(cut(f"{question.name} {place + 1}/{len(left)}: {run.name}{cost}"), flush=True)
        line = run_one(question, run, data_dir, work_dir)
        speeds.append(line["seconds"] / run.steps)
        mains = {name: round(scores[TASKS[name].main_metric], 4) for name, scores in line["dev"].items()}
        print(cut(f"  {mains}, {line['seconds']:.0f} s"), flush=True)


# ------------------------------------------------------------------------------------- command line


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The flags of a question's command line."""
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
    parser.add_argument("--table", action="store_true", help="print the tables, run nothing")
    return parser


def guarded(program: Callable[[], None]) -> int:
    """Run a question's program. Returns the exit status; a mistake and Ctrl-C give one line."""
    try:
        program()
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    return 0


def data_folder(options: argparse.Namespace) -> Path:
    """The folder of the data. Raises UserError if none was named."""
    if not options.data_dir:
        raise UserError("--data_dir: the folder of the course's files is needed (or SMART_BERT_DATA_DIR)")
    return Path(options.data_dir)
