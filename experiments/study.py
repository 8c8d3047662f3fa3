"""A primary comparison: two sides that were tuned alike, and their winners compared over paired seeds.

    <name>_tuning.jsonl      every setting of both sides, on seeds of their own
    <name>_winners.json      the setting of each side with the highest mean; committed before the comparison
    <name>_comparison.jsonl  the winners, then exploratory arms at their settings, on seeds 200 to 219

The rule was fixed before the comparison. A gain or a loss is claimed at p < .01 (two-sided paired permutation
over seeds). Else it is "no gain" if the 95 % interval over seeds lies within ±1 point, else "not decided".
`smart.py` and `unlabelled.py` are such studies. The code that ran them is that of commit 82d6767 (tag
`evidence-1`), in this file.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments import tables
from experiments.inference import bootstrap, paired, verdict
from experiments.pictures import Picture, gain_against_cost, looks_of
from experiments.tables import Line, Question, Row, own_score

SECONDS = tables.mean(lambda line: line["seconds"], digits=0)


@dataclass(frozen=True)
class Study:
    """The two questions of a comparison.

    title: of the picture, data set and rows. given: the same in a sentence. judged: the arm that has a
    verdict; all other arms but plain are exploratory. of_a_step: by arm the forward passes of a step.
    """

    name: str
    title: str
    given: str
    judged: str
    of_a_step: dict[str, float]

    @property
    def tuning(self) -> Question:
        """What was run to tune both sides."""
        return Question(f"{self.name}_tuning", self.tuning_table)

    @property
    def comparison(self) -> Question:
        """What was run to compare the winners."""
        said = "Gain in dev accuracy over plain training, against cost in forward passes, with 95 % intervals"
        picture = Picture(f"{self.name}-gain-against-cost", said, self.draw)
        return Question(f"{self.name}_comparison", self.comparison_table, (picture,))

    def tuning_table(self, lines: Sequence[Line]) -> str:
        """Every setting that was tried, the best of a side first."""
        rows = []
        for arm in sorted({line["arm"] for line in lines}):
            side = "plain" if arm.startswith("plain") else self.judged
            rows.append(tables.beside((side, arm), tables.of_arm(lines, arm)))
        rows.sort(key=lambda row: (row.labels[0] != "plain", -statistics.fmean(map(own_score, row.lines))))
        columns = (tables.SEEDS, ("accuracy", tables.mean(own_score, 4)))
        return tables.table(("side", "setting"), rows, columns)

    def comparison_table(self, lines: Sequence[Line]) -> str:
        """Each arm beside plain."""
        columns = (
            tables.SEEDS,
            ("accuracy", tables.mean(own_score, 4)),
            ("gain (95 % over seeds)", tables.gain(own_score)),
            ("over seeds and dev rows", self.interval_over_rows),
            ("cost", tables.cost_cell(self.passes)),
            ("seconds", self.seconds),
            ("verdict", self.verdict),
        )
        return tables.table(("arm",), self.rows(lines), columns)

    def rows(self, lines: Sequence[Line]) -> list[Row]:
        """Each arm beside plain over the seeds that both have."""
        plain = tables.of_arm(lines, "plain")
        return [
            tables.beside((arm,), tables.of_arm(lines, arm), () if arm == "plain" else plain)
            for arm in self.of_a_step
        ]

    def passes(self, line: Line) -> float:
        """Forward passes of a run."""
        return line["steps"] * self.of_a_step[line["arm"]]

    def interval_over_rows(self, row: Row) -> str:
        """The interval of the gain over seeds and dev rows, from the predictions."""
        if not row.base:
            return ""
        low, high = bootstrap(*(self.right_rows(lines) for lines in (row.base, row.lines)))
        return f"{low:+.4f} to {high:+.4f}"

    def right_rows(self, lines: Sequence[Line]) -> np.ndarray:
        """(seeds, dev rows): 1 where the prediction of a run is right."""
        found = [self.comparison.load_predictions(line, line["tasks"][0]) for line in lines]
        return np.array([predicted == labels for predicted, labels in found], dtype=np.float64)

    def seconds(self, row: Row) -> str:
        """Seconds of the two sides alone: they ran in turns."""
        return SECONDS(row) if row.labels[0] in ("plain", self.judged) else ""

    def verdict(self, row: Row) -> str:
        """By the rule; only the judged side has one."""
        if row.labels[0] == self.judged:
            return verdict(*tables.pairs(row, own_score))
        return "exploratory" if row.base else ""

    def draw(self, figure: Any, lines: Sequence[Line]) -> None:
        """Gain over plain against cost, each with its 95 % interval over seeds."""
        _, *rows = self.rows(lines)
        axes = figure.subplots()
        axes.axhline(0, color="gray", linewidth=1)
        axes.plot([1], [0], "D", color="gray", label="plain, tuned")
        points = {row.labels[0]: tables.point(row, own_score, self.passes) for row in rows}
        gain_against_cost(axes, points, looks_of(points))
        axes.set_xlabel("cost in forward passes; plain, tuned = 1")
        axes.set_ylabel("gain in dev accuracy, points")
        axes.set_title(f"{self.title}: 95 % intervals over {len(rows[0].lines)} seeds")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)

    def answer(self) -> str:
        """What the comparison says, the verdict first."""
        row = next(row for row in self.rows(self.comparison.lines()) if row.labels[0] == self.judged)
        found = self.verdict(row).split(" (")[0].capitalize()
        points, low, high = (f"{100 * value:+.2f}" for value in paired(*tables.pairs(row, own_score)))
        plain, ours = map(statistics.fmean, tables.pairs(row, lambda line: line["seconds"]))
        within = f"95 % over {len(row.lines)} seeds: {low} to {high}"
        return f"**{found}** {self.given}: {points} points ({within}), in {ours / plain:.1f} times the time."
