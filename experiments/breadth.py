"""Where does SMART earn its cost? From 250 rows of SST to 4,000, and on STS-B. Exploratory.

The steps of 32 rows were fixed beforehand by the size of the data: three passes over 1,000 and 4,000 rows.
250 rows got as many steps as 1,000, which are twelve passes, because three would be 24 steps. Every arm took
as many, except "plain, equal passes": it cost as many forward passes as both of SMART's terms. "Both terms,
teacher kept" is no training of its own: a run of "both terms" was scored twice, the second time with its
teacher's weights. Five seeds; a seed drew the rows, the same for all arms. 4,000 rows are unfinished: they
were stopped after two seeds, at commit 5371eee25c72. All of SST's rows are asked by `all_data.py`.
"""

from collections.abc import Sequence
from typing import Any

from experiments import tables
from experiments.pictures import Picture, gain_against_cost, looks_of
from experiments.tables import Finding, Line, Question, Row

TEACHER = "both terms, teacher kept"  # the runs of both terms, scored with the teacher's weights
# forward passes of a step. The clean pass and its backward pass are 3, R_s with one ascent step 5, with noise
# alone 3, D_Breg 1. FreeLB had K = 2, and its clean pass was no part of them
PASSES = {"plain": 3, "plain, equal passes": 3, "R3F": 6, "R-Drop": 6, "FreeLB": 10, "R_s alone": 8}
PASSES |= {"both terms": 9}
SIZES = [("sst", 250), ("sts", 250), ("sts", 1000), ("sst", 4000)]  # the cheapest first


def passes(line: Line) -> float:
    """Forward passes of a run."""
    return line["steps"] * PASSES[line["arm"].removesuffix(f", {line['train_rows']} rows")]


def rows_of(task: str, count: int, lines: Sequence[Line]) -> list[Row]:
    """Each arm with so many training rows of the task, beside plain."""
    found = {arm: tables.of_arm(lines, f"{arm}, {count} rows", task) for arm in PASSES}
    found[TEACHER] = [line | {"dev": {task: line["dev"][task]["teacher"]}} for line in found["both terms"]]
    bases = {arm: () if arm == "plain" else found["plain"] for arm in found}
    return [tables.beside((f"{task}, {count} rows", arm), found[arm], bases[arm]) for arm in found]


def shown(lines: Sequence[Line]) -> str:
    """Each size, each arm beside plain."""
    rows = [row for task, count in SIZES for row in rows_of(task, count, lines)]
    columns = (*tables.scores(tables.ANY_TASK), tables.cost_column(passes))
    return tables.table(("data", "arm"), rows, columns)


def fewest_labels() -> Finding:
    """Both terms with 250 rows of SST."""
    row = next(row for row in rows_of("sst", 250, QUESTION.lines()) if row.labels[1] == "both terms")
    return tables.finding("exploratory", "with 250 rows", row, passes)


def draw(figure: Any, lines: Sequence[Line]) -> None:
    """Gain over plain against cost: a panel for each size of the data that every arm was run on."""
    looks = looks_of([*list(PASSES)[1:], TEACHER])
    sizes = {size: rows_of(*size, lines)[1:] for size in sorted(SIZES)}
    complete = {size: rows for size, rows in sizes.items() if all(len(row.lines) > 1 for row in rows)}
    *panels, legend = figure.subplots(2, 2).flat
    for axes, ((task, count), rows) in zip(panels, complete.items(), strict=True):
        points = {row.labels[1]: tables.point(row, passes) for row in rows}
        axes.axhline(0, color="gray", linewidth=1)
        gain_against_cost(axes, points, looks, capsize=3)
        axes.set_title(f"{task}, {count} rows")
        axes.set_xlabel("cost, plain = 1")
        axes.set_ylabel("gain in points")
    legend.axis("off")
    legend.legend(*panels[0].get_legend_handles_labels(), loc="center", frameon=False)


SAID = "Gain over plain training against cost, a panel for each size of the data that all arms were run on"
QUESTION = Question("breadth", shown, (Picture("gain-against-cost-by-size", SAID, draw, height=6),))
