"""The paper's Table 1, measured again: its six runs, ours, and one in the paper's own settings.

    python -m experiments.table1 --data_dir path/to/data    # runs what has no line yet, about three hours
    python -m experiments.table1 --table
    python -m experiments.table1 --plot                     # loss curves, the paper's figure 4

Every run gives each of its tasks 534 steps of 32 rows: two passes over SST, 2.8 over STS-B, 1.07 over 16,000
Quora pairs. The last row has the paper's learning rate, batch size and sentence vector, and as many passes.
Two seeds where a run is short, one where Quora trains. Dev of all three tasks is scored; a task that was not
trained has a head with random weights.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import pictures
from experiments.runner import Line, Question, Run, main_of, markdown, provenance
from support.errors import UserError
from tasks import TASKS

QUESTION = Question("table1")
TASK_NAMES = ("sst", "para", "sts")
STEPS = 534  # of each task: two passes over SST's 8,544 rows
QUORA_ROWS = 16_000  # more rows than SST and STS-B have, so these are whole
SMART = ("--use_smart",)
PAPER_SETTINGS = ("--lr", "1e-3", "--batch_size", "8", "--pooling", "cls")


@dataclass(frozen=True)
class Row:
    """A row of the table: a run, and what the paper's Table 1 has for it (None where it has no such run)."""

    name: str
    tasks: tuple[str, ...]
    flags: tuple[str, ...]
    paper: tuple[float, float, float] | None
    seeds: Sequence[int] = (0,)
    steps: int = STEPS  # of each task


ROWS = [
    Row("sentiment only, no SMART", ("sst",), (), (0.318, 0.625, 0.015), (0, 1)),
    Row("sentiment only, SMART", ("sst",), SMART, (0.344, 0.625, 0.015), (0, 1)),
    Row("paraphrase only, SMART", ("para",), SMART, (0.135, 0.660, 0.030)),
    Row("similarity only, SMART", ("sts",), SMART, (0.135, 0.376, 0.025), (0, 1)),
    Row(
        "all three in sequence, SMART",
        TASK_NAMES,
        (*SMART, "--schedule", "sequential"),
        (0.332, 0.371, 0.015),
    ),
    Row("sst and para interleaved, SMART", ("sst", "para"), SMART, (0.372, 0.656, 0.032)),
    Row("all three interleaved, SMART", TASK_NAMES, SMART, None),
    Row(
        "sst and para interleaved, SMART, the paper's settings",
        ("sst", "para"),
        (*SMART, *PAPER_SETTINGS),
        (0.372, 0.656, 0.032),
        steps=4 * STEPS,
    ),
]
GRID = [
    Run(
        row.name,
        row.tasks,
        seed,
        (*row.flags, "--precision", "bf16"),
        row.steps * len(row.tasks),
        QUORA_ROWS,
        TASK_NAMES,
    )
    for seed in (0, 1)
    for row in ROWS
    if seed in row.seeds
]


def lines_of(question: Question) -> dict[str, list[Line]]:
    """The lines by row."""
    lines = question.lines()
    return {row.name: [line for line in lines if line["arm"] == row.name] for row in ROWS}


def means(lines: list[Line]) -> list[float]:
    """The mean over seeds of each task's main metric on dev; none without lines."""
    names = [(task, TASKS[task].main_metric) for task in TASK_NAMES]
    return [statistics.fmean(line["dev"][task][metric] for line in lines) for task, metric in names if lines]


def table(question: Question) -> str:
    """Dev scores beside the paper's. A row that has not been run has `…`."""
    heads = ["run", "SST", "Quora", "STS", "paper: SST", "Quora", "STS", "seeds", "minutes"]
    rows = []
    for row in ROWS:
        lines = lines_of(question)[row.name]
        ours = [f"{mean:.3f}" for mean in means(lines)] or ["…"] * len(TASK_NAMES)
        trained = [task in row.tasks and bool(lines) for task in TASK_NAMES]
        ours = [f"**{score}**" if bold else score for score, bold in zip(ours, trained, strict=True)]
        paper = [f"{value:.3f}" for value in row.paper or ()] or [""] * len(TASK_NAMES)
        minutes = f"{statistics.fmean(line['seconds'] for line in lines) / 60:.0f}" if lines else "…"
        rows.append([row.name, *ours, *paper, str(len(lines)), minutes])
    return f"{markdown(heads, rows)}\n\n{provenance(question.lines())}"


def short_table(question: Question) -> str:
    """The table for the main README: the trained tasks alone, and behind each score the paper's.

    Seeds, processors and commit stand below the full table.
    """
    found = lines_of(question)
    rows = []
    for row in ROWS:
        ours = means(found[row.name])
        cells = []
        for place, task in enumerate(TASK_NAMES):
            score = f"{ours[place]:.3f}" if ours else "…"
            paper = f" ({row.paper[place]:.3f})" if row.paper else ""
            cells.append(f"{score}{paper}" if task in row.tasks else "–")
        rows.append([row.name, *cells])
    return markdown(["run", "SST", "Quora", "STS"], rows)


CURVES = {"sst": ROWS[0], "para": ROWS[2], "sts": ROWS[3]}  # each task alone
ROUND_ROBIN = ROWS[6]


def smoothed(curve: list[tuple[int, float]], tasks: int) -> tuple[list[float], list[float]]:
    """Steps of one task and its mean loss since the point before, from a run that takes turns with `tasks`.

    A log line is written every 50 steps of the run, of which the task has a share, so as many lines as tasks
    make a point. A rest at the end is left out: it would be the mean of a few batches.
    """
    even = [(step, loss) for step, loss in curve if step % 50 == 0]
    groups = [even[i : i + tasks] for i in range(0, len(even) - tasks + 1, tasks)]
    means = [statistics.fmean(loss for _, loss in group) for group in groups]
    return [group[-1][0] / tasks for group in groups], means


def plot(question: Question) -> list[Path]:
    """Training loss of each task, alone and in the round-robin of all three (the paper's figure 4)."""
    found = lines_of(question)
    needed = [*CURVES.values(), ROUND_ROBIN]
    if lacking := [row.name for row in needed if not found[row.name]]:
        raise UserError(f"{question.file}: no run yet of {', '.join(lacking)}")

    def draw(figure: Any, colours: list[str]) -> None:
        for axes, (task, alone) in zip(figure.subplots(1, 3), CURVES.items(), strict=True):
            for row, colour in ((alone, colours[0]), (ROUND_ROBIN, colours[5])):
                steps, losses = smoothed(found[row.name][0]["train_loss"][task], len(row.tasks))
                label = "round-robin, SMART" if row is ROUND_ROBIN else row.name.replace(" only", " alone")
                axes.plot(steps, losses, color=colour, label=label)
            axes.set_title(f"{task}: {'squared error' if task == 'sts' else 'cross entropy'}")
            axes.set_xlabel(f"steps of {task}")
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), frameon=False, fontsize=9)
        figure.axes[0].set_ylabel("training loss")

    return pictures.save("loss-curves", draw, question.folder / "pictures", height=3.6)


if __name__ == "__main__":
    sys.exit(main_of(QUESTION, GRID, table, plot, __doc__))
