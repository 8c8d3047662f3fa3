"""The runs behind SMART's defaults, and their table.

The runs are older than the runner. Each trained one task on 1,000 rows, the same for all seeds, for 96 steps
of 32 rows (3 passes). The whole dev set was scored once, at the end, with the student. Where a setting says
nothing else: λ_s = 1, η = ε, μ = 0, β = `fitted`.
"""

import statistics
from collections.abc import Sequence

from experiments.runner import Question
from experiments.tables import Column, Line, Row, Table


def rows(lines: Sequence[Line]) -> list[Row]:
    """A row for each setting."""
    settings = dict.fromkeys(line["setting"] for line in lines)
    return [Row((name,), [line for line in lines if line["setting"] == name]) for name in settings]


def scores(row: Row, task: str) -> list[float]:
    """By seed."""
    mine = [line for line in row.lines if line["task"] == task]
    return [line["score"] for line in sorted(mine, key=lambda line: line["seed"])]


def each(task: str) -> Column:
    """The score of each seed, since seeds differ by more than settings do."""
    head = f"{task.upper()}, seeds 0, 1"
    return Column(head, lambda row: ", ".join(f"{score:.3f}" for score in scores(row, task)))


def both_tasks(row: Row, seeds: int) -> str:
    """The mean of both tasks over so many seeds; nothing where there are fewer."""
    found = [scores(row, task)[:seeds] for task in ("sst", "sts")]
    return f"{statistics.fmean(map(statistics.fmean, found)):.4f}" if len(found[0]) == seeds else ""


COLUMNS = (
    each("sst"),
    each("sts"),
    Column("both tasks, seed 0", lambda row: both_tasks(row, 1)),
    Column("both tasks, both seeds", lambda row: both_tasks(row, 2)),
)
QUESTION = Question("sweep", (Table(("setting",), rows, COLUMNS),))
