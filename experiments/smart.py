"""Does SMART help? The primary comparison: SST with 1,000 rows, SMART against the best plain training.

    python -m experiments.smart tuning --data_dir path/to/data      # nine settings a side, seeds 100 to 104
    python -m experiments.smart winners                             # writes smart_winners.json; commit it
    python -m experiments.smart comparison --data_dir path/to/data  # the winners, seeds 200 to 219
    python -m experiments.smart --table
    python -m experiments.smart --plot                              # gain against cost

The rule is fixed before seed 200 is run. Both sides are tuned alike: plain over the number of passes and the
learning rate, SMART over λ and ε. A gain or a loss is claimed at p < .01 (two-sided paired permutation over
seeds). Else it is "no gain" if the 95 % interval over seeds lies within ±1 point, else "not decided".

About four hours on two cores in bf16. All of it on subsets: `python -m experiments.smart --quick`.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

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
    parser_of,
    provenance,
    run_grid,
)
from support.errors import UserError
from support.files import write_text
from training import forward_passes

TASK = "sst"
ROWS = 1000
PASS = 32  # steps of 32 rows for one pass over 1,000 rows
TUNING_SEEDS = range(100, 105)
SEEDS = range(200, 220)
PRECISION = ("--precision", "bf16")
PRIMARY = ("plain", "SMART")


def plain(passes: int, lr: float, rows: int = ROWS) -> Run:
    """A plain training on so many rows, by how often it sees each and its learning rate."""
    flags = ("--lr", f"{lr:g}", *PRECISION)
    return Run(f"plain {passes} passes lr {lr:g}", (TASK,), 0, flags, passes * -(-rows // 32), rows)


def smart(weight: float, epsilon: float) -> Run:
    """SMART with both terms, three passes, by λ and ε; a step of the ascent is as long as ε."""
    ball = ("--smart_epsilon", f"{epsilon:g}", "--smart_step_size", f"{epsilon:g}")
    flags = ("--use_smart", "--smart_weight", f"{weight:g}", *ball, *PRECISION)
    return Run(f"SMART weight {weight:g} epsilon {epsilon:g}", (TASK,), 0, flags, 3 * PASS, ROWS)


SETTINGS = {
    "plain": [plain(passes, lr) for passes in (3, 6, 9) for lr in (5e-5, 1e-4, 2e-4)],
    "SMART": [smart(weight, epsilon) for weight in (0.5, 1, 3) for epsilon in (0.01, 0.02, 0.04)],
}


class Study(NamedTuple):
    """The files of the comparison: two questions and the winners between them."""

    tuning: Question
    comparison: Question
    winners: Path


def study_in(folder: Path) -> Study:
    """The study whose files are in the folder."""
    tuning = Question("smart_tuning", folder)
    return Study(tuning, Question("smart_comparison", folder), folder / "smart_winners.json")


# --------------------------------------------------------------------------------------------- runs


def tuning_grid(sides: Mapping[str, list[Run]] = SETTINGS, seeds: Iterable[int] = TUNING_SEEDS) -> list[Run]:
    """Every setting of both sides, seed by seed."""
    settings = [run for side in sides.values() for run in side]
    return [replace(run, seed=seed) for seed in seeds for run in settings]


def chosen_winners(winners: Path, sides: Mapping[str, list[Run]] = SETTINGS) -> dict[str, Run]:
    """The winning run of each side. Raises UserError if there is no such file."""
    if not winners.exists():
        raise UserError(f"{winners}: no winners yet; the same command with `winners` chooses them")
    chosen = json.loads(winners.read_text(encoding="utf-8"))
    return {side: next(run for run in runs if run.arm == chosen[side]) for side, runs in sides.items()}


def comparison_grid(winners: Path) -> list[Run]:
    """The winners, and after them what is exploratory at their settings. Raises UserError without winners."""
    best = chosen_winners(winners)
    flags = best["SMART"].flags
    arms = {
        "plain": best["plain"],
        "SMART": best["SMART"],
        "plain, SMART's passes": replace(best["plain"], steps=best["SMART"].steps),
        "R3F": replace(best["SMART"], flags=(*flags, "--smart_steps", "0")),
        "SMART without Bregman": replace(best["SMART"], flags=(*flags, "--bregman_weight", "0")),
        "Bregman alone": replace(best["SMART"], flags=(*flags, "--smart_weight", "0")),
        "R-Drop": replace(best["SMART"], flags=("--rdrop_weight", "1", *PRECISION)),
    }
    runs = [replace(run, arm=arm, seed=seed) for seed in SEEDS for arm, run in arms.items()]
    return sorted(runs, key=lambda run: run.arm not in PRIMARY)  # stable: the seeds stay in order


def accuracies(lines: Iterable[Line], arm: str) -> dict[int, float]:
    """Dev accuracy by seed."""
    return {line["seed"]: line["dev"][TASK]["accuracy"] for line in lines if line["arm"] == arm}


def choose_winners(
    study: Study, seeds: Iterable[int] = TUNING_SEEDS, sides: Mapping[str, list[Run]] = SETTINGS
) -> None:
    """Write the setting of each side with the highest mean over the tuning seeds.

    Raises UserError if a setting lacks runs.
    """
    lines = study.tuning.lines()
    seeds = set(seeds)
    winners: dict[str, Any] = {}
    for side, settings in sides.items():
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
    print({side: winners[side] for side in sides})


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


def gains(question: Question, judged: str = "SMART") -> list[dict[str, Any]]:
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


def table(question: Question, judged: str = "SMART") -> str:
    """Each arm beside plain, with its verdict."""
    heads = (
        "arm | seeds | accuracy | gain (95 % over seeds) | over seeds and dev rows | cost | seconds | verdict"
    )
    rows = [f"| {heads} |", "|" + "---|" * (heads.count("|") + 1)]
    for row in gains(question, judged):
        seconds = f"{row['seconds']:.0f}" if row["in turns"] else ""
        cost = f"{row['cost']:.2g}"
        cells = [row["arm"], str(row["seeds"]), f"{row['accuracy']:.4f}", "", "", cost, seconds, ""]
        if "gain" in row:
            cells[3] = f"{row['gain']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"
            cells[4] = "{:+.4f} to {:+.4f}".format(*row["rows"])
            cells[7] = row["verdict"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", provenance(question.lines())])


def answer(question: Question) -> str:
    """Three sentences: what the comparison says, what the exploratory arms say, how it was measured."""
    rows = {row["arm"]: row for row in gains(question)}
    if not set(PRIMARY) <= rows.keys() or "gain" not in rows["SMART"]:
        return "Does SMART help? Nothing has been run yet."
    row = rows["SMART"]
    ratio = row["seconds"] / rows["plain"]["seconds"]
    found = points(row, f"95 % over {row['seeds']} seeds")
    others = [other for other in rows.values() if other.get("verdict") == "exploratory"]
    lines = question.lines()
    processors = ", ".join(sorted({line["processor"] for line in lines}))
    precision = ", ".join(sorted({line["precision"] for line in lines}))
    return (
        f"On SST with 1,000 rows it changed dev accuracy by {found} beside plain training tuned alike,\n"
        f"in {ratio:.1f} times its time: **{row['verdict'].split(' (')[0]}**.\n"
        + (best_of(others) if others else "")
        + f"MiniLM, {precision}, {processors}, last step's weights, no threshold fitted"
        " ([all of it](experiments/README.md))."
    )


def best_of(rows: list[dict[str, Any]]) -> str:
    """The sentence about the exploratory arms."""
    best = max(rows, key=lambda row: row["gain"])
    sure = sum(row["low"] > 0 or row["high"] < 0 for row in rows)
    few = min(row["seeds"] for row in rows)
    found = f"{best['arm']} did best, {points(best, '95 %')}"
    arms = f"{len(rows)} exploratory arms ({few} seeds or more)"
    return f"Of {arms} {found}; {sure} of their intervals leave out 0.\n"


def points(row: dict[str, Any], interval: str) -> str:
    """A gain in points of accuracy, with its interval."""
    gain, low, high = (f"{100 * row[name]:+.2f}" for name in ("gain", "low", "high"))
    return f"{gain} points ({interval}: {low} to {high})"


def tuning_table(question: Question, sides: Mapping[str, list[Run]] = SETTINGS) -> str:
    """Mean dev accuracy of every setting that was tried, the best of a side first."""
    lines = question.lines()
    rows = ["| side | setting | seeds | accuracy |", "|---|---|---|---|"]
    for side, settings in sides.items():
        found = [(run.arm, list(accuracies(lines, run.arm).values())) for run in settings]
        found = sorted(
            ((arm, scores) for arm, scores in found if scores), key=lambda f: -statistics.fmean(f[1])
        )
        rows += [
            f"| {side} | {arm} | {len(scores)} | {statistics.fmean(scores):.4f} |" for arm, scores in found
        ]
    return "\n".join([*rows, "", provenance(lines)])


def plot(question: Question) -> list[Path]:
    """Gain over plain against cost, each with its 95 % interval over seeds."""
    rows = [row for row in gains(question) if "gain" in row]
    if not rows:
        raise UserError(f"{question.file}: no arm beside plain yet, so there is nothing to draw")

    def draw(figure: Any, colours: list[str]) -> None:
        axes = figure.subplots()
        axes.axhline(0, color="gray", linewidth=1)
        axes.plot([1], [0], "D", color="gray", label="plain, tuned")
        for row, colour, marker in zip(rows, colours, "osv^<>p", strict=False):
            gain, low, high = (100 * row[name] for name in ("gain", "low", "high"))
            bars = [[gain - low], [high - gain]]
            label = f"{row['arm']} ({row['seeds']})"
            axes.errorbar(row["cost"], gain, bars, fmt=marker, capsize=4, color=colour, label=label)
        axes.set_xlabel("cost in forward passes; plain, tuned = 1")
        axes.set_ylabel("gain in dev accuracy, points")
        axes.set_title("SST-5 with 1,000 rows: means with 95 % intervals over seeds (their number)")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)

    return pictures.save("gain-against-cost", draw, question.folder / "pictures")


# ------------------------------------------------------------------------------------- command line


def run_quickly(options: argparse.Namespace, study: Study) -> None:
    """Everything on subsets, one seed a side of the tuning and two of the comparison."""
    study.tuning.folder.mkdir(parents=True, exist_ok=True)
    run_grid(study.tuning, chosen_runs(options, tuning_grid()), options.data_dir, options.work_dir)
    choose_winners(study, TUNING_SEEDS[:1])
    for seed in SEEDS[:2]:
        grid = [run for run in comparison_grid(study.winners) if run.seed == seed]
        run_grid(study.comparison, chosen_runs(options, grid), options.data_dir, options.work_dir)


def run(options: argparse.Namespace) -> None:
    """What the command line asks for."""
    study = study_in(options.work_dir / "quick" if options.quick else HERE)
    if options.plot:
        print("\n".join(str(path) for path in plot(study.comparison)))
        return
    if options.quick and not options.table:
        run_quickly(options, study)
    elif options.what == "tuning":
        run_grid(study.tuning, chosen_runs(options, tuning_grid()), options.data_dir, options.work_dir)
    elif options.what == "winners":
        choose_winners(study)
    elif options.what == "comparison":
        check_committed(study.winners)
        grid = chosen_runs(options, comparison_grid(study.winners))
        run_grid(study.comparison, grid, options.data_dir, options.work_dir)
    print(f"{tuning_table(study.tuning)}\n\n{table(study.comparison)}")


def main() -> int:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("what", nargs="?", choices=("tuning", "winners", "comparison"))
    options = parser.parse_args()
    if not (options.what or options.table or options.plot or options.quick):
        parser.error("say what: tuning, winners, comparison, --table, --plot or --quick")
    if options.data_dir:
        options.data_dir = Path(options.data_dir)
    return guarded(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
