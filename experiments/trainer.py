"""Which settings of the trainer should be the defaults? Plain training, one option after the other.

    python -m experiments.trainer --data_dir path/to/data             # all that is left; goes on anywhere
    python -m experiments.trainer --data_dir path/to/data --seeds 0   # one of several processes

    base ─ stage: every value of one option ─> mean gain over five settings ─ winner ─> base of the next stage

Scores are of rows that were taken out of training (`held_out.py`); dev is not looked at. A default changes
where the mean gain over all pairs (a setting and a seed) is at least its standard error. Each stage has two
seeds; where they disagree on whether the best value gains, that value has a third. The last stage is SMART's
ε and η.

All runs of a stage and a seed are of one type of processor, and so of one precision: where a stage was begun
elsewhere and not finished, this machine runs all of it.
"""

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from experiments.held_out import held_out_folder
from experiments.runner import SAMPLE, Run, machine, parse, run_grid
from experiments.tables import Line, Question, markdown, processor_type, provenance
from support.errors import exit_status
from tasks import TASKS

QUESTION = Question("trainer")
SEEDS = (0, 1)
THIRD_SEED = 2  # where the two disagree
PLAIN_STAGES = {
    "head_lr": ("1e-4", "1e-3", "3e-3", "1e-2"),
    "lr": ("1e-4", "5e-5", "2e-4"),
    "layer_lr_decay": ("1", "0.9", "0.8"),
    "batch_size": ("32", "16"),
    "pooling": ("mean", "cls"),
    "similarity": ("head", "cosine"),
}
STAGES = PLAIN_STAGES | {"smart_epsilon": ("0.01", "0.04")}  # η is the same
BEFORE = {option: values[0] for option, values in STAGES.items()}
Values = dict[str, str]  # of every option


class Setting(NamedTuple):
    """Where people train. rows: drawn of each task; None for all. steps: of 32 rows."""

    tasks: tuple[str, ...]
    rows: int | None
    steps: int


SETTINGS = {
    "sst, 1,000 rows": Setting(("sst",), 1000, 3 * 32),  # three passes
    "sst, all rows": Setting(("sst",), None, 2 * 241),  # two passes over 7,700
    "sts, 1,000 rows": Setting(("sts",), 1000, 3 * 32),
    "sts, all rows": Setting(("sts",), None, 2 * 174),  # over 5,540
    "three tasks": Setting(("sst", "para", "sts"), 16_000, 3 * 240),  # one pass over SST, half of Quora's
}


def run_of(values: Values, setting: str, seed: int, smart: bool, processor: str) -> Run:
    """One training. Options that have no effect in a setting are left out, so its run is shared."""
    tasks, rows, steps = SETTINGS[setting]
    values = {option: value for option, value in values.items() if smart or option in PLAIN_STAGES}
    if "sts" not in tasks:
        values.pop("similarity")
    flags = [word for option, value in values.items() for word in (f"--{option}", value)]
    if smart:
        flags += ["--use_smart", "--smart_step_size", values["smart_epsilon"]]
    for task in tasks:  # nobody reads these scores; the held-out rows are scored once, after the run
        flags += [f"--{task}_dev", os.path.relpath(SAMPLE / TASKS[task].filename("dev"))]
    changed = [f"{option} {value}" for option, value in values.items() if smart or value != BEFORE[option]]
    arm = ", ".join([setting, *(["SMART"] if smart else []), *changed, processor])
    steps = steps * 32 // int(values["batch_size"])
    return Run(arm, tasks, seed, tuple(flags), steps, rows)


def runs_of(values: Values, seed: int, smart: bool, processor: str) -> list[Run]:
    """A run for each setting."""
    return [run_of(values, setting, seed, smart, processor) for setting in SETTINGS]


def measures_of(line: Line) -> np.ndarray:
    """Accuracy or Pearson correlation, which decides; macro F1 and NLL of tasks with classes. (3,), means."""
    dev = [line["dev"][task] for task in line["tasks"]]
    main = [dev[i][TASKS[task].main_metric] for i, task in enumerate(line["tasks"])]
    classes = [scores for scores in dev if "macro_f1" in scores]
    others = [[scores[name] for scores in classes] or [math.nan] for name in ("macro_f1", "loss")]
    return np.array([statistics.fmean(values) for values in (main, *others)])


class Stage(NamedTuple):
    """One option: its values, each with all settings of the trainer, and the winner if the stage is over.

    left: by seed the runs that lack a line on this processor, unless another has all of that seed. gains: of
    each other value, by seed, `measures_of` less those of the first value in each setting, where all lines of
    both are there.
    """

    option: str
    left: dict[int, list[Run]]
    gains: dict[str, dict[int, list[np.ndarray]]]
    winner: str | None


