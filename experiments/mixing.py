"""Ways to mix three tasks, and losses beside SMART's: each alone beside the default. Exploratory.

Plain training on SST, STS-B and 8,000 Quora pairs, with as many batches as two passes over the median task
need: 1,500 steps of one task each. A joint step has a batch of every task, so it has a third of the steps.

Two seeds for each option, beside the default with the same two: 0 and 1 for the schedules, 2 and 3 for all
else. (The halves ran on two types of processor, and only runs of one type are compared.) Finished at commit
7f8ee007300e.
"""

import statistics
from collections.abc import Sequence

from experiments.runner import Question
from experiments.tables import (
    MINUTES,
    NAMES,
    Column,
    Line,
    Row,
    Table,
    main_metric,
    mean_text,
    of_arm,
    pairs,
    ranges,
    seeds_of,
)

DEFAULT = "default: interleaved"
SCHEDULES = ("sequential", "proportional", "annealed", "joint")
OTHERS = (
    "joint, PCGrad",
    "task weight of para .5",
    "at most 1,024 tokens",
    "moving average of the weights",
    "cosine similarity",
    "contrastive loss, weight .1",
    "FreeLB",
)
HALVES = {(0, 1): SCHEDULES, (2, 3): OTHERS}  # by seeds


def rows(lines: Sequence[Line]) -> list[Row]:
    """In each half the default, then each option beside it."""
    found = []
    for seeds, options in HALVES.items():
        half = [line for line in lines if line["seed"] in seeds]
        default = of_arm(half, DEFAULT)
        found.append(Row((DEFAULT,), default))
        found += [Row((option,), of_arm(half, option), default) for option in options]
    return found


def score(task: str, name: str) -> Column:
    """The mean, and its difference from the default's in points."""

    def cell(row: Row) -> str:
        first, second = pairs(row, main_metric(task))
        points = 100 * statistics.fmean(b - a for a, b in zip(first, second, strict=True)) if first else 0
        return mean_text(row, main_metric(task), 3) + (f" ({points:+.1f})" if first else "")

    return Column(name, cell)


COLUMNS = (
    *(score(task, name) for task, name in NAMES.items()),
    Column("seeds", lambda row: ranges(seeds_of(row))),
    MINUTES,
)
QUESTION = Question("mixing", (Table(("arm",), rows, COLUMNS),))
