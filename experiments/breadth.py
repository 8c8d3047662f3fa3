"""Where does SMART earn its cost? From 250 rows to all of SST, and on STS-B. Exploratory.

    python -m experiments.breadth --data_dir path/to/data    # runs what has no line yet, about 9 hours
    python -m experiments.breadth --table
    python -m experiments.breadth --plot                     # gain against cost

The steps of 32 rows are fixed beforehand by the size of the data: three passes over 1,000 and 4,000 rows,
two over all. 250 rows get as many steps as 1,000, which are twelve passes, because three would be 24 steps.
Every arm takes as many, except "plain, equal passes": it costs as many forward passes as both of SMART's
terms. "Both terms, teacher kept" is no training of its own: a run of "both terms" is scored twice, the second
time with its teacher's weights. Five seeds; a seed draws the rows, the same for all arms.

About 17 hours of one core in bf16: 4 for the three small sizes, then 5 and 8 for SST.
"""

import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import mixing, pictures
from experiments.inference import paired
from experiments.runner import HERE, Line, Question, Run, dev_outcome, main_of, markdown, provenance
from experiments.smart import smart
from experiments.study import PRECISION, passes
from support.errors import UserError
from tasks import TASKS

PICTURE = "gain-against-cost-by-size"
SEEDS = range(400, 405)
EQUAL = "plain, equal passes"
BOTH = "both terms"
KEPT = "both terms, teacher kept"  # the runs of BOTH, scored with the teacher's weights
# the largest ε of the first comparison's tuning: R_s is far above the rounding of bf16 there
SMART = smart(weight=1, epsilon=0.04).flags
ARMS: dict[str, tuple[str, ...]] = {
    "plain": PRECISION,
    EQUAL: PRECISION,
    "R3F": (*SMART, "--smart_steps", "0", "--smart_noise_var", "0.0016", "--bregman_weight", "0"),
    "R-Drop": ("--rdrop_weight", "1", *PRECISION),
    "FreeLB": (*mixing.ARMS["FreeLB"], *PRECISION),
    "R_s alone": (*SMART, "--bregman_weight", "0"),
    BOTH: SMART,
}
TIMES = 3  # a plain step costs 3 forward passes, a step with both terms 9


class Size(NamedTuple):
    """A task with so many training rows (None: all), and the steps that a training takes."""

    task: str
    rows: int | None
    steps: int

    @property
    def name(self) -> str:
        """As tables and runs call it."""
        return f"{self.task}, {self.rows or 'all'} rows"


# the cheapest first, and seed by seed: a grid that is broken off can be read
SIZES = [
    Size("sst", 250, 96),
    Size("sts", 250, 96),
    Size("sts", 1000, 96),
    Size("sst", 4000, 375),
    Size("sst", None, 534),
]


def arm_of(arm: str, size: Size) -> str:
    """The name of an arm's runs with so many rows."""
    return f"{arm}, {size.rows or 'all'} rows"


def run_of(arm: str, size: Size, seed: int) -> Run:
    """One run."""
    steps = size.steps * (TIMES if arm == EQUAL else 1)
    return Run(arm_of(arm, size), (size.task,), seed, ARMS[arm], steps, size.rows)


GRID = [run_of(arm, size, seed) for size in SIZES for seed in SEEDS for arm in ARMS]


