"""The paper's Table 1, measured again: its six runs, ours, and one in the paper's own settings.

    python -m experiments.table1 --data_dir path/to/data    # runs what has no line yet, about 2 hours

Every run gives each of its tasks 534 steps of 32 rows: two passes over SST, 2.8 over STS-B, 1.07 over 16,000
Quora pairs. The last row has the paper's learning rate, batch size and sentence vector, and as many passes.
Two seeds where a run is short, one where Quora trains.
"""

import statistics
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments import tables
from experiments.pictures import COLOURS, Picture
from experiments.runner import Run, parse, run_grid
from experiments.tables import NAMES, Cell, Line, Question, Row
from support.errors import exit_status

STEPS = 534  # of each task
QUORA_ROWS = 16_000  # SST and STS-B have fewer, so these are whole
SMART = "--use_smart"
PAPERS_SETTINGS = "--lr 1e-3 --head_lr 1e-3 --batch_size 8 --pooling cls"


class Arm(NamedTuple):
    """A row of the table. paper: what the paper's Table 1 has for it. factor: on STEPS."""

    tasks: tuple[str, ...]
    flags: str
    paper: tuple[float, ...]
    seeds: tuple[int, ...] = (0,)
    factor: int = 1


ROUND_ROBIN = "all three interleaved, SMART"
ARMS = {  # the paper has no round-robin of all three
    "sentiment only, no SMART": Arm(("sst",), "", (0.318, 0.625, 0.015), (0, 1)),
    "sentiment only, SMART": Arm(("sst",), SMART, (0.344, 0.625, 0.015), (0, 1)),
    "paraphrase only, SMART": Arm(("para",), SMART, (0.135, 0.660, 0.030)),
    "similarity only, SMART": Arm(("sts",), SMART, (0.135, 0.376, 0.025), (0, 1)),
    "all three in sequence, SMART": Arm(
        tuple(NAMES), f"{SMART} --schedule sequential", (0.332, 0.371, 0.015)
    ),
    "sst and para interleaved, SMART": Arm(("sst", "para"), SMART, (0.372, 0.656, 0.032)),
    ROUND_ROBIN: Arm(tuple(NAMES), SMART, ()),
    "sst and para interleaved, SMART, the paper's settings": Arm(
        ("sst", "para"), f"{SMART} {PAPERS_SETTINGS}", (0.372, 0.656, 0.032), factor=4
    ),
}
GRID = [
    Run(name, arm.tasks, seed, tuple(arm.flags.split()), arm.factor * STEPS * len(arm.tasks), QUORA_ROWS)
    for seed in (0, 1)
    for name, arm in ARMS.items()
    if seed in arm.seeds
]
CURVES = {  # each task alone
    "sst": "sentiment only, no SMART",
    "para": "paraphrase only, SMART",
    "sts": "similarity only, SMART",
}


def ours(task: str, scores: Cell) -> Cell:
    """Our scores of a task that was trained."""
    return lambda row: scores(row) if task in row.lines[0]["tasks"] else "–"


def papers(task: str) -> Cell:
    """The paper's score."""
    place = list(NAMES).index(task)
    return lambda row: "".join(f"{score:.3f}" for score in ARMS[row.labels[0]].paper[place : place + 1])


def both(task: str) -> Cell:
    """Our score, and the paper's behind it."""
    score = tables.level(tables.of("score", task))
    return ours(task, lambda row: score(row) + f" ({papers(task)(row)})".replace(" ()", ""))


def rows(lines: Sequence[Line]) -> list[Row]:
    """A row for each arm that has been run."""
    arms = {line["arm"] for line in lines}
    return [tables.beside((name,), tables.of_arm(lines, name)) for name in ARMS if name in arms]


def shown(lines: Sequence[Line]) -> str:
    """Our scores, and the paper's."""
    columns = [(name, ours(task, tables.compact(task))) for task, name in NAMES.items()]
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


def main() -> int:
    """The command line. Returns the exit status."""
    options = parse(__doc__)
    grid = [run for run in GRID if not options.seeds or run.seed in options.seeds]
    run_grid(QUESTION, grid, options.data_dir, options.work_dir)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status("experiments.table1", main))
