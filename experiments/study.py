"""The tables of a primary comparison: two sides that were tuned alike, their winners over paired seeds.

    <name>_tuning.jsonl      every setting of both sides, on seeds of their own
    <name>_winners.json      the setting of each side with the highest mean; committed before the comparison
    <name>_comparison.jsonl  the winners, then exploratory arms at their settings, on seeds 200 to 219

The rule was fixed before the comparison. A gain or a loss is claimed at p < .01 (two-sided paired permutation
over seeds). Else it is "no gain" if the 95 % interval over seeds lies within ±1 point, else "not decided".
`smart.py` and `unlabelled.py` are such studies. The code that ran them is that of commit 82d6767 (tag
`evidence-1`), in this file. Those of `tuned.py` have a stricter rule, and the same tables.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments import tables
from experiments.inference import exact_p, holm, verdict
from experiments.pictures import Picture, gain_against_cost, looks_of
from experiments.tables import CLASSES, Finding, Line, Question, Row, of

PAIRS = 20  # of runs that a verdict needs, with the same seed


@dataclass(frozen=True)
class Study:
    """The two questions of a comparison.

    title: of the picture, data set and rows. given: the same in a sentence. judged: the arm that has a
    verdict; all other arms but plain are exploratory. of_a_step: by arm the forward passes of a step.
    measures: by head of a column. suffixes: behind the names of arms; an arm is compared with the plain of
    its suffix. secondary: heads of the measures that have a p by Holm; with them the rule is `tuned.py`'s.
    """

    name: str
    title: str
    given: str
    judged: str
    of_a_step: Mapping[str, float]
    measures: Mapping[str, str] = field(default_factory=lambda: CLASSES)
    suffixes: tuple[str, ...] = ("",)
    secondary: tuple[str, ...] = ()
    trainer: str = tables.OLD_TRAINER

    @property
    def tuning(self) -> Question:
        """What was run to tune both sides."""
        said = "Accuracy and NLL on the tuning rows against passes, a curve for each side and learning rate"
        pictures = (Picture(f"{self.name}-by-passes", said, draw_passes),) if self.secondary else ()
        return Question(
            f"{self.name}_tuning", self.tuning_table, pictures, program=self.name, trainer=self.trainer
        )

    @property
    def comparison(self) -> Question:
        """What was run to compare the winners."""
        said = "Gain in dev accuracy over plain training, against cost in forward passes, with 95 % intervals"
        picture = Picture(f"{self.name}-gain-against-cost", said, self.draw)
        return Question(
            f"{self.name}_comparison",
            self.comparison_table,
            (picture,),
            program=self.name,
            trainer=self.trainer,
        )

    @property
    def first_three(self) -> Mapping[str, str]:
        """Accuracy, macro F1 and NLL."""
        return {head: self.measures[head] for head in CLASSES}

    def tuning_table(self, lines: Sequence[Line]) -> str:
        """Every setting that was tried, the best of a side first."""
        rows = []
        for arm in sorted({line["arm"] for line in lines}):
            side = "plain" if arm.startswith("plain") else self.bare(self.judged)
            rows.append(tables.beside((side, arm), tables.of_arm(lines, arm)))
        accuracy = of("score")
        rows.sort(key=lambda row: (row.labels[0] != "plain", -statistics.fmean(map(accuracy, row.lines))))
        return tables.table(("side", "setting"), rows, tables.scores(self.first_three))

    def comparison_table(self, lines: Sequence[Line]) -> str:
        """Each arm beside plain."""
        rows = self.rows(lines)
        columns = (
            *tables.scores(self.measures),
            ("accuracy over seeds and rows", self.interval_over_rows),
            tables.cost_column(self.passes),
            ("verdict", self.verdict),
        )
        parts = [tables.table(("arm",), rows, columns)]
        for row in rows if self.secondary else ():
            if row.labels == (self.judged,):
                values = holm(
                    [exact_p(*tables.pairs(row, of(self.measures[head]))) for head in self.secondary]
                )
                said = (f"{head} {p:.4f}" for head, p in zip(self.secondary, values, strict=True))
                parts.append(f"{self.judged}, secondary measures, p by Holm: {', '.join(said)}.")
        return "\n\n".join(parts)

    def rows(self, lines: Sequence[Line]) -> list[Row]:
        """Each arm that has lines beside plain over the seeds that both have."""
        rows = []
        for suffix in self.suffixes:
            plain = tables.of_arm(lines, "plain" + suffix)
            for arm in self.of_a_step:
                if mine := tables.of_arm(lines, arm + suffix):
                    rows.append(tables.beside((arm + suffix,), mine, () if arm == "plain" else plain))
        return rows

    def bare(self, arm: str) -> str:
        """The arm's name without its suffix."""
        return next(name for name in self.of_a_step for suffix in self.suffixes if name + suffix == arm)

    def passes(self, line: Line) -> float:
        """Forward passes of a run."""
        return float(line["steps"] * self.of_a_step[self.bare(line["arm"])])

    def interval(self, row: Row) -> tuple[float, float]:
        """95 % interval of the gain in accuracy over seeds and dev rows."""
        return tables.over_rows(self.comparison, row)

    def interval_over_rows(self, row: Row) -> str:
        """`interval` as a cell."""
        return "{:+.4f} to {:+.4f}".format(*self.interval(row)) if row.base else ""

    def verdict(self, row: Row) -> str:
        """By the rule; only the judged side has one, when all of its pairs are there."""
        if row.labels == (self.judged,):
            if len(row.lines) < PAIRS:
                return "unfinished"
            over_rows = self.interval(row) if self.secondary else None
            return verdict(*tables.pairs(row, of("score")), over_rows)
        return "exploratory" if row.base else ""

    def draw(self, figure: Any, lines: Sequence[Line]) -> None:
        """Gain over plain against cost, each with its 95 % interval over seeds."""
        rows = [row for row in self.rows(lines) if row.base]
        axes = figure.subplots()
        axes.axhline(0, color="gray", linewidth=1)
        axes.plot([1], [0], "D", color="gray", label="plain, tuned")
        points = {row.labels[0]: tables.point(row, self.passes) for row in rows}
        gain_against_cost(axes, points, looks_of(points))
        axes.set_xlabel("cost in forward passes; plain, tuned = 1")
        axes.set_ylabel("gain in dev accuracy, points")
        seeds = " or ".join(dict.fromkeys(str(len(row.lines)) for row in rows))
        axes.set_title(f"{self.title}: 95 % intervals over {seeds} seeds")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)

    def finding(self, arm: str = "") -> Finding | None:
        """What the comparison says of the judged arm, or of another; None while it is unfinished."""
        for row in self.rows(self.comparison.lines()):
            if row.base and row.labels == (arm or self.judged,):
                word = self.verdict(row).split(" (")[0]
                found = tables.finding(word, self.given, row, self.passes, self.first_three)
                return None if word == "unfinished" else found
        return None


def draw_passes(figure: Any, lines: Sequence[Line]) -> None:
    """Mean accuracy and NLL against passes: a curve for each side and learning rate."""
    curves: dict[str, dict[int, list[Line]]] = {}
    for line in lines:
        side, passes, _, _, rate = line["arm"].split()  # "SMART 2 passes lr 1e-4"
        curves.setdefault(f"{side}, {rate}", {}).setdefault(int(passes), []).append(line)
    looks = looks_of(sorted(curves))
    for axes, (head, name) in zip(
        figure.subplots(1, 2), {"accuracy": "score", "NLL": "nll"}.items(), strict=True
    ):
        for label, (colour, marker) in looks.items():
            places = sorted(curves[label])
            means = [statistics.fmean(map(of(name), curves[label][place])) for place in places]
            axes.plot(places, means, "-" + marker, color=colour, label=label)
        axes.set_title(f"{head} on the tuning rows")
        axes.set_xlabel("passes")
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(curves), frameon=False, fontsize=9)
