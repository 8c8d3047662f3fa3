"""The paper's Table 1, measured again: its six runs, ours, and one in the paper's own settings.

Every run gave each of its tasks 534 steps of 32 rows: two passes over SST, 2.8 over STS-B, 1.07 over 16,000
Quora pairs. The last row has the paper's learning rate, batch size and sentence vector, and as many passes.
Two seeds where a run is short, one where Quora trains. Dev of all three tasks is scored; a task that was not
trained has a head with random weights. Finished at commit 271cdf2576cf.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from experiments import tables
from experiments.pictures import COLOURS, Picture
from experiments.tables import NAMES, Cell, Line, Question, Row

ROUND_ROBIN = "all three interleaved, SMART"
PAPER: dict[str, tuple[float, ...]] = {  # the paper's scores of each run; it has no round-robin of all three
    "sentiment only, no SMART": (0.318, 0.625, 0.015),
    "sentiment only, SMART": (0.344, 0.625, 0.015),
    "paraphrase only, SMART": (0.135, 0.660, 0.030),
    "similarity only, SMART": (0.135, 0.376, 0.025),
    "all three in sequence, SMART": (0.332, 0.371, 0.015),
    "sst and para interleaved, SMART": (0.372, 0.656, 0.032),
    ROUND_ROBIN: (),
    "sst and para interleaved, SMART, the paper's settings": (0.372, 0.656, 0.032),
}
CURVES = {  # each task alone
    "sst": "sentiment only, no SMART",
    "para": "paraphrase only, SMART",
    "sts": "similarity only, SMART",
}


def trained(task: str, row: Row) -> bool:
    """Whether the run trained the task."""
    return task in row.lines[0]["tasks"]


def ours(task: str) -> Cell:
    """Our scores, bold if the task was trained."""
    scores = tables.compact(task)
    return lambda row: f"**{scores(row)}**" if trained(task, row) else scores(row)


def papers(task: str) -> Cell:
    """The paper's score."""
    place = list(NAMES).index(task)
    return lambda row: "".join(f"{score:.3f}" for score in PAPER[row.labels[0]][place : place + 1])


def both(task: str) -> Cell:
    """Our score of a task that was trained, and the paper's behind it."""

    def cell(row: Row) -> str:
        paper = f" ({papers(task)(row)})".replace(" ()", "")
        return tables.level(tables.of("score", task))(row) + paper if trained(task, row) else "–"

    return cell


def rows(lines: Sequence[Line]) -> list[Row]:
    """A row for each run."""
    return [tables.beside((name,), tables.of_arm(lines, name)) for name in PAPER]


def shown(lines: Sequence[Line]) -> str:
    """Our scores, and the paper's."""
    columns = [(name, ours(task)) for task, name in NAMES.items()]
    columns += [("paper: " * (task == "sst") + name, papers(task)) for task, name in NAMES.items()]
    return tables.table(("run",), rows(lines), [*columns, tables.SEEDS, tables.MINUTES])


def short_table() -> str:
    """For the main README: the trained tasks alone. Provenance stands below the full table."""
    columns = [(name, both(task)) for task, name in NAMES.items()]
    return tables.table(("run",), rows(QUESTION.lines()), columns)


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
            line = tables.of_arm(lines, arm)[0]
            steps, losses = smoothed(line["train_loss"][task], len(line["tasks"]))
            label = "round-robin, SMART" if arm == ROUND_ROBIN else arm.replace(" only", " alone")
            axes.plot(steps, losses, color=colour, label=label)
        axes.set_title(f"{task}: {'squared error' if task == 'sts' else 'cross entropy'}")
        axes.set_xlabel(f"steps of {task}")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), frameon=False, fontsize=9)
    figure.axes[0].set_ylabel("training loss")


SAID = "Training loss of each task over its own steps, trained alone and in the round-robin of all three"
QUESTION = Question("table1", shown, (Picture("loss-curves", SAID, draw, height=3.6),))
