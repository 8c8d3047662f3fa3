"""Does bf16 cost quality? Runs in bf16 beside runs in fp32, equal in everything else.

sst and sts alone with 1,000 training rows, plain and SMART, ten seeds; 96 steps of 32 rows. Then one pass
over all three tasks, interleaved, with 16,000 Quora rows: 801 steps, once. Finished at commit f9926f1100f2.
"""

from collections.abc import Sequence

from experiments.inference import over_rows
from experiments.runner import Question
from experiments.tables import (
    SEEDS,
    Column,
    Line,
    Measure,
    Row,
    Table,
    interval_text,
    main_metric,
    of_arm,
    pairs,
)
from tasks import TASKS

ALL_TASKS = ("sst", "para", "sts")


def rows(lines: Sequence[Line]) -> list[Row]:
    """bf16 beside fp32: the single tasks with both arms, then the run of all three by task."""

    def row(arm: str, task: str, trained: tuple[str, ...]) -> Row:
        what = "all three" if len(trained) > 1 else f"{task} alone"
        exact, rounded = (of_arm(lines, f"{arm} {name}", *trained) for name in ("fp32", "bf16"))
        return Row((f"{arm}, {what}", task), rounded, exact)

    alone = [row(arm, task, (task,)) for task in ("sst", "sts") for arm in ("plain", "SMART")]
    return alone + [row("plain", task, ALL_TASKS) for task in ALL_TASKS]


def score(row: Row) -> Measure:
    """The main metric of the row's task."""
    return main_metric(row.labels[1])


def loss(row: Row) -> Measure:
    """The dev loss of the row's task."""
    return lambda line: line["dev"][row.labels[1]]["loss"]


def level(place: int) -> Column:
    """The mean in fp32 (0) or bf16 (1)."""

    def cell(row: Row) -> str:
        values = pairs(row, score(row))[place]
        return f"{sum(values) / len(values):.4f}"

    return Column(("fp32", "bf16")[place], cell)


def difference(row: Row, measure: Measure) -> str:
    """bf16 - fp32 with its interval over seeds; of one seed the difference alone."""
    exact, rounded = pairs(row, measure)
    return interval_text(exact, rounded, 4) or f"{rounded[0] - exact[0]:+.4f}"


def score_difference(row: Row) -> str:
    """That of the one run of all tasks has its interval over dev rows (bootstrap)."""
    text = difference(row, score(row))
    if len(row.lines) > 1:
        return text
    task = TASKS[row.labels[1]]
    exact, labels = QUESTION.load_predictions(row.base[0], task.name)
    rounded, _ = QUESTION.load_predictions(row.lines[0], task.name)
    low, high = over_rows(task.metrics[task.main_metric], exact, rounded, labels)
    return f"{text} ({low:+.4f} to {high:+.4f}, over dev rows)"


COLUMNS = (
    Column("runs", SEEDS.cell),
    level(0),
    level(1),
    Column("bf16 - fp32 (95 % interval)", score_difference),
    Column("dev loss, bf16 - fp32", lambda row: difference(row, loss(row))),
)
QUESTION = Question("precision", (Table(("training", "task"), rows, COLUMNS),))