def outcome(run: Run, data_dir: Path, folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The dev outcome of a run; of one that has a teacher also that of the teacher's weights."""
    dev, arrays = dev_outcome(run, data_dir, folder)
    if (folder / "last" / "teacher.safetensors").exists():
        teacher, predictions = dev_outcome(run, data_dir, folder, "teacher")
        for task in run.tasks:
            dev[task]["teacher"] = teacher[task]
            arrays[f"{task} teacher"] = predictions[task]
    return dev, arrays


QUESTION = Question("breadth", outcome=outcome)


def teacher_line(line: Line) -> Line:
    """A line of BOTH with the teacher's scores in place of the student's."""
    return line | {"dev": {task: scores["teacher"] for task, scores in line["dev"].items()}}


def gains(lines: list[Line], size: Size) -> list[dict[str, Any]]:
    """Each arm beside plain over the seeds that both have: score, gain with its interval, cost."""
    metric = TASKS[size.task].main_metric
    by_run = {(line["arm"], line["tasks"][0], line["seed"]): line for line in lines}
    found = {
        arm: {seed: by_run[key] for seed in SEEDS if (key := (arm_of(arm, size), size.task, seed)) in by_run}
        for arm in ARMS
    }
    found[KEPT] = {seed: teacher_line(line) for seed, line in found[BOTH].items()}
    base = found["plain"]
    rows = []
    for arm, mine in found.items():
        seeds = sorted(set(mine) & set(base))
        if not seeds:
            continue
        sides = [[side[seed]["dev"][size.task][metric] for seed in seeds] for side in (base, mine)]
        row = {"arm": arm, "seeds": len(seeds), "score": statistics.fmean(sides[1])}
        row["cost"] = passes(mine[seeds[0]]) / passes(base[seeds[0]])
        if arm != "plain" and len(seeds) > 1:
            row["gain"], row["low"], row["high"] = paired(*sides)
        rows.append(row)
    return rows


def gain_text(row: dict[str, Any]) -> str:
    """A gain in points, which are hundredths, with its interval; nothing for plain and for one seed alone."""
    if "gain" not in row:
        return ""
    gain, low, high = (f"{100 * row[name]:+.2f}" for name in ("gain", "low", "high"))
    return f"{gain} ({low} to {high})"


def table(question: Question) -> str:
    """Each arm beside plain, by size."""
    lines = question.lines()
    heads = ["data", "arm", "seeds", "score", "gain in points (95 % over seeds)", "cost"]
    rows = []
    for size in SIZES:
        found = gains(lines, size)
        if not found:
            rows.append([size.name, "…", "0", "…", "…", "…"])
        for row in found:
            cells = [size.name, row["arm"], str(row["seeds"]), f"{row['score']:.4f}"]
            rows.append([*cells, gain_text(row), f"{row['cost']:.2g}"])
    return f"{markdown(heads, rows)}\n\n{provenance(lines)}"


def draw_panel(axes: Any, size: Size, rows: list[dict[str, Any]], colours: list[str]) -> None:
    """Gains of one size against their cost. An arm looks the same in every panel."""
    looks = dict(zip([*list(ARMS)[1:], KEPT], zip(colours, "osv^<>p", strict=True), strict=True))
    axes.set_title(size.name)
    if not rows:
        axes.axis("off")
        axes.text(0.5, 0.5, "not run yet", ha="center", transform=axes.transAxes)
        return
    axes.axhline(0, color="gray", linewidth=1)
    beside: dict[float, int] = {}  # how many arms of that cost there are already
    for row in rows:
        gain, low, high = (100 * row[name] for name in ("gain", "low", "high"))
        colour, marker = looks[row["arm"]]
        bars = [[gain - low], [high - gain]]
        place = row["cost"] + 0.08 * beside.setdefault(row["cost"], 0)  # bars of one cost stand side by side
        beside[row["cost"]] += 1
        axes.errorbar(place, gain, bars, fmt=marker, capsize=3, color=colour, label=row["arm"])
    axes.set_xlabel("cost, plain = 1")


def plot(question: Question) -> list[Path]:
    """Gain over plain against cost, each gain with its 95 % interval over seeds: a row for each task, a panel
    for each size. Raises UserError if there is nothing to draw."""
    lines = question.lines()
    found = {size: [row for row in gains(lines, size) if "gain" in row] for size in SIZES}
    if not any(found.values()):
        nothing = "no arm beside plain with two seeds yet, so there is nothing to draw"
        raise UserError(f"{question.file}: {nothing}")

    def draw(figure: Any, colours: list[str]) -> None:
        panels = figure.subplots(2, 3)
        labels: dict[str, Any] = {}
        for of_task, task in zip(panels, ("sst", "sts"), strict=True):
            of_task[0].set_ylabel("gain in points")
            sizes = [size for size in SIZES if size.task == task]
            for axes, size in zip(of_task, sizes, strict=False):
                draw_panel(axes, size, found[size], colours)
                handles, names = axes.get_legend_handles_labels()
                labels |= dict(zip(names, handles, strict=True))
        panels[1, 2].axis("off")
        panels[1, 2].legend(labels.values(), labels, loc="center", frameon=False, fontsize=9)

    return pictures.save(PICTURE, draw, question.folder / "pictures", height=6)


def page() -> str:
    """What stands on the page of experiments: the table, and the picture once it has been drawn."""
    described = "Gain over plain training against cost in forward passes, a panel for each size of the data"
    return "\n\n".join([table(QUESTION), *pictures.drawn({PICTURE: described}, HERE / "pictures")])


if __name__ == "__main__":
    sys.exit(main_of(QUESTION, GRID, table, plot, __doc__))
