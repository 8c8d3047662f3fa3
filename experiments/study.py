"""A primary comparison: two sides tuned alike, their winners committed, then compared over paired seeds.

    tuning      every setting of both sides on seeds of their own      ─> <name>_tuning.jsonl
    winners     the best mean of each side                             ─> <name>_winners.json; commit it
    comparison  the winners, then exploratory arms at their settings   ─> <name>_comparison.jsonl

The rule is fixed before the comparison is run. A gain or a loss is claimed at p < .01 (two-sided paired
permutation over seeds). Else it is "no gain" if the 95 % interval over seeds lies within ±1 point, else "not
decided". `smart.py` and `unlabelled.py` are such studies.
"""

import argparse
import json
import statistics
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from config import parse_arguments
from experiments.inference import bootstrap, paired, verdict
from experiments.pictures import Picture, Point, gain_against_cost, looks_of
from experiments.runner import HERE, Question, Run, data_folder, guarded, parser_of, run_grid
from experiments.tables import (
    SEEDS,
    Column,
    Line,
    Row,
    Table,
    cost,
    cost_column,
    gain,
    mean,
    of_arm,
    own_score,
    pairs,
)
from multitask_classifier import forward_passes
from support.errors import UserError
from support.files import write_text

TASK = "sst"
PRECISION = ("--precision", "bf16")
COMPARED = range(200, 220)  # seeds


def passes(line: Line) -> float:
    """What a run costs, in forward passes of a batch. Unlike seconds, days and machines don't change it."""
    words = [*line["flags"], "--tasks", ",".join(line["tasks"])]
    if line.get("unlabelled"):
        words += ["--unlabelled_file", "texts"]
    config, _ = parse_arguments(words)
    return line["steps"] * statistics.fmean(forward_passes(config, source) for source in config.sources)


def counted(of_a_step: Mapping[str, float]) -> Callable[[Line], float]:
    """`passes` of lines of an older commit: by arm the forward passes of a step, as they were there."""
    return lambda line: line["steps"] * of_a_step[line["arm"]]


