"""The paper's Table 1, measured again: its six runs, ours, and one in the paper's own settings.

Every run gave each of its tasks 534 steps of 32 rows: two passes over SST, 2.8 over STS-B, 1.07 over 16,000
Quora pairs. The last row has the paper's learning rate, batch size and sentence vector, and as many passes.
Two seeds where a run is short, one where Quora trains. Dev of all three tasks is scored; a task that was not
trained has a head with random weights. Finished at commit 271cdf2576cf.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from experiments.pictures import COLOURS, Picture
from experiments.runner import Question
from experiments.tables import (
    MINUTES,
    NAMES,
    SEEDS,
    Column,
    Line,
    Row,
    Table,
    main_metric,
    mean_text,
    of_arm,
    table,
)

ROUND_ROBIN = "all three interleaved, SMART"
PAPER: dict[str, dict[str, float]] = {  # what the paper has for each row; it has no round-robin of all three
    name: dict(zip(NAMES, scores, strict=False))
    for name, scores in {
        "sentiment only, no SMART": (0.318, 0.625, 0.015),
        "sentiment only, SMART": (0.344, 0.625, 0.015),
        "paraphrase only, SMART": (0.135, 0.660, 0.030),
        "similarity only, SMART": (0.135, 0.376, 0.025),
        "all three in sequence, SMART": (0.332, 0.371, 0.015),
        "sst and para interleaved, SMART": (0.372, 0.656, 0.032),
        ROUND_ROBIN: (),
        "sst and para interleaved, SMART, the paper's settings": (0.372, 0.656, 0.032),
    }.items()
}
CURVES = {  # each task alone
    "sst": "sentiment only, no SMART",
    "para": "paraphrase only, SMART",
    "sts": "similarity only, SMART",
}


def rows(lines: Sequence[Line]) -> list[Row]:
    """A row for each run."""
    return [Row((name,), of_arm(lines, name)) for name in PAPER]


def trained(task: str, row: Row) -> bool:
    """Whether the run trained the task."""
    return task in row.lines[0]["tasks"]


def ours(task: str) -> Callable[[Row], str]:
    """Our score, bold if the task was trained."""

    def cell(row: Row) -> str:
        score = mean_text(row, main_metric(task), 3)
        return f"**{score}**" if trained(task, row) else score

    return cell


def papers(task: str) -> Callable[[Row], str]:
    """The paper's score."""
    return lambda row: f"{PAPER[row.labels[0]][task]:.3f}" if PAPER[row.labels[0]] else ""


def both(task: str) -> Callable[[Row], str]:
    """Our score, and the paper's behind it, of a task that was trained."""

    def cell(row: Row) -> str:
        paper = papers(task)(row)
        score = mean_text(row, main_metric(task), 3) + (f" ({paper})" if paper else "")
        return score if trained(task, row) else "–"

    return cell


def smoothed(curve: Sequence[tuple[int, float]], tasks: int) -> tuple[list[float], list[float]]:
    """Steps of one task and its mean loss since the point before, from a run that takes turns with `tasks`.

    A log line is written every 50 steps of the run, of which the task has a share, so as many lines as tasks
    make a point. A rest at the end is left out: it would be the mean of a few batches.
    """
    even = [(step, loss) for step, loss in curve if step % 50 == 0]
    groups = [even[i : i + tasks] for i in range(0, len(even) - tasks + 1, tasks)]
    means = [statistics.fmean(loss for _, loss in group) for group in groups]
    return [group[-1][0] / tasks for group in groups], means


def draw(figure: Any, lines: Sequence[Line]) -> None:
    """Training loss of each task, alone and in the round-robin of all three (the paper's figure 4)."""
    for axes, (task, alone) in zip(figure.subplots(1, 3), CURVES.items(), strict=True):
        for arm, colour in ((alone, COLOURS[0]), (ROUND_ROBIN, COLOURS[5])):
            line = of_arm(lines, arm)[0]
            steps, losses = smoothed(line["train_loss"][task], len(line["tasks"]))
            label = "round-robin, SMART" if arm == ROUND_ROBIN else arm.replace(" only", " alone")
            axes.plot(steps, losses, color=colour, label=label)
        axes.set_title(f"{task}: {'squared error' if task == 'sts' else 'cross entropy'}")
        axes.set_xlabel(f"steps of {task}")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), frameon=False, fontsize=9)
    figure.axes[0].set_ylabel("training loss")


HEADS = [Column(name, ours(task)) for task, name in NAMES.items()]
HEADS += [Column("paper: " * (task == "sst") + name, papers(task)) for task, name in NAMES.items()]
CURVE = "Training loss of each task over its own steps, trained alone and in the round-robin of all three"
QUESTION = Question(
    "table1",
    (Table(("run",), rows, (*HEADS, SEEDS, MINUTES)),),
    (Picture("loss-curves", CURVE, draw, height=3.6),),
)
# for the main README: the trained tasks alone. Seeds, processors and commit stand below the full table
SHORT = Table(("run",), rows, tuple(Column(name, both(task)) for task, name in NAMES.items()))


def short_table() -> str:
    """The table of the main README."""
    return table(SHORT, QUESTION.lines())
