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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from config import parse_arguments
from experiments import pictures
from experiments.inference import bootstrap, paired, verdict
from experiments.runner import (
    HERE,
    Line,
    Question,
    Run,
    chosen_runs,
    guarded,
    markdown,
    parser_of,
    provenance,
    run_grid,
)
from multitask_classifier import forward_passes
from support.errors import UserError
from support.files import write_text

TASK = "sst"
PRECISION = ("--precision", "bf16")
SEEDS = range(200, 220)
PICTURE = "-gain-against-cost"  # ending of the picture's name


@dataclass(frozen=True)
class Study:
    """The two questions of a comparison and the file of the winners between them.

    title: of the picture, data set and rows. given: the same in a sentence. sides: the settings that are
    tried, for "plain" and for the side that is judged against it. tuning_seeds: for these alone. arms: from
    the winning run of each side the arms of the comparison, the two sides first.
    """

    name: str
    title: str
    given: str
    sides: Mapping[str, list[Run]]
    tuning_seeds: range
    arms: Callable[[dict[str, Run]], dict[str, Run]]
    folder: Path = HERE

    @property
    def tuning(self) -> Question:
        """What was run to tune both sides."""
        return Question(f"{self.name}_tuning", self.folder)

    @property
    def comparison(self) -> Question:
        """What was run to compare the winners."""
        return Question(f"{self.name}_comparison", self.folder)

    @property
    def winners(self) -> Path:
        """The winning setting of each side, and the means of all."""
        return self.folder / f"{self.name}_winners.json"

    @property
    def judged(self) -> str:
        """The side that is judged; every arm of the comparison but it and plain is exploratory."""
        return next(side for side in self.sides if side != "plain")

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
        runs = [replace(run, arm=arm, seed=seed) for seed in SEEDS for arm, run in arms.items()]
        return sorted(runs, key=lambda run: run.arm not in ("plain", self.judged))  # stable: seeds in order


