"""Does bf16 cost quality? Runs in bf16 beside runs in fp32, equal in everything else.

sst and sts alone with 1,000 training rows, plain and SMART, ten seeds; 96 steps of 32 rows. Then one pass
over all three tasks, interleaved, with 16,000 Quora rows: 801 steps, once. Finished at commit f9926f1100f2.
"""

import statistics
from collections.abc import Sequence

from experiments import tables
from experiments.inference import over_rows
from experiments.tables import Cell, Line, Measure, Question, Row
from tasks import TASKS

ALL_TASKS = ("sst", "para", "sts")


def row_of(lines: Sequence[Line], arm: str, task: str, *trained: str) -> Row:
    """The runs of an arm in bf16 beside those in fp32."""
    exact, rounded = (tables.of_arm(lines, f"{arm} {name}", *trained) for name in ("fp32", "bf16"))
    what = "all three" if len(trained) > 1 else f"{task} alone"
    return tables.beside((f"{arm}, {what}", task), rounded, exact)


def score(row: Row) -> Measure:
    """The main metric of the row's task."""
    return tables.main_metric(row.labels[1])


def level(side: int) -> Cell:
    """The mean in fp32 (0) or bf16 (1)."""
    return lambda row: f"{statistics.fmean(tables.pairs(row, score(row))[side]):.4f}"


def difference(row: Row, measure: Measure) -> str:
    """bf16 - fp32 with its interval over seeds; of one seed the difference alone."""
    exact, rounded = tables.pairs(row, measure)
    return tables.interval_text(exact, rounded, 4) or f"{rounded[0] - exact[0]:+.4f}"


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


def loss_difference(row: Row) -> str:
    """Of the dev loss."""
    return difference(row, lambda line: line["dev"][row.labels[1]]["loss"])


def shown(lines: Sequence[Line]) -> str:
    """The single tasks with both arms, then the run of all three by task."""
    rows = [row_of(lines, arm, task, task) for task in ("sst", "sts") for arm in ("plain", "SMART")]
    rows += [row_of(lines, "plain", task, *ALL_TASKS) for task in ALL_TASKS]
    columns = (
        ("runs", lambda row: str(len(row.lines))),
        ("fp32", level(0)),
        ("bf16", level(1)),
        ("bf16 - fp32 (95 % interval)", score_difference),
        ("dev loss, bf16 - fp32", loss_difference),
    )
    return tables.table(("training", "task"), rows, columns)


QUESTION = Question("precision", shown)
