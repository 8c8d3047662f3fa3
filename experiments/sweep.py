"""The runs behind SMART's defaults.

The runs are older than the runner. Each trained one task on 1,000 rows, the same for all seeds, for 96 steps
of 32 rows (3 passes). The whole dev set was scored once, at the end, with the student. Where a setting says
nothing else: λ_s = 1, η = ε, μ = 0, β = `fitted`.
"""

import statistics
from collections.abc import Sequence

from experiments import tables
from experiments.tables import Cell, Line, Question, Row


def scores(row: Row, task: str) -> list[float]:
    """By seed, in the order of the lines."""
    return [line["score"] for line in row.lines if line["task"] == task]


def each(task: str) -> Cell:
    """The score of each seed, since seeds differ by more than settings do."""
    return lambda row: ", ".join(f"{score:.3f}" for score in scores(row, task))


def both_tasks(seeds: int) -> Cell:
    """The mean of both tasks over so many seeds; empty if there are fewer."""

    def cell(row: Row) -> str:
        found = [scores(row, task)[:seeds] for task in ("sst", "sts")]
        return f"{statistics.fmean(map(statistics.fmean, found)):.4f}" if len(found[0]) == seeds else ""

    return cell


def shown(lines: Sequence[Line]) -> str:
    """A row for each setting."""
    lines = sorted(lines, key=lambda line: line["seed"])
    settings = dict.fromkeys(line["setting"] for line in lines)
    rows = [Row((name,), [line for line in lines if line["setting"] == name]) for name in settings]
    columns = (
        ("SST, seeds 0, 1", each("sst")),
        ("STS, seeds 0, 1", each("sts")),
        ("both tasks, seed 0", both_tasks(1)),
        ("both tasks, both seeds", both_tasks(2)),
    )
    return tables.table(("setting",), rows, columns)


QUESTION = Question("sweep", shown)
