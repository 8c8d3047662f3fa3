"""Where does SMART earn its cost? From 250 rows of SST to 4,000, and on STS-B. Exploratory.

The steps of 32 rows were fixed beforehand by the size of the data: three passes over 1,000 and 4,000 rows.
250 rows got as many steps as 1,000, which are twelve passes, because three would be 24 steps. Every arm took
as many, except "plain, equal passes": it cost as many forward passes as both of SMART's terms. "Both terms,
teacher kept" is no training of its own: a run of "both terms" was scored twice, the second time with its
teacher's weights. Five seeds; a seed drew the rows, the same for all arms. 4,000 rows were stopped after two
seeds, at commit 5371eee25c72.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.pictures import Picture, gain_against_cost, looks_of
from experiments.runner import Question
from experiments.study import beside, counted, point_of
from experiments.tables import SEEDS, Line, Row, Table, cost_column, gain, mean, of_arm, own_score

TEACHER = "both terms, teacher kept"  # the runs of both terms, scored with the teacher's weights
# forward passes of a step. The clean pass and its backward pass are 3, R_s with one ascent step 5, with noise
# alone 3, D_Breg 1. FreeLB had K = 2, and its clean pass was no part of them
PASSES = {"plain": 3, "plain, equal passes": 3, "R3F": 6, "R-Drop": 6, "FreeLB": 10, "R_s alone": 8}
PASSES |= {"both terms": 9}


class Size(NamedTuple):
    """A task with so many training rows."""

    task: str
    rows: int

    @property
    def name(self) -> str:
        """As the tables call it."""
        return f"{self.task}, {self.rows} rows"


SIZES = [Size("sst", 250), Size("sts", 250), Size("sts", 1000), Size("sst", 4000)]


def rows_of(size: Size, lines: Sequence[Line]) -> list[Row]:
    """Each arm beside plain over the seeds that both have."""
    found = {arm: of_arm(lines, f"{arm}, {size.rows} rows", size.task) for arm in PASSES}
    found[TEACHER] = [
        line | {"dev": {size.task: line["dev"][size.task]["teacher"]}} for line in found["both terms"]
    ]
    plain = found["plain"]
    return [beside((size.name, arm), mine, () if arm == "plain" else plain) for arm, mine in found.items()]


def rows(lines: Sequence[Line]) -> list[Row]:
    """The cheapest size first."""
    return [row for size in SIZES for row in rows_of(size, lines)]


PASSES_OF = counted({f"{arm}, {size.rows} rows": passes for size in SIZES for arm, passes in PASSES.items()})
COLUMNS = (
    SEEDS,
    mean("score", own_score, digits=4),
    gain("gain in points (95 % over seeds)", own_score, digits=2, scale=100),
    cost_column(PASSES_OF),
)


def draw(figure: Any, lines: Sequence[Line]) -> None:
    """Gain over plain against cost: a row of panels for each task, a panel for each size."""
    looks = looks_of([*list(PASSES)[1:], TEACHER])
    labels: dict[str, Any] = {}
    for of_task, task in zip(figure.subplots(2, 2), ("sst", "sts"), strict=True):
        of_task[0].set_ylabel("gain in points")
        for axes, size in zip(of_task, [size for size in SIZES if size.task == task], strict=True):
            axes.set_title(size.name)
            axes.axhline(0, color="gray", linewidth=1)
            axes.set_xlabel("cost, plain = 1")
            shown = [row for row in rows_of(size, lines) if row.base and len(row.lines) > 1]
            points = [point_of(row.labels[1], row, own_score, PASSES_OF) for row in shown]
            gain_against_cost(axes, points, looks, capsize=3)
            handles, names = axes.get_legend_handles_labels()
            labels |= dict(zip(names, handles, strict=True))
    figure.legend(labels.values(), labels, loc="outside right center", frameon=False, fontsize=9)


QUESTION = Question(
    "breadth",
    (Table(("data", "arm"), rows, COLUMNS),),
    (
        Picture(
            "gain-against-cost-by-size",
            "Gain over plain training against cost in forward passes, a panel for each size of the data",
            draw,
            height=6,
        ),
    ),
)
