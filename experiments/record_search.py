"""The search for a record: one option after the other, on rows that are nobody's dev.

    python -m experiments.record_search --data_dir path/to/data            # all that is left
    python -m experiments.record_search --data_dir path/to/data --seeds 0  # one of two processes

    base ─ stage: every value of one option ─> gains over the base, two seeds ─ winner ─> base of the next one

Fixed before the first run. All three tasks, all rows but those held out (`held_out.py`); half a pass over
every task, and two or three in the last stage. The score is the mean of SST accuracy, Quora accuracy and STS
Pearson on the held-out rows, with the last step's weights. A value wins if its mean gain is the largest and
both seeds gain. Values of one stage see as many rows, whatever a step costs: the record's two hours leave
room for that. What makes steps dearer comes late. Last, the weights of the two seeds are averaged. A record
then trains the winner on all rows, three seeds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import average
from config import TrainConfig
from experiments.held_out import held_out_folder
from experiments.runner import SAMPLE, Run, finished_model, parse, run_grid, scored
from experiments.tables import HERE, NAMES, Line, Question, markdown, of, provenance
from multitask_classifier import load_model, save_model
from support.errors import exit_status
from support.files import read_json
from tasks import TASKS

QUESTION = Question("record_search")
SEEDS = (0, 1)
STEPS = 1_252  # of 32 rows: half a pass over the 80,145 rows that are left
EPOCHS = 4  # of the annealed schedule, which changes from one to the next
ADAPTED = Path("runs/record-adapted")  # from the folder of the clone; 2 epochs
SMART = "--use_smart --smart_epsilon 0.04 --smart_step_size 0.04"
PASSES = {"half": 1, "2": 4, "3": 6}  # times STEPS
STAGES = {  # the first value is the base's
    "encoder": {"minilm": "", "adapted": f"--model_name_or_path {ADAPTED}/best"},
    "sts": {"cosine": "", "head": "--similarity head", "cosine, contrastive": "--contrastive_weight 0.1"},
    "batch": {"32": "", "16": "--batch_size 16"},
    "lr": {"2e-4": "", "1e-4": "--lr 1e-4"},
    "schedule": {
        "proportional": "--schedule proportional",
        "annealed": "--schedule annealed",
        "proportional, half weight of para": "--schedule proportional --task_weights para=0.5",
    },
    "regulariser": {
        "none": "",
        "SMART, every 4th batch": f"{SMART} --smart_every 4",
        "SMART": SMART,
        "R-Drop": "--rdrop_weight 1",
    },
    "passes": dict.fromkeys(PASSES, ""),
}
AVERAGE = "average-of-both-seeds"
Values = dict[str, str]  # of every option, by name


def run_of(values: Values, seed: int) -> Run:
    """One training. Its arm names what differs from the first values."""
    changed = [
        f"{option}: {value}" for option, value in values.items() if value != next(iter(STAGES[option]))
    ]
    steps = PASSES[values["passes"]] * STEPS * 32 // int(values["batch"])
    flags = [word for option, value in values.items() for word in STAGES[option][value].split()]
    if values["schedule"] == "annealed":
        flags += ["--epochs", str(EPOCHS), "--steps_per_epoch", str(steps // EPOCHS)]
    for task in NAMES:  # nobody reads these scores; the held-out rows are scored once, after the run
        flags += [f"--{task}_dev", os.path.relpath(SAMPLE / TASKS[task].filename("dev"))]
    arm = "; ".join(changed) or "base"
    return Run(arm, tuple(NAMES), seed, tuple(flags), steps)


def mean_score(line: Line) -> float:
    """The mean of the three main metrics on the held-out rows."""
    return statistics.fmean(of("score", task)(line) for task in NAMES)


class Stage(NamedTuple):
    """An option, its runs without a line, the gain of each value by seed, and the winner if it is over."""

    option: str
    left: list[Run]
    gains: dict[str, list[float]]
    winner: str | None


def stages(lines: Sequence[Line]) -> Iterator[Stage]:
    """Every stage up to the first that is not over."""
    scores = {line["name"]: mean_score(line) for line in lines}
    base = {option: next(iter(values)) for option, values in STAGES.items()}
    for option, (first, *others) in ((option, list(values)) for option, values in STAGES.items()):
        runs = {value: [run_of(base | {option: value}, seed) for seed in SEEDS] for value in (first, *others)}
        left = [run for of_value in runs.values() for run in of_value if run.name not in scores]
        gains = {}
        for value in others:
            pairs = zip(runs[first], runs[value], strict=True)
            gains[value] = [
                scores[new.name] - scores[old.name] for old, new in pairs if {new.name, old.name} <= {*scores}
            ]
        if left:
            yield Stage(option, left, gains, None)
            return
        best = max(others, key=lambda value: statistics.fmean(gains[value]))
        base[option] = best if min(gains[best]) > 0 else first
        yield Stage(option, left, gains, base[option])


def outcome(run: Run, data_dir: Path, folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The scores of a finished run. Its weights are kept, for the average."""
    model, tokenizer, config = finished_model(folder)
    record = read_json(folder / "best" / "run.json")
    save_model(weights_of(folder.parent, run), {"student": model}, "student", tokenizer, record)
    return scored(model, tokenizer, config, run.tasks, data_dir)