def gain_of(gains: dict[int, list[np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error over all pairs of a setting and a seed, of each measure (3,)."""
    pairs = np.ma.masked_invalid(
        [gain for of_seed in gains.values() for gain in of_seed]
    )  # sts has no classes
    return pairs.mean(0).filled(math.nan), (pairs.std(0, ddof=1) / pairs.count(0) ** 0.5).filled(math.nan)


def stage_of(option: str, base: Values, lines: Sequence[Line]) -> Stage:
    """What the lines say of an option on top of what has won before."""
    smart = option not in PLAIN_STAGES
    first, *others = STAGES[option]
    scores = {line["name"]: measures_of(line) for line in lines}
    here = processor_type(machine())
    left: dict[int, list[Run]] = {}
    gains: dict[str, dict[int, list[np.ndarray]]] = {value: {} for value in others}

    def compare(values: Sequence[str], seed: int) -> None:
        """Fill in the gains of these values with this seed, or the runs that are left."""
        for processor in dict.fromkeys([*map(processor_type, lines), here]):
            arms = {
                value: runs_of(base | {option: value}, seed, smart, processor) for value in (first, *values)
            }
            runs = {run.name: run for of_value in arms.values() for run in of_value}
            for value in values:
                if all(run.name in scores for run in (*arms[first], *arms[value])):
                    pairs = zip(arms[first], arms[value], strict=True)
                    gains[value][seed] = [scores[new.name] - scores[old.name] for old, new in pairs]
            if runs.keys() <= scores.keys():
                left.pop(seed, None)
                return
            if processor == here:
                left[seed] = [run for name, run in runs.items() if name not in scores]

    for seed in SEEDS:
        compare(others, seed)
    if left:
        return Stage(option, left, gains, None)
    best = max(others, key=lambda value: gain_of(gains[value])[0][0])
    means = [np.mean(of_seed, 0)[0] for of_seed in gains[best].values()]
    if min(means) <= 0 < max(means):
        compare([best], THIRD_SEED)
    if left:
        return Stage(option, left, gains, None)
    (mean, *_), (error, *_) = gain_of(gains[best])
    return Stage(option, left, gains, best if mean >= error and mean > 0 else first)


def stages(lines: Sequence[Line]) -> Iterator[Stage]:
    """Every stage up to the first that is not over."""
    base = dict(BEFORE)
    for option in STAGES:
        stage = stage_of(option, base, lines)
        yield stage
        if stage.winner is None:
            return
        base[option] = stage.winner


def run_all(options: argparse.Namespace) -> None:
    """Run stage after stage. With --seeds, wait for the other processes at the end of each."""
    data_dir = held_out_folder(options.data_dir, options.work_dir / "held-out")
    while (stage := list(stages(QUESTION.lines()))[-1]).winner is None:
        seeds = [seed for seed in stage.left if not options.seeds or seed in options.seeds]
        runs = [run for seed in seeds for run in stage.left[seed]]
        if runs:
            print(f"{stage.option}: {len(runs)} runs", flush=True)
            run_grid(QUESTION, runs, data_dir, options.work_dir)
        else:
            time.sleep(15)  # another process has the other seeds


def page() -> str:
    """Each stage: the mean gain of every value over the first, with its standard error, and what won."""
    lines = QUESTION.lines()
    rows = []
    for stage in stages(lines):
        for value in STAGES[stage.option]:
            cells = [f"`--{stage.option}`", value, *[""] * (len(SETTINGS) + 5)]
            gains = stage.gains.get(value)
            if gains:
                mean, error = gain_of(gains)
                of_settings = np.mean(list(gains.values()), 0)[:, 0]
                cells[2:-5] = [f"{100 * gain:+.1f}" for gain in of_settings]
                cells[-5:-2] = [f"{100 * m:+.2f} ± {100 * e:.2f}" for m, e in zip(mean, error, strict=True)]
                cells[-2] = str(len(gains))
            if value == stage.winner:
                cells[-1] = "won"
            rows.append(cells)
    heads = ["option", "value", *SETTINGS, "mean gain", "macro F1", "NLL x 100", "seeds", ""]
    unfinished = f" Not finished: the stage `--{stage.option}` and those after it."
    return f"{markdown(heads, rows)}\n\n{provenance(lines)}{unfinished if stage.winner is None else ''}"


def main() -> int:
    """The command line. Returns the exit status."""
    run_all(parse(__doc__))
    print(page())
    return 0


if __name__ == "__main__":
    sys.exit(exit_status("experiments.trainer", main))
