"""Is SMART smoother? The third primary comparison: accuracy under an attack on the embeddings.

    python -m experiments.robustness --data_dir path/to/data    # runs what has no line yet
    python -m experiments.robustness --table
    python -m experiments.robustness --plot

Two epochs over all of SST, ten paired seeds of plain and of SMART. 300 dev rows, the same for all, are
attacked within three ε (`attack.py`). Fixed before the first run: SMART against plain at the middle ε, by the
rule of experiments/study.py. All else is exploratory: R3F, the other tasks, noise, typos, another domain,
calibration, train against dev over ten epochs (`measures.py`).

Plain has the learning rate of the first comparison's winner. SMART has λ_s = 1 and ε = .04, the largest ε
whose accuracy in that tuning was within a thousandth of the winner's: at the winner's .01 the rounding of
bf16 is as large as R_s. R3F has noise of that size (σ = ε, cut at ε) in place of the ascent, and no D_Breg.

About 15 hours of one core in bf16, of which ten epochs take 6. All of it on subsets, in minutes: `--quick`;
an attack of three steps on twenty rows of an untrained model may beat no noise, and then it says so.
"""

import statistics
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments import breadth, pictures
from experiments.inference import paired, verdict
from experiments.measures import (
    ATTACKED_ROWS,
    EPSILONS,
    RATES,
    clean,
    dev_scores,
    on_reviews,
    on_training_rows,
    subject_of,
    under_attack,
    under_typos,
)
from experiments.robustness_pictures import curves, epochs, reliability
from experiments.runner import HERE, Line, Question, Run, main_of, markdown, provenance
from experiments.smart import STUDY
from experiments.study import passes
from support.errors import UserError
from tasks import TASKS

SEEDS = range(300, 310)
MIDDLE = 2  # of (0, *EPSILONS): the one that decides
STEPS = {"sst": 534, "para": 500, "sts": 378}  # of 32 rows: two epochs
TRAIN_ROWS = {"para": 8000}  # of the other tasks all
EPOCHS = 10
LONG = f", {EPOCHS} epochs"
SMART = breadth.SMART
R3F = breadth.ARMS["R3F"]
PRIMARY = ("plain", "SMART")
ARMS = (*PRIMARY, "R3F")


def grid() -> list[Run]:
    """The primary arms seed by seed, then R3F, the other tasks, and ten epochs."""
    flags = {"plain": STUDY.winning_runs()["plain"].flags, "SMART": SMART, "R3F": R3F}

    def run(arm: str, task: str, seed: int) -> Run:
        return Run(arm, (task,), seed, flags[arm], STEPS[task], TRAIN_ROWS.get(task))

    runs = [run(arm, "sst", seed) for seed in SEEDS for arm in PRIMARY]
    runs += [run("R3F", "sst", seed) for seed in SEEDS[:5]]
    runs += [run(arm, task, seed) for seed in SEEDS[:2] for task in ("sts", "para") for arm in PRIMARY]
    long = [run(arm, "sst", seed) for seed in SEEDS[:3] for arm in PRIMARY]
    steps = STEPS["sst"] // 2 * EPOCHS
    return runs + [replace(run, arm=run.arm + LONG, steps=steps, epochs=EPOCHS) for run in long]


