"""Questions, their lines, and the tables that are made from the lines.

    lines ─ a question's `shown` ─> rows: whose runs, beside whose ─ columns: a cell for each row ─> Markdown

A column is (head, cell). `scores` makes the columns of most tables: each measure's mean over seeds, beside it
the difference from the base with its 95 % interval.
"""

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.inference import bootstrap, paired
from experiments.pictures import Picture, picture_markdown, save
from tasks import TASKS

HERE = Path(__file__).resolve().parent
NAMES = {"sst": "SST", "para": "Quora", "sts": "STS"}  # in the order of the tables
# heads of columns and names of measures; "score" is the main metric, the loss of sts its squared error
CLASSES = {"accuracy": "score", "macro F1": "macro_f1", "NLL": "loss"}
ANY_TASK = {"score": "score", "macro F1": "macro_f1", "loss": "loss"}
OLD_TRAINER = (
    "Learning rate 1e-4 where no row says another, the same for the heads (today 2e-4, heads 3e-3); STS by a"
    " head, where no row says cosine."
)
Line = dict[str, Any]  # what is known of a run
Measure = Callable[[Line], Any]  # one number of a run; None if it was not measured


@dataclass(frozen=True)
class Question:
    """The lines of a question and the predictions of its runs, in `folder`, and what the page shows of them.

    shown: the tables in Markdown, from all lines. program: the module that runs it. trainer: the learning
    rates of its runs.
    """

    name: str
    shown: Callable[[Sequence[Line]], str] | None = None
    pictures: tuple[Picture, ...] = ()
    folder: Path = HERE
    program: str = ""
    trainer: str = OLD_TRAINER

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
        """Dev predictions and labels (rows,) of a line's run, if need be from its logits."""
        with np.load(self.predictions(line["name"])) as arrays:
            predicted = arrays[task] if task in arrays else arrays[f"{task} dev"].argmax(1)
            return predicted, arrays[f"{task} labels"]

    def page(self) -> str:
        """For the page of experiments: the tables, their provenance, the pictures."""
        lines = self.lines()
        if not lines:
            return f"Not run yet: `python -m experiments.{self.program} --data_dir path/to/data`"
        parts = [self.shown(lines)] if self.shown else []
        if "commit" in lines[0]:
            parts.append(f"{provenance(lines)} {self.trainer}")
        return "\n\n".join([*parts, *map(picture_markdown, self.pictures)])

    def plot(self) -> list[Path]:
        """Draw the pictures that need only the lines, if there are any. Returns their paths."""
        lines = self.lines()
        paths = []
        for picture in self.pictures if lines else ():
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


def narrowed(lines: Iterable[Line], task: str) -> list[Line]:
    """The lines as if their runs had this task alone."""
    return [line | {"tasks": [task], "dev": {task: line["dev"][task]}} for line in lines]


# ------------------------------------------------------------------------------------------ measures


def of(name: str, task: str | None = None) -> Measure:
    """What a line says on dev of a task, by default the first of the run; "score" is the main metric."""

    def measure(line: Line) -> Any:
        key = task or line["tasks"][0]
        return line["dev"][key].get(TASKS[key].main_metric if name == "score" else name)

    return measure


def pairs(row: Row, measure: Measure) -> tuple[list[float], list[float]]:
    """The measure of the base's runs and of the row's, seed by seed, where it was measured."""
    sides = [[measure(line) for line in side] for side in (row.base or row.lines, row.lines)]
    known = [pair for pair in zip(*sides, strict=True) if None not in pair]
    return [first for first, _ in known if row.base], [second for _, second in known]


# --------------------------------------------------------------------------------------------- cells


def interval_text(first: Sequence[float], second: Sequence[float], digits: int, scale: float = 1) -> str:
    """Mean of second - first with its 95 % interval over pairs; of one pair the difference alone."""
    mean, low, high = (f"{scale * value:+.{digits}f}" for value in paired(first, second))
    return f"{mean} ({low} to {high})" if len(first) > 1 else mean


def level(measure: Measure, digits: int = 3) -> Cell:
    """The mean over the row's runs; empty if it was not measured."""

    def cell(row: Row) -> str:
        _, values = pairs(row._replace(base=()), measure)
        return f"{statistics.fmean(values):.{digits}f}" if values else ""

    return cell