@dataclass(frozen=True)
class Study:
    """The two questions of a comparison and the file of the winners between them.

    title: of the picture, data set and rows. given: the same in a sentence. sides: the settings that are
    tried, for "plain" and for the side that is judged against it. tuning_seeds: for these alone. arms: from
    the winning run of each side the arms of the comparison, the two sides first. passes: of a run.
    """

    name: str
    title: str
    given: str
    sides: Mapping[str, list[Run]]
    tuning_seeds: range
    arms: Callable[[dict[str, Run]], dict[str, Run]]
    passes: Callable[[Line], float] = passes
    folder: Path = HERE

    @property
    def tuning(self) -> Question:
        """What was run to tune both sides."""
        shown = Table(("side", "setting"), self.tuned_rows, (SEEDS, mean("accuracy", own_score, digits=4)))
        return Question(f"{self.name}_tuning", (shown,), folder=self.folder)

    @property
    def comparison(self) -> Question:
        """What was run to compare the winners."""
        described = (
            "Gain in dev accuracy over plain training, against cost in forward passes, with 95 % intervals"
        )
        columns = (
            SEEDS,
            mean("accuracy", own_score, digits=4),
            gain("gain (95 % over seeds)", own_score),
            Column("over seeds and dev rows", self.interval_over_rows),
            cost_column(self.passes),
            Column("seconds", self.seconds),
            Column("verdict", self.verdict),
        )
        return Question(
            f"{self.name}_comparison",
            (Table(("arm",), arm_rows, columns),),
            (Picture(f"{self.name}-gain-against-cost", described, self.draw),),
            self.folder,
        )

    @property
    def winners(self) -> Path:
        """The winning setting of each side, and the means of all."""
        return self.folder / f"{self.name}_winners.json"

    @property
    def judged(self) -> str:
        """The side that is judged; every arm of the comparison but it and plain is exploratory."""
        return next(side for side in self.sides if side != "plain")

    # ---------------------------------------------------------------------------------------- runs

    def tuning_grid(self) -> list[Run]:
        """Every setting of both sides, seed by seed."""
        settings = [run for side in self.sides.values() for run in side]
        return [replace(run, seed=seed) for seed in self.tuning_seeds for run in settings]

    def winning_runs(self) -> dict[str, Run]:
        """The winning run of each side. Raises UserError if there is no such file."""
        if not self.winners.exists():
            raise UserError(f"{self.winners}: no winners yet; the same command with `winners` chooses them")
        chosen = json.loads(self.winners.read_text(encoding="utf-8"))
        return {
            side: next(run for run in runs if run.arm == chosen[side]) for side, runs in self.sides.items()
        }

    def comparison_grid(self) -> list[Run]:
        """The winners seed by seed, and after them what is exploratory. Raises UserError without winners."""
        arms = self.arms(self.winning_runs())
        runs = [replace(run, arm=arm, seed=seed) for seed in COMPARED for arm, run in arms.items()]
        return sorted(runs, key=lambda run: run.arm not in ("plain", self.judged))  # stable: seeds in order

    # --------------------------------------------------------------------------------------- tables

    def tuned_rows(self, lines: Sequence[Line]) -> list[Row]:
        """Every setting that was tried, the best of a side first."""
        rows = [
            Row((side, run.arm), of_arm(lines, run.arm)) for side, runs in self.sides.items() for run in runs
        ]
        order = list(self.sides)
        tried = [row for row in rows if row.lines]
        return sorted(tried, key=lambda row: (order.index(row.labels[0]), -mean_accuracy(row.lines)))

    def interval_over_rows(self, row: Row) -> str:
        """The interval of the gain over seeds and dev rows, from the predictions."""
        if len(row.lines) < 2 or not row.base:
            return ""
        low, high = bootstrap(self.right_rows(row.base), self.right_rows(row.lines))
        return f"{low:+.4f} to {high:+.4f}"

    def right_rows(self, lines: Sequence[Line]) -> np.ndarray:
        """(seeds, dev rows): 1 where the prediction of a run is right."""
        by_seed = sorted(lines, key=lambda line: line["seed"])
        found = [self.comparison.load_predictions(line, line["tasks"][0]) for line in by_seed]
        return np.array([predicted == labels for predicted, labels in found], dtype=np.float64)

    def seconds(self, row: Row) -> str:
        """Of the two sides alone: they ran in turns."""
        in_turns = row.labels[0] in ("plain", self.judged)
        return f"{mean_seconds(row.lines):.0f}" if in_turns else ""

    def verdict(self, row: Row) -> str:
        """By the rule; only the judged side has one."""
        if not row.base or len(row.lines) < 2:
            return ""
        return verdict(*pairs(row, own_score)) if row.labels[0] == self.judged else "exploratory"

    def draw(self, figure: Any, lines: Sequence[Line]) -> None:
        """Gain over plain against cost, each with its 95 % interval over seeds."""
        rows = [row for row in arm_rows(lines) if row.base and len(row.lines) > 1]
        points = [point_of(row.labels[0], row, own_score, self.passes) for row in rows]
        axes = figure.subplots()
        axes.axhline(0, color="gray", linewidth=1)
        axes.plot([1], [0], "D", color="gray", label="plain, tuned")
        gain_against_cost(axes, points, looks_of(point.arm for point in points))
        axes.set_xlabel("cost in forward passes; plain, tuned = 1")
        axes.set_ylabel("gain in dev accuracy, points")
        counts = sorted(len(row.lines) for row in rows)
        seeds = f"{counts[0]} to {counts[-1]}" if counts[0] < counts[-1] else counts[0]
        axes.set_title(f"{self.title}: 95 % intervals over {seeds} seeds")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)

    def answer(self) -> str:
        """What the comparison says, the verdict first. Nothing before there are two pairs."""
        rows = {row.labels[0]: row for row in arm_rows(self.comparison.lines())}
        row = rows.get(self.judged)
        if row is None or len(row.lines) < 2:
            return ""
        found = self.verdict(row).split(" (")[0].capitalize()
        points, low, high = (f"{100 * value:+.2f}" for value in paired(*pairs(row, own_score)))
        ratio = mean_seconds(row.lines) / mean_seconds(row.base)
        within = f"95 % over {len(row.lines)} seeds: {low} to {high}"
        return f"**{found}** {self.given}: {points} points ({within}), in {ratio:.1f} times the time."


def arm_rows(lines: Sequence[Line]) -> list[Row]:
    """Each arm beside plain over the seeds that both have."""
    plain = of_arm(lines, "plain")
    rows = []
    for arm in dict.fromkeys(line["arm"] for line in lines):
        rows.append(beside((arm,), of_arm(lines, arm), () if arm == "plain" else plain))
    return [row for row in rows if row.lines]