def outcome(run: Run, data_dir: Path, folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What is measured of a finished run, as the runner wants it: facts by task, and arrays."""
    begin = time.perf_counter()
    subject, task = subject_of(folder, data_dir), TASKS[run.tasks[0]]
    short = (clean, under_attack, under_typos, on_reviews)
    measures = (clean, on_training_rows) if run.epochs == EPOCHS else short
    facts: dict[str, Any] = {"epochs": dev_scores(folder, task)}
    arrays: dict[str, np.ndarray] = {}
    for measure in measures:
        found, kept = measure(subject, task)
        facts |= found
        arrays |= kept
    return {task.name: facts | {"measuring_seconds": round(time.perf_counter() - begin, 1)}}, arrays


QUESTION = Question("robustness", outcome=outcome)

# --------------------------------------------------------------------------------------------- lines


def by_seed(lines: Sequence[Line], arm: str, task: str = "sst") -> dict[int, dict[str, Any]]:
    """What the lines of an arm say of a task, by seed."""
    return {
        line["seed"]: line["dev"][task] for line in lines if (line["arm"], line["tasks"]) == (arm, [task])
    }


def middle(task: str, found: dict[str, Any]) -> float:
    """The main metric under attack at the middle ε."""
    return found["attack"][MIDDLE][TASKS[task].main_metric]


def pairs(lines: Sequence[Line], arm: str, task: str = "sst") -> tuple[list[float], list[float]]:
    """Plain and an arm under attack at the middle ε, of the seeds that have both."""
    both = [by_seed(lines, name, task) for name in ("plain", arm)]
    seeds = sorted(set(both[0]) & set(both[1]))
    first, second = ([middle(task, side[seed]) for seed in seeds] for side in both)
    return first, second


def broken(lines: Sequence[Line]) -> list[str]:
    """The runs where the attack does not beat random noise at every ε: there it has found nothing."""
    names = []
    for line in lines:
        for task, found in line["dev"].items():
            metric = TASKS[task].main_metric
            sides = zip(found.get("attack", [])[1:], found.get("noise", [])[1:], strict=True)
            if not all(attack[metric] < noise[metric] for attack, noise in sides):
                names.append(line["name"])
    return names


def answer(question: Question) -> str:
    """What the primary comparison says, in one sentence; nothing before it has been run."""
    lines = question.lines()
    if failed := broken(lines):
        return f"**The attack is broken**: it does not beat random noise in {', '.join(failed)}."
    plain, ours = pairs(lines, "SMART")
    if len(plain) < 2:
        return ""
    found = decided(plain, ours).split(" (")[0]
    claims = {"gain": "Smoother", "loss": "Not smoother", "no gain": "Not smoother"}
    claim = claims.get(found, f"Smoother? {found.capitalize()}")
    gain, low, high = (f"{100 * value:+.1f}" for value in paired(plain, ours))
    levels = [f"{100 * statistics.fmean(side):.1f} %" for side in (ours, plain)]
    of_sst = {line["arm"]: line for line in lines if line["tasks"] == ["sst"]}
    cost = passes(of_sst["SMART"]) / passes(of_sst["plain"])
    return (
        f"**{claim}**: under attack ({ATTACKED_ROWS['sst']} rows, ε = {EPSILONS[MIDDLE - 1]:g})"
        f" SMART has {levels[0]}, plain {levels[1]}:"
        f" {gain} points (95 % over {len(plain)} seeds: {low} to {high}),"
        f" in {cost:g} times the forward passes."
    )


def decided(plain: Sequence[float], ours: Sequence[float]) -> str:
    """The verdict; before the last seed there is none, because it would be a choice of when to stop."""
    if len(plain) < len(SEEDS):
        return f"{len(plain)} of {len(SEEDS)} seeds so far"
    return verdict(plain, ours)


# -------------------------------------------------------------------------------------------- tables


def found_arms(lines: Sequence[Line]) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Task, arm and what its lines say, of every arm that has lines; not those of ten epochs."""
    for task in STEPS:
        for arm in ARMS:
            if found := list(by_seed(lines, arm, task).values()):
                yield task, arm, found


def level(task: str, measured: Sequence[dict[str, float]]) -> str:
    """The mean of the main metric over seeds, of a regression the mean squared error as well."""
    mean = statistics.fmean(scores[TASKS[task].main_metric] for scores in measured)
    if "squared_error" not in measured[0]:
        return f"{mean:.3f}"
    return f"{mean:.3f} ({statistics.fmean(scores['squared_error'] for scores in measured):.2f})"


def difference(first: Sequence[float], second: Sequence[float]) -> str:
    """Mean of second - first over pairs, with its 95 % interval."""
    mean, low, high = paired(first, second)
    interval = f"{low:+.3f} to {high:+.3f}" if len(first) > 1 else "one seed has no interval"
    return f"{mean:+.3f} ({interval})"


def attack_table(lines: Sequence[Line]) -> str:
    """Every arm without attack, under noise and under attack, and its gain over plain at the middle ε."""
    within = EPSILONS[MIDDLE - 1]
    heads = ["task", "training", "seeds", "clean", f"noise, ε = {within:g}"]
    heads += [f"attack, ε = {epsilon:g}" for epsilon in EPSILONS]
    heads += [f"gain at ε = {within:g} (95 % over seeds)", "verdict"]
    places = [("attack", 0), ("noise", MIDDLE), *(("attack", 1 + i) for i in range(len(EPSILONS)))]
    rows = []
    for task, arm, found in found_arms(lines):
        levels = [level(task, [each[kind][place] for each in found]) for kind, place in places]
        plain, ours = pairs(lines, arm, task)
        said = ["", ""]
        if arm != "plain" and plain:
            said = [difference(plain, ours), "exploratory"]
            if (task, arm) == ("sst", "SMART"):
                said[1] = decided(plain, ours)
        rows.append([task, arm, str(len(found)), *levels, *said])
    return markdown(heads, rows)


BESIDE = ["no typos", *(f"{100 * rate:.0f} %" for rate in RATES)]
BESIDE += ["reviews", "calibration error", "after scaling", "temperature"]


def beside(task: str, found: dict[str, Any]) -> dict[str, float]:
    """What a line says of a task beside the attack, by the heads of `BESIDE`; some tasks lack some."""
    metric = TASKS[task].main_metric
    said = {head: scores[metric] for head, scores in zip(BESIDE, found["typos"], strict=False)}
    if "reviews" in found:
        said["reviews"] = found["reviews"]
    if calibrated := found.get("calibration"):
        said |= {"calibration error": calibrated["before"]["error"]}
        said |= {"after scaling": calibrated["after"]["error"]}
        said |= {"temperature": statistics.fmean(calibrated["temperatures"])}
    return said


def beside_table(lines: Sequence[Line]) -> str:
    """Typos, another domain and calibration: means over seeds, then each arm's difference from plain."""
    rows = []
    for task, arm, _ in found_arms(lines):
        plain, ours = (
            {seed: beside(task, found) for seed, found in by_seed(lines, name, task).items()}
            for name in ("plain", arm)
        )
        has = next(iter(ours.values()))
        means = [mean_of([said[head] for said in ours.values()]) if head in has else "" for head in BESIDE]
        rows.append([task, arm, str(len(ours)), *means])
        seeds = sorted(set(plain) & set(ours))
        if arm != "plain" and seeds:
            both = [[[side[seed][head] for seed in seeds] for side in (plain, ours)] for head in has]
            gains = dict(zip(has, (difference(*pair) for pair in both), strict=True))
            rows.append(["", f"{arm} - plain", str(len(seeds)), *(gains.get(head, "") for head in BESIDE)])
    return markdown(["task", "training", "seeds", *BESIDE], rows)


def mean_of(values: Sequence[float]) -> str:
    """The mean over seeds."""
    return f"{statistics.fmean(values):.3f}"


def after_training(found: dict[str, Any]) -> tuple[float, float, float]:
    """Accuracy on training rows and on dev, and the gap between them."""
    train, dev = found["train"]["accuracy"], found["accuracy"]
    return train, dev, train - dev


def gap_table(lines: Sequence[Line]) -> str:
    """What plain and SMART have after ten epochs, and the difference over the seeds that both have."""
    found = [
        {seed: after_training(each) for seed, each in by_seed(lines, arm + LONG).items()} for arm in PRIMARY
    ]
    rows = []
    for arm, of_seed in zip(PRIMARY, found, strict=True):
        if of_seed:
            train, dev, _ = zip(*of_seed.values(), strict=True)
            rows.append([arm, str(len(train)), mean_of(train), mean_of(dev), difference(dev, train)])
    if seeds := sorted(set(found[0]) & set(found[1])):
        plain, ours = (zip(*(of_seed[seed] for seed in seeds), strict=True) for of_seed in found)
        gains = [difference(*pair) for pair in zip(plain, ours, strict=True)]
        rows.append([f"{PRIMARY[1]} - {PRIMARY[0]}", str(len(seeds)), *gains])
    return markdown(["training", "seeds", "training rows", "dev", "gap (95 % over seeds)"], rows)


def table(question: Question) -> str:
    """The answer and all that was measured."""
    lines = question.lines()
    parts = [
        textwrap.fill(answer(question), 110, break_on_hyphens=False),
        "Under attack. sst and para: accuracy; sts: Pearson correlation, in brackets the squared error:",
        attack_table(lines),
        "With a typo in so many of the longer words; on CFIMDB's reviews; expected calibration error before"
        " and after temperature scaling. Below each arm its difference from plain (95 % over seeds):",
        beside_table(lines),
        f"After {EPOCHS} epochs over SST, accuracy:",
        gap_table(lines),
        provenance(lines),
    ]
    return "\n\n".join(filter(None, parts))


# ------------------------------------------------------------------------------------------ pictures

PICTURES = {
    "robustness": "Accuracy on SST falls with ε, under attack and under noise, by training",
    "reliability": "Accuracy against confidence on SST, before and after temperature scaling",
    "train-dev": "Training loss and dev accuracy over ten epochs",
}


def plot(question: Question) -> list[Path]:
    """The pictures for which there are lines. Raises UserError if there are none."""
    lines, folder = question.lines(), question.folder / "pictures"
    arms = {arm: found for task, arm, found in found_arms(lines) if task == "sst"}
    long = [line | {"arm": line["arm"].removesuffix(LONG)} for line in lines if line["arm"].endswith(LONG)]
    paths = [*curves(arms, folder), *reliability(arms, folder)] if arms else []
    paths += epochs(long, folder) if long else []
    if not paths:
        raise UserError(f"{question.file}: no run yet, so there is nothing to draw")
    return paths


def page() -> str:
    """What stands on the page of experiments: the tables, and the pictures that have been drawn."""
    return "\n\n".join([table(QUESTION), *pictures.drawn(PICTURES, HERE / "pictures")])


if __name__ == "__main__":
    sys.exit(main_of(QUESTION, grid(), table, plot, __doc__))
