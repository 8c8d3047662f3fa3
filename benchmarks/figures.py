"""The lines of the table: what each compares, in which unit, and the goal of its ratio. Knows no model.

A new figure is one record. The goals depend on the processor by the precision that the program takes on it by
default: bf16 on a processor with instructions for it, else fp32 (`choose_precision` in support/devices.py).
"""

from typing import NamedTuple

from benchmarks.measure import Goal

# The columns. Ours computes in the program's default precision in both.
DEFAULTS = "at defaults"  # the peer as it comes, in fp32
EQUAL = "at equal precision"  # the peer under the same autocast type as ours
NEITHER = "-"  # a figure that no precision touches, or that is in fp32 on both sides


class Figure(NamedTuple):
    """One line of the table. It compares speeds (work / s) or times (s / work).

    bf16, fp32: column -> goal of the ratio on processors with that default. A column without one has none.
    """

    compares: str
    unit: str
    bf16: dict[str, float]
    fp32: dict[str, float]

    def goal(self, column: str, precision: str) -> Goal:
        """The goal in this column where the program computes in `precision` by default."""
        goals = {"bf16": self.bf16, "fp32": self.fp32}.get(precision, {})
        return Goal(self.compares, goals.get(column))


def anywhere(compares: str, unit: str, column: str, bound: float) -> Figure:
    """A figure with the same goal on every processor."""
    return Figure(compares, unit, {column: bound}, {column: bound})


FIGURES = {
    "plain training: sst": Figure("speed", "examples/s", {}, {}),
    "plain training: para": Figure("speed", "examples/s", {}, {}),
    "plain training: sts": Figure("speed", "examples/s", {}, {}),
    "plain training: all three": Figure("speed", "examples/s", {DEFAULTS: 4.1, EQUAL: 2.6}, {DEFAULTS: 2.5}),
    "SMART training: sst": Figure("speed", "examples/s", {}, {}),
    "SMART training: para": Figure("speed", "examples/s", {}, {}),
    "SMART training: sts": Figure("speed", "examples/s", {}, {}),
    "SMART training: all three": Figure("speed", "examples/s", {DEFAULTS: 4.5, EQUAL: 2.9}, {DEFAULTS: 3.0}),
    "plain step in fp32, dense batch": anywhere("speed", "examples/s", NEITHER, 1.05),
    "plain step / the same in fp32": Figure("speed", "examples/s", {DEFAULTS: 1.6}, {}),
    "SMART step / the same in fp32": Figure("speed", "examples/s", {DEFAULTS: 1.6}, {}),
    "SMART / plain step": Figure("time", "s/step", {DEFAULTS: 2.8}, {DEFAULTS: 2.75}),
    "SMART + Bregman / plain step": anywhere("time", "s/step", DEFAULTS, 3.1),
    "useful arithmetic / bare products": Figure("speed", "GFLOP/s", {DEFAULTS: 0.58}, {DEFAULTS: 0.60}),
    "useful SMART arithmetic / bare products": Figure("speed", "GFLOP/s", {DEFAULTS: 0.58}, {DEFAULTS: 0.60}),
    "prediction: sst, a transformers loop": Figure(
        "speed", "rows/s", {DEFAULTS: 1.8, EQUAL: 1.1}, {DEFAULTS: 1.2}
    ),
    "prediction: para, a transformers loop": Figure(
        "speed", "rows/s", {DEFAULTS: 1.8, EQUAL: 1.1}, {DEFAULTS: 1.2}
    ),
    "prediction: sst, sentence-transformers": Figure("speed", "rows/s", {}, {DEFAULTS: 1.2}),
    "prediction: para, sentence-transformers": Figure("speed", "rows/s", {}, {DEFAULTS: 1.2}),
    "AdamW step, 22.7 M parameters": anywhere("time", "s/step", NEITHER, 1.2),
    "reading and tokenising Quora": anywhere("time", "s", NEITHER, 1.1),
    "start to first step, SST": anywhere("time", "s", NEITHER, 2.0),
}
