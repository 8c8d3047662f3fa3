"""Does bf16 cost quality? Runs in bf16 beside runs in fp32, equal in everything else.

sst and sts alone with 1,000 training rows, plain and SMART, ten seeds; 96 steps of 32 rows. Then one pass
over all three tasks, interleaved, with 16,000 Quora rows: 801 steps, once. Finished at commit f9926f1100f2.
"""

from collections.abc import Sequence

from experiments import tables
from experiments.tables import Line, Question, Row

ALL_TASKS = ("sst", "para", "sts")


def row_of(lines: Sequence[Line], arm: str, task: str, *trained: str) -> Row:
    """The runs of an arm in bf16 beside those in fp32."""
    exact, rounded = (
        tables.narrowed(tables.of_arm(lines, f"{arm} {name}", *trained), task) for name in ("fp32", "bf16")
    )
    what = "all three" if len(trained) > 1 else f"{task} alone"
    return tables.beside((f"{arm}, {what}", task), rounded, exact)


def shown(lines: Sequence[Line]) -> str:
    """The single tasks with both arms, then the run of all three by task: bf16, and its gain over fp32."""
    rows = [row_of(lines, arm, task, task) for task in ("sst", "sts") for arm in ("plain", "SMART")]
    rows += [row_of(lines, "plain", task, *ALL_TASKS) for task in ALL_TASKS]
    return tables.table(("bf16, less fp32", "task"), rows, tables.scores(tables.ANY_TASK))


QUESTION = Question("precision", shown)