def mean(measure: Measure, digits: int = 3) -> Cell:
    """The mean; of a row with a base also the gain with its 95 % interval over seeds."""

    def cell(row: Row) -> str:
        first, second = pairs(row, measure)
        gain = f", {interval_text(first, second, digits)}" if first else ""
        return level(measure, digits)(row) + gain

    return cell


def scores(names: Mapping[str, str] = CLASSES, digits: int = 4) -> list[Column]:
    """The number of seeds and a column for each measure."""
    return [SEEDS, *((head, mean(of(name), digits)) for head, name in names.items())]


def compact(task: str) -> Cell:
    """Of one of a run's tasks score / macro F1 / loss; with a base the score's difference in points."""

    def cell(row: Row) -> str:
        found = (level(of(name, task))(row) for name in ANY_TASK.values())
        first, second = pairs(row, of("score", task))
        gain = 100 * (statistics.fmean(second) - statistics.fmean(first)) if first else 0
        return " / ".join(filter(None, found)) + (f" ({gain:+.1f})" if first else "")

    return cell


def over_rows(question: Question, row: Row) -> tuple[float, float]:
    """95 % interval of the gain in accuracy over seeds and dev rows, from the predictions of a row's runs."""
    right = []
    for side in (row.base, row.lines):
        found = [question.load_predictions(line, line["tasks"][0]) for line in side]
        right.append(np.array([predicted == labels for predicted, labels in found], dtype=np.float64))
    return bootstrap(*right)


def cost(row: Row, passes: Measure) -> float:
    """Forward passes of a run of the row in units of its base; 1 without a base."""
    return passes(row.lines[0]) / passes(row.base[0]) if row.base else 1.0


def cost_column(passes: Measure) -> Column:
    """Cost in units of the base. Unlike seconds, no machine changes it."""
    return "cost", lambda row: f"{cost(row, passes):.2g}"


def point(row: Row, passes: Measure) -> tuple[float, float, float, float]:
    """The row in a picture of gain against cost: cost, gain and its interval in hundredths of the score."""
    mean, low, high = (100 * value for value in paired(*pairs(row, of("score"))))
    return cost(row, passes), mean, low, high


SEEDS: Column = ("seeds", lambda row: str(len(row.lines)))
MINUTES: Column = ("minutes", level(lambda line: line["seconds"] / 60, digits=0))


class Finding(NamedTuple):
    """What a question says of SMART beside plain.

    verdict: the rule's word, or "exploratory". given: where it holds, in a sentence. gains: by head of a
    column. price: in forward passes of plain.
    """

    verdict: str
    given: str
    gains: Mapping[str, str]
    price: str

    def short(self) -> str:
        """The first gain alone."""
        return f"{self.verdict} {self.given} {next(iter(self.gains.values())).split(' (')[0]}"

    def sentence(self) -> str:
        """The verdict first."""
        gains = ", ".join(f"{head.removeprefix('macro ')} {gain}" for head, gain in self.gains.items())
        return f"**{self.verdict.capitalize()}** {self.given}: {gains}, cost ×{self.price}"


def finding(
    verdict: str, given: str, row: Row, passes: Measure, names: Mapping[str, str] = CLASSES
) -> Finding:
    """The gains of a row: the first in points with its interval over seeds, others without, NLL as it is."""
    gains: dict[str, str] = {}
    for head, name in names.items():
        digits, scale = (3, 1) if head == "NLL" else (2, 100)
        text = interval_text(*pairs(row, of(name)), digits, scale)
        gains[head] = text.split(" (")[0] if gains else text
    return Finding(verdict, given, gains, f"{cost(row, passes):.2g}")


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
    """What a table must say of its lines: time, seeds, precision, commit, types of processors, thresholds."""
    hours = sum(line["seconds"] for line in lines) / 3600
    return (
        f"{len(lines)} runs, {hours:.1f} hours of training on one core, seeds"
        f" {ranges(line['seed'] for line in lines)}; precision"
        f" {listed(line['precision'] for line in lines)}; processors:"
        f" {listed(map(processor_type, lines))}; code of commit"
        f" {listed(line['commit'] for line in lines)}. Last step's weights; no threshold was fitted."
    )
