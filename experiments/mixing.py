"""Ways to mix three tasks, and losses beside SMART's: each alone beside the default. Exploratory.

Plain training on SST, STS-B and 8,000 Quora pairs, with as many batches as two passes over the median task
need: 1,500 steps of one task each. A joint step has a batch of every task, so it has a third of the steps.

Two seeds for each option, beside the default with the same two: 0 and 1 for the schedules, 2 and 3 for all
else. (The halves ran on two types of processor, and only runs of one type are compared.) Finished at commit
7f8ee007300e.
"""

from collections.abc import Sequence

from experiments import tables
from experiments.tables import Line, Question

DEFAULT = "default: interleaved"
HALVES = {  # options by seeds
    (0, 1): ("sequential", "proportional", "annealed", "joint"),
    (2, 3): (
        "joint, PCGrad",
        "task weight of para .5",
        "at most 1,024 tokens",
        "moving average of the weights",
        "cosine similarity",
        "contrastive loss, weight .1",
        "FreeLB",
    ),
}


def shown(lines: Sequence[Line]) -> str:
    """In each half the default, then each option beside it."""
    rows = []
    for seeds, options in HALVES.items():
        half = [line for line in lines if line["seed"] in seeds]
        default = tables.of_arm(half, DEFAULT)
        rows.append(tables.beside((DEFAULT,), default))
        rows += [tables.beside((option,), tables.of_arm(half, option), default) for option in options]
    scores = ((name, tables.compact(task)) for task, name in tables.NAMES.items())
    seeds_of = ("seeds", lambda row: tables.ranges(line["seed"] for line in row.lines))
    return tables.table(("arm",), rows, (*scores, seeds_of, tables.MINUTES))


QUESTION = Question("mixing", shown)
