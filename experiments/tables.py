"""Questions, their lines, and the tables that are made from the lines.

    lines ─ a question's `shown` ─> rows: whose runs, beside whose ─ columns: a cell for each row ─> Markdown

A column is (head, cell). Most cells are made by `mean`, `gain` and `cost`.
"""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.inference import paired
from experiments.pictures import Picture, picture_markdown, save
from tasks import TASKS

HERE = Path(__file__).resolve().parent
NAMES = {"sst": "SST", "para": "Quora", "sts": "STS"}  # in the order of the tables
Line = dict[str, Any]  # what is known of a run
Measure = Callable[[Line], Any]  # one number of a run; None if it was not measured


@dataclass(frozen=True)
class Question:
    """The lines of a question and the predictions of its runs, in `folder`, and what the page shows of them.

    shown: the tables in Markdown, from all lines.
    """

    name: str
    shown: Callable[[Sequence[Line]], str] | None = None
    pictures: tuple[Picture, ...] = ()
    folder: Path = HERE

    @property
    def file(self) -> Path:
        """Its lines."""
        return self.folder / f"{self.name}.jsonl"

    def lines(self) -> list[Line]:
        """A line for each finished run."""
        text = self.file.read_text(encoding="utf-8") if self.file.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def predictions(self, run_name: str) -> Path:
        """The file of a run's dev predictions."""
        return self.folder / "predictions" / self.name / f"{run_name}.npz"

    def load_predictions(self, line: Line, task: str) -> tuple[np.ndarray, np.ndarray]:
        """Dev predictions and labels (rows,) of a line's run."""
        with np.load(self.predictions(line["name"])) as arrays:
            return arrays[task], arrays[f"{task} labels"]

    def page(self) -> str:
        """For the page of experiments: the tables, their provenance, the pictures."""
        lines = self.lines()
        parts = [self.shown(lines)] if self.shown else []
        if "commit" in lines[0]:
            parts.append(provenance(lines))
        return "\n\n".join([*parts, *map(picture_markdown, self.pictures)])

    def plot(self) -> list[Path]:
        """Draw the pictures that need only the lines. Returns their paths."""
        lines = self.lines()
        paths = []
        for picture in self.pictures:
            if picture.draw:
                paths += save(picture, partial(picture.draw, lines=lines), HERE / "pictures")
        return paths


# -------------------------------------------------------------------------------------------- tables


class Row(NamedTuple):
    """A row of a table.

    labels: its first cells. lines: its runs. base: the runs that they are compared with, of the same seeds in
    the same order.
    """

    labels: tuple[str, ...]
    lines: Sequence[Line]
    base: Sequence[Line] = ()


Cell = Callable[[Row], str]
Column = tuple[str, Cell]


def beside(labels: tuple[str, ...], lines: Sequence[Line], base: Sequence[Line] = ()) -> Row:
    """A row of the seeds that both have; of all seeds if there is no base."""
    seeds = {line["seed"] for line in lines}
    if base:
        seeds &= {line["seed"] for line in base}
    mine, theirs = (
        sorted((line for line in side if line["seed"] in seeds), key=lambda line: line["seed"])
        for side in (lines, base)
    )
    return Row(labels, mine, theirs)


def table(labels: Sequence[str], rows: Iterable[Row], columns: Sequence[Column]) -> str:
    """A Markdown table. labels: heads of the rows' labels."""
    heads = [*labels, *(head for head, _ in columns)]
    return markdown(heads, [[*row.labels, *(cell(row) for _, cell in columns)] for row in rows])


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells."""
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])


def of_arm(lines: Iterable[Line], arm: str, *tasks: str) -> list[Line]:
    """The lines of an arm; with `tasks` only the runs of exactly these."""
    return [line for line in lines if line["arm"] == arm and tasks in ((), tuple(line["tasks"]))]


# ------------------------------------------------------------------------------------------ measures


def main_metric(task: str) -> Measure:
    """The task's main metric on dev."""
    return lambda line: line["dev"][task][TASKS[task].main_metric]


def own_score(line: Line) -> float:
    """The main metric on dev of a run of one task."""
    (task,) = line["tasks"]
    return float(main_metric(task)(line))


def pairs(row: Row, measure: Measure) -> tuple[list[float], list[float]]:
    """The measure of the base's runs and of the row's, seed by seed."""
    return [measure(line) for line in row.base], [measure(line) for line in row.lines]


# --------------------------------------------------------------------------------------------- cells


def interval_text(first: Sequence[float], second: Sequence[float], digits: int, scale: float = 1) -> str:
    """Mean of second - first with its 95 % interval over pairs; empty for fewer than two pairs."""
    if len(first) < 2:
        return ""
    mean, low, high = (f"{scale * value:+.{digits}f}" for value in paired(first, second))
    return f"{mean} ({low} to {high})"


def mean(measure: Measure, digits: int = 3) -> Cell:
    """The mean over the row's runs; empty if it was not measured."""

    def cell(row: Row) -> str:
        values = [measure(line) for line in row.lines]
        return "" if None in values else f"{statistics.fmean(values):.{digits}f}"

    return cell


def gain(measure: Measure, digits: int = 4, scale: float = 1) -> Cell:
    """The row minus its base with the 95 % interval over seeds."""
    return lambda row: interval_text(*pairs(row, measure), digits, scale)


def cost(row: Row, passes: Measure) -> float:
    """Forward passes of a run of the row in units of its base; 1 without a base."""
    return passes(row.lines[0]) / passes(row.base[0]) if row.base else 1.0


def cost_cell(passes: Measure) -> Cell:
    """Cost in units of the base. Unlike seconds, no machine changes it."""
    return lambda row: f"{cost(row, passes):.2g}"


def point(row: Row, measure: Measure, passes: Measure) -> tuple[float, float, float, float]:
    """The row in a picture of gain against cost: cost, gain and its interval in hundredths of the measure."""
    mean, low, high = (100 * value for value in paired(*pairs(row, measure)))
    return cost(row, passes), mean, low, high


SEEDS: Column = ("seeds", lambda row: str(len(row.lines)))
MINUTES: Column = ("minutes", mean(lambda line: line["seconds"] / 60, digits=0))


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


def listed(values: Iterable[str]) -> str:
    """Each value once, in order."""
    return ", ".join(sorted(set(values)))


def provenance(lines: Sequence[Line]) -> str:
    """What a table must say of its lines: seeds, precision, commit, types of processors, thresholds."""
    return (
        f"{len(lines)} runs, seeds {ranges(line['seed'] for line in lines)}; precision"
        f" {listed(line['precision'] for line in lines)}; processors:"
        f" {listed(map(processor_type, lines))}; code of commit"
        f" {listed(line['commit'] for line in lines)}. Last step's weights; no threshold was fitted."
    )