def beside(labels: tuple[str, ...], lines: Sequence[Line], plain: Sequence[Line]) -> Row:
    """A row of the seeds that both have; of all, if there is no plain to stand beside."""
    both = {line["seed"] for line in lines}
    if not plain:
        return Row(labels, lines)
    both &= {line["seed"] for line in plain}
    mine, theirs = ([line for line in side if line["seed"] in both] for side in (lines, plain))
    return Row(labels, mine, theirs)


def point_of(arm: str, row: Row, measure: Callable[[Line], Any], passes: Callable[[Line], float]) -> Point:
    """The row in a picture of gain against cost; gains in points, hundredths of the measure."""
    return Point(arm, cost(row, passes), *(100 * value for value in paired(*pairs(row, measure))))


def mean_accuracy(lines: Iterable[Line]) -> float:
    """Over runs, on dev."""
    return statistics.fmean(own_score(line) for line in lines)


def mean_seconds(lines: Iterable[Line]) -> float:
    """Of a run."""
    return statistics.fmean(line["seconds"] for line in lines)


# ------------------------------------------------------------------------------------------ running


def plain(passes: int, lr: float, rows: int) -> Run:
    """A plain training on so many rows, by how often it sees each and its learning rate."""
    flags = ("--lr", f"{lr:g}", *PRECISION)
    return Run(f"plain {passes} passes lr {lr:g}", (TASK,), 0, flags, passes * -(-rows // 32), rows)


def choose_winners(study: Study) -> None:
    """Write the setting of each side with the highest mean over the tuning seeds.

    Raises UserError if a setting lacks runs.
    """
    lines = study.tuning.lines()
    seeds = set(study.tuning_seeds)
    winners: dict[str, Any] = {}
    for side, settings in study.sides.items():
        means = {}
        for run in settings:
            mine = of_arm(lines, run.arm)
            if {line["seed"] for line in mine} != seeds:
                done = f"{len(mine)} of {len(seeds)} seeds have been run"
                raise UserError(f"{study.tuning.file}: {run.arm}: {done}; run `tuning` again to finish")
            means[run.arm] = round(mean_accuracy(mine), 6)
        winners[side] = max(means, key=lambda arm: means[arm])
        winners[f"{side} means"] = means
    write_text(study.winners, json.dumps(winners, indent=1) + "\n")
    print({side: winners[side] for side in study.sides})


def check_committed(path: Path) -> None:
    """Raises UserError unless git has the file as it is: the winners are fixed before the comparison."""
    words = ["git", "status", "--porcelain", "--ignored", "--", str(path)]
    status = subprocess.run(words, cwd=HERE, capture_output=True, text=True)
    if status.returncode or status.stdout.strip():
        raise UserError(f"{path}: commit the winners before the comparison is run")


def run_quickly(study: Study, data_dir: Path, work_dir: Path) -> None:
    """Everything on subsets: one seed of the tuning and two of the comparison."""
    study.folder.mkdir(parents=True, exist_ok=True)
    study = replace(study, tuning_seeds=study.tuning_seeds[:1])
    run_grid(study.tuning, [run.quick() for run in study.tuning_grid()], data_dir, work_dir)
    choose_winners(study)
    grid = [run.quick() for run in study.comparison_grid() if run.seed in COMPARED[:2]]
    run_grid(study.comparison, grid, data_dir, work_dir)


def run(options: argparse.Namespace, study: Study) -> None:
    """What the command line asks for."""
    if options.quick:
        study = replace(study, folder=options.work_dir / "quick")
        if not options.table:
            run_quickly(study, data_folder(options), options.work_dir)
    elif options.what == "winners":
        choose_winners(study)
    elif options.what:
        tuning = options.what == "tuning"
        if not tuning:
            check_committed(study.winners)
        question = study.tuning if tuning else study.comparison
        grid = study.tuning_grid() if tuning else study.comparison_grid()
        chosen = [each for each in grid if not options.seeds or each.seed in options.seeds]
        run_grid(question, chosen, data_folder(options), options.work_dir)
    print(f"{study.tuning.page()}\n\n{study.comparison.page()}")


def main_of(study: Study, description: str | None) -> int:
    """The command line of a study."""
    parser = parser_of(description)
    parser.add_argument("what", nargs="?", choices=("tuning", "winners", "comparison"))
    parser.add_argument(
        "--quick", action="store_true", help="all of it on subsets in minutes; the lines go to --work_dir"
    )
    options = parser.parse_args()
    if not (options.what or options.table or options.quick):
        parser.error("say what: tuning, winners, comparison, --table or --quick")
    return guarded(lambda: run(options, study))
