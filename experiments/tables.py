"""Tables of the evidence: one function makes them all, from lines and a record of rows and columns.

    lines ─ Table.rows ─> rows: whose runs, compared with whose ─ columns ─> cells ─ table ─> Markdown

A new table is a `Table`: what its rows are, and its columns, most of them by `mean`, `gain` and `measured`.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from experiments.inference import paired
from tasks import TASKS

Line = dict[str, Any]
Measure = Callable[[Line], Any]  # one number of a run; None where it was not measured
NAMES = {"sst": "SST", "para": "Quora", "sts": "STS"}  # in the order of the tables


class Row(NamedTuple):
    """Runs that a row is of. labels: its first cells. base: the runs that they are compared with by seed."""

    labels: tuple[str, ...]
    lines: Sequence[Line]
    base: Sequence[Line] = ()


class Column(NamedTuple):
    """A column by its head, and what a row has there."""

    head: str
    cell: Callable[[Row], str]


@dataclass(frozen=True)
class Table:
    """labels: heads of the rows' labels. rows: from all lines of the question. caption: above the table."""

    labels: tuple[str, ...]
    rows: Callable[[Sequence[Line]], list[Row]]
    columns: tuple[Column, ...]
    caption: str = ""


def table(made: Table, lines: Sequence[Line]) -> str:
    """The table in Markdown, below its caption."""
    heads = [*made.labels, *(column.head for column in made.columns)]
    rows = [[*row.labels, *(column.cell(row) for column in made.columns)] for row in made.rows(lines)]
    return "\n\n".join(filter(None, [made.caption, markdown(heads, rows)]))


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a Markdown page."""
    rows = list(rows)
    assert all(len(cells) == len(heads) for cells in rows), "a row has a cell for each head"
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])


# ------------------------------------------------------------------------------------------- columns


def of_arm(lines: Iterable[Line], arm: str, *tasks: str) -> list[Line]:
    """The lines of an arm; of those tasks alone, where they are given."""
    return [line for line in lines if line["arm"] == arm and tasks in ((), tuple(line["tasks"]))]


def main_metric(task: str) -> Measure:
    """The task's main metric on dev."""
    return lambda line: line["dev"][task][TASKS[task].main_metric]


def own_score(line: Line) -> float:
    """The main metric on dev of a run of one task."""
    (task,) = line["tasks"]
    return float(main_metric(task)(line))


def seeds_of(row: Row) -> list[int]:
    """The seeds of the runs; of a row with a base those that both have."""
    mine, base = ({line["seed"] for line in side} for side in (row.lines, row.base))
    return sorted(mine & base if row.base else mine)


def pairs(row: Row, measure: Measure) -> tuple[list[float], list[float]]:
    """The base and the row over the seeds that both have, in order."""
    first, second = ({line["seed"]: measure(line) for line in side} for side in (row.base, row.lines))
    seeds = seeds_of(row) if row.base else []
    return [first[seed] for seed in seeds], [second[seed] for seed in seeds]


def interval_text(first: Sequence[float], second: Sequence[float], digits: int, scale: float = 1) -> str:
    """Mean of second - first with its 95 % interval over pairs; nothing for one pair."""
    if len(first) < 2:
        return ""
    mean, low, high = (f"{scale * value:+.{digits}f}" for value in paired(first, second))
    return f"{mean} ({low} to {high})"


def mean_text(row: Row, measure: Measure, digits: int) -> str:
    """The mean over the row's runs; nothing where it was not measured."""
    values = [measure(line) for line in row.lines]
    return "" if None in values else f"{statistics.fmean(values):.{digits}f}"


def mean(head: str, measure: Measure, digits: int = 3) -> Column:
    """The mean over the row's runs."""
    return Column(head, lambda row: mean_text(row, measure, digits))


def gain(head: str, measure: Measure, digits: int = 4, scale: float = 1) -> Column:
    """The row minus its base over the seeds that both have, with the 95 % interval."""
    return Column(head, lambda row: interval_text(*pairs(row, measure), digits, scale))


def measured(head: str, measure: Measure, digits: int = 3, interval: bool = False) -> Column:
    """The mean, with `interval` that over seeds beside it; of a row with a base the gain."""

    def cell(row: Row) -> str:
        if not mean_text(row, measure, digits):
            return ""
        if row.base:
            return interval_text(*pairs(row, measure), digits)
        if interval:
            values = [measure(line) for line in row.lines]
            return interval_text([0.0] * len(values), values, digits)
        return mean_text(row, measure, digits)

    return Column(head, cell)


SEEDS = Column("seeds", lambda row: str(len(seeds_of(row))))
MINUTES = mean("minutes", lambda line: line["seconds"] / 60, digits=0)


def cost_column(passes: Callable[[Line], float]) -> Column:
    """Cost of a run in units of its base. passes: forward passes of a run."""
    return Column("cost", lambda row: f"{cost(row, passes):.2g}")


def cost(row: Row, passes: Callable[[Line], float]) -> float:
    """What a run costs, in forward passes, in units of its base: 1 without a base."""
    return passes(row.lines[0]) / passes(row.base[0]) if row.base else 1.0


# ---------------------------------------------------------------------------------------- provenance


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers in order, neighbours as a range: `0, 1, 200 to 219`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def processor_type(line: Line) -> str:
    """The processor of a line with the instructions that decide its numbers."""
    return " ".join([line["processor"], *line.get("instructions", [])])


def provenance(lines: Sequence[Line]) -> str:
    """What a table must say of its lines: seeds, precision, commit, types of processors, thresholds."""

    def listed(values: Iterable[Any]) -> str:
        return ", ".join(sorted({str(value) for value in values}))

    if not lines:
        return "Nothing has been run yet."
    return (
        f"{len(lines)} runs, seeds {ranges(line['seed'] for line in lines)}; precision"
        f" {listed(line['precision'] for line in lines)}; processors:"
        f" {listed(processor_type(line) for line in lines)}; code of commit"
        f" {listed(line['commit'] for line in lines)}. Last step's weights; no threshold was fitted."
    )