def plain(passes: int, lr: float, rows: int) -> Run:
    """A plain training on so many rows, by how often it sees each and its learning rate."""
    flags = ("--lr", f"{lr:g}", *PRECISION)
    return Run(f"plain {passes} passes lr {lr:g}", (TASK,), 0, flags, passes * -(-rows // 32), rows)


def accuracies(lines: Iterable[Line], arm: str) -> dict[int, float]:
    """Dev accuracy by seed."""
    return {line["seed"]: line["dev"][TASK]["accuracy"] for line in lines if line["arm"] == arm}


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
            scores = accuracies(lines, run.arm)
            if set(scores) != seeds:
                done = f"{len(scores)} of {len(seeds)} seeds have been run"
                raise UserError(f"{study.tuning.file}: {run.arm}: {done}; go on with `tuning`")
            means[run.arm] = round(statistics.fmean(scores.values()), 6)
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


# --------------------------------------------------------------------------------------------- table


def right_rows(question: Question, arm: str, seeds: list[int]) -> np.ndarray:
    """(seeds, rows): 1 where the kept prediction of a run is right."""
    kept = [question.kept(Run(arm, (TASK,), seed, (), 0), TASK) for seed in seeds]
    return np.array([predicted == labels for predicted, labels in kept], dtype=np.float64)


def passes(line: Line) -> float:
    """What a run cost, in forward passes of a batch. Unlike seconds, days and machines don't change it."""
    words = [*line["flags"], "--tasks", ",".join(line["tasks"])]
    if line.get("unlabelled"):
        words += ["--unlabelled_file", "texts"]
    config, _ = parse_arguments(words)
    return line["steps"] * statistics.fmean(forward_passes(config, source) for source in config.sources)


def gains(question: Question, judged: str) -> list[dict[str, Any]]:
    """Each arm beside plain over the seeds that both have: accuracy, gain and intervals, cost, verdict.

    judged: the arm of the primary comparison; all others are exploratory. Only its seconds can be compared
    with plain's: the two ran in turns.
    """
    lines = question.lines()
    base = accuracies(lines, "plain")
    first_line = {line["arm"]: line for line in reversed(lines)}
    rows = []
    for arm in dict.fromkeys(line["arm"] for line in lines):
        scores = accuracies(lines, arm)
        seeds = sorted(set(scores) & set(base))
        if not seeds:
            continue
        sides = [[which[seed] for seed in seeds] for which in (base, scores)]
        seconds = [line["seconds"] for line in lines if line["arm"] == arm and line["seed"] in seeds]
        row = {"arm": arm, "seeds": len(seeds), "accuracy": statistics.fmean(sides[1])}
        row |= {"seconds": statistics.fmean(seconds), "in turns": arm in ("plain", judged)}
        row["cost"] = passes(first_line[arm]) / passes(first_line["plain"])
        if arm != "plain" and len(seeds) > 1:
            row["gain"], row["low"], row["high"] = paired(*sides)
            row["rows"] = bootstrap(*(right_rows(question, name, seeds) for name in ("plain", arm)))
            row["verdict"] = verdict(*sides) if arm == judged else "exploratory"
        rows.append(row)
    return rows


def table(study: Study) -> str:
    """Each arm beside plain, with its verdict."""
    heads = ["arm", "seeds", "accuracy", "gain (95 % over seeds)", "over seeds and dev rows"]
    heads += ["cost", "seconds", "verdict"]
    rows = []
    for row in gains(study.comparison, study.judged):
        seconds = f"{row['seconds']:.0f}" if row["in turns"] else ""
        cost = f"{row['cost']:.2g}"
        cells = [row["arm"], str(row["seeds"]), f"{row['accuracy']:.4f}", "", "", cost, seconds, ""]
        if "gain" in row:
            cells[3] = f"{row['gain']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"
            cells[4] = "{:+.4f} to {:+.4f}".format(*row["rows"])
            cells[7] = row["verdict"]
        rows.append(cells)
    return f"{markdown(heads, rows)}\n\n{provenance(study.comparison.lines())}"


def points(row: dict[str, Any], interval: str) -> str:
    """A gain in points of accuracy, with its interval."""
    gain, low, high = (f"{100 * row[name]:+.2f}" for name in ("gain", "low", "high"))
    return f"{gain} points ({interval}: {low} to {high})"


def answer(study: Study) -> str:
    """What the comparison says, the verdict first: beside plain. Nothing before it has been run."""
    rows = {row["arm"]: row for row in gains(study.comparison, study.judged)}
    row = rows.get(study.judged, {})
    if "gain" not in row:
        return ""
    found = row["verdict"].split(" (")[0].capitalize()
    ratio = row["seconds"] / rows["plain"]["seconds"]
    gain = points(row, f"95 % over {seeds_of([row])}")
    return f"**{found}** {study.given}: {gain}, in {ratio:.1f} times the time."


def tuning_table(study: Study) -> str:
    """Mean dev accuracy of every setting that was tried, the best of a side first."""
    lines = study.tuning.lines()
    rows = []
    for side, settings in study.sides.items():
        found = [(run.arm, list(accuracies(lines, run.arm).values())) for run in settings]
        means = [(arm, len(scores), statistics.fmean(scores)) for arm, scores in found if scores]
        for arm, seeds, mean in sorted(means, key=lambda setting: -setting[2]):
            rows.append([side, arm, str(seeds), f"{mean:.4f}"])
    return f"{markdown(['side', 'setting', 'seeds', 'accuracy'], rows)}\n\n{provenance(lines)}"


def seeds_of(rows: list[dict[str, Any]]) -> str:
    """How many seeds the arms have: `20 seeds`, or `7 to 20 seeds`."""
    counts = [row["seeds"] for row in rows]
    return f"{min(counts)} to {max(counts)} seeds" if min(counts) < max(counts) else f"{counts[0]} seeds"


def plot(study: Study) -> list[Path]:
    """Gain over plain against cost, each with its 95 % interval over seeds."""
    rows = [row for row in gains(study.comparison, study.judged) if "gain" in row]
    if not rows:
        raise UserError(f"{study.comparison.file}: no arm beside plain yet, so there is nothing to draw")

    def draw(figure: Any, colours: list[str]) -> None:
        axes = figure.subplots()
        axes.axhline(0, color="gray", linewidth=1)
        axes.plot([1], [0], "D", color="gray", label="plain, tuned")
        for row, colour, marker in zip(rows, colours, "osv^<>p", strict=False):
            gain, low, high = (100 * row[name] for name in ("gain", "low", "high"))
            bars = [[gain - low], [high - gain]]
            axes.errorbar(row["cost"], gain, bars, fmt=marker, capsize=4, color=colour, label=row["arm"])
        axes.set_xlabel("cost in forward passes; plain, tuned = 1")
        axes.set_ylabel("gain in dev accuracy, points")
        axes.set_title(f"{study.title}: 95 % intervals over {seeds_of(rows)}")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)

    return pictures.save(f"{study.name}{PICTURE}", draw, study.folder / "pictures")


def page(study: Study) -> str:
    """What stands on the page of experiments: the table, and the picture once it has been drawn."""
    described = (
        "Gain in dev accuracy over plain training, against cost in forward passes, with 95 % intervals"
    )
    return "\n\n".join([table(study), *pictures.drawn({study.name + PICTURE: described}, HERE / "pictures")])


# ------------------------------------------------------------------------------------- command line


def run_quickly(options: argparse.Namespace, study: Study) -> None:
    """Everything on subsets: one seed of the tuning and two of the comparison."""
    study.folder.mkdir(parents=True, exist_ok=True)
    study = replace(study, tuning_seeds=study.tuning_seeds[:1])
    run_grid(study.tuning, chosen_runs(options, study.tuning_grid()), options.data_dir, options.work_dir)
    choose_winners(study)
    for seed in SEEDS[:2]:
        grid = [run for run in study.comparison_grid() if run.seed == seed]
        run_grid(study.comparison, chosen_runs(options, grid), options.data_dir, options.work_dir)


def run(options: argparse.Namespace, study: Study) -> None:
    """What the command line asks for."""
    if options.quick:
        study = replace(study, folder=options.work_dir / "quick")
    if options.plot:
        print("\n".join(str(path) for path in plot(study)))
        return
    if options.quick and not options.table:
        run_quickly(options, study)
    elif options.what == "tuning":
        grid = chosen_runs(options, study.tuning_grid())
        run_grid(study.tuning, grid, options.data_dir, options.work_dir)
    elif options.what == "winners":
        choose_winners(study)
    elif options.what == "comparison":
        check_committed(study.winners)
        grid = chosen_runs(options, study.comparison_grid())
        run_grid(study.comparison, grid, options.data_dir, options.work_dir)
    print(f"{tuning_table(study)}\n\n{table(study)}")


def main_of(study: Study, description: str | None) -> int:
    """The command line of a study."""
    parser = parser_of(description)
    parser.add_argument("what", nargs="?", choices=("tuning", "winners", "comparison"))
    options = parser.parse_args()
    if not (options.what or options.table or options.plot or options.quick):
        parser.error("say what: tuning, winners, comparison, --table, --plot or --quick")
    if options.data_dir:
        options.data_dir = Path(options.data_dir)
    return guarded(lambda: run(options, study))