def weights_of(folder: Path, run: Run) -> Path:
    """Where the weights of a run are kept."""
    return folder / "weights" / run.name


def add_average(data_dir: Path, folder: Path) -> None:
    """The line of the averaged model of the winner's two seeds."""
    lines = QUESTION.lines()
    winner = [run_of({stage.option: str(stage.winner) for stage in stages(lines)}, seed) for seed in SEEDS]
    of_seeds = [line for run in winner for line in lines if line["name"] == run.name]
    folders = [str(weights_of(folder, run)) for run in winner]
    model, tokenizer, record = average.averaged(folders, load_model)
    dev, predictions = scored(model, tokenizer, TrainConfig.from_dict(record["config"]), NAMES, data_dir)
    np.savez_compressed(QUESTION.predictions(AVERAGE), **predictions)
    seconds = sum(line["seconds"] for line in of_seeds)
    line = of_seeds[0] | {"arm": AVERAGE, "name": AVERAGE, "dev": dev, "seconds": seconds}
    with QUESTION.file.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def adapted(data_dir: Path) -> None:
    """Further pre-training on the training texts, unless it is there. Its minutes count in a record."""
    command = [sys.executable, str(HERE.parent / "multitask_classifier.py")]
    if (ADAPTED / "last").exists():
        command += ["--resume", "--output_dir", str(ADAPTED)]
    else:
        command += ["--option", "adapt", "--data_dir", str(data_dir)]
        command += ["--output_dir", str(ADAPTED), "--epochs", "2"]
    if not (ADAPTED / "best").exists():
        subprocess.run(command, check=True)


def run_all(options: argparse.Namespace) -> None:
    """Run stage after stage. With --seeds, wait for the other process at the end of each."""
    data_dir = held_out_folder(options.data_dir, options.work_dir / "held-out")
    first = SEEDS[0] in (options.seeds or SEEDS)  # this process adapts and averages
    while (stage := list(stages(QUESTION.lines()))[-1]).winner is None:
        left = [run for run in stage.left if not options.seeds or run.seed in options.seeds]
        if first:
            adapted(data_dir)
        elif not (ADAPTED / "best").exists():
            left = [run for run in left if str(ADAPTED) not in " ".join(run.flags)]
        if left:
            print(f"{stage.option}: {len(left)} runs", flush=True)
            run_grid(QUESTION, left, data_dir, options.work_dir, outcome)
        else:
            time.sleep(15)  # the other process has the other seed, or adapts
    if first and AVERAGE not in [line["arm"] for line in QUESTION.lines()]:
        add_average(data_dir, options.work_dir / QUESTION.name)


def page() -> str:
    """Each stage: the gain of every value over the first, and what won; then the average of both seeds."""
    lines = QUESTION.lines()
    if not lines:
        return "Not run yet: `python -m experiments.record_search --data_dir path/to/data`"
    rows = []
    for stage in stages(lines):
        for value in STAGES[stage.option]:
            gains = [100 * gain for gain in stage.gains.get(value, [])]
            cells = [f"{gain:+.2f}" for gain in (*gains, *([statistics.fmean(gains)] if gains else []))]
            won = "won" if value == stage.winner else ""
            rows.append([stage.option, value, *(cells + [""] * 3)[:3], won])
    heads = ["option", "value", *(f"seed {seed}" for seed in SEEDS), "mean gain, points", ""]
    scores = {line["name"]: mean_score(line) for line in lines}
    said = f"The average of both seeds has {scores[AVERAGE]:.4f}.\n\n" if AVERAGE in scores else ""
    return f"{markdown(heads, rows)}\n\n{said}{provenance(lines)}"


def main() -> int:
    """The command line. Returns the exit status."""
    run_all(parse(__doc__))
    print(page())
    return 0


if __name__ == "__main__":
    sys.exit(exit_status("experiments.record_search", main))
