"""Does SMART help? The primary comparison: SST with 1,000 rows, SMART against the best plain training.

    python -m experiments.smart tuning --data_dir path/to/data      # nine settings a side, seeds 100 to 104
    python -m experiments.smart winners                             # writes smart_winners.json; commit it
    python -m experiments.smart comparison --data_dir path/to/data  # the winners, seeds 200 to 219
    python -m experiments.smart table

The rule is fixed before seed 200 is run. Both sides are tuned alike: plain over the number of passes and the
learning rate, SMART over λ and ε. A gain or a loss is claimed at p < .01 (two-sided paired permutation over
seeds). Else it is "no gain" if the 95 % interval over seeds lies within ±1 point, else "not decided".

About four hours on two cores in bf16.
"""

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from datasets import read_examples
from experiments.inference import bootstrap, paired, verdict
from experiments.runner import HERE, Question, Run, commit, run_grid
from tasks import TASKS

TUNING = Question("smart_tuning")
COMPARISON = Question("smart_comparison")
WINNERS = HERE / "smart_winners.json"
TASK = "sst"
ROWS = 1000
PASS = 32  # steps of 32 rows for one pass over 1,000 rows
TUNING_SEEDS = range(100, 105)
SEEDS = range(200, 220)
PRECISION = ("--precision", "bf16")


def plain(passes: int, lr: float) -> Run:
    """A plain training, by how often it sees each row and its learning rate."""
    flags = ("--lr", f"{lr:g}", *PRECISION)
    return Run(f"plain {passes} passes lr {lr:g}", (TASK,), 0, flags, passes * PASS, ROWS)


def smart(weight: float, epsilon: float) -> Run:
    """SMART with both terms, three passes, by λ and ε; a step of the ascent is as long as ε."""
    ball = ("--smart_epsilon", f"{epsilon:g}", "--smart_step_size", f"{epsilon:g}")
    flags = ("--use_smart", "--smart_weight", f"{weight:g}", *ball, *PRECISION)
    return Run(f"SMART weight {weight:g} epsilon {epsilon:g}", (TASK,), 0, flags, 3 * PASS, ROWS)


SETTINGS = {
    "plain": [plain(passes, lr) for passes in (3, 6, 9) for lr in (5e-5, 1e-4, 2e-4)],
    "SMART": [smart(weight, epsilon) for weight in (0.5, 1, 3) for epsilon in (0.01, 0.02, 0.04)],
}


def with_seed(run: Run, seed: int, arm: str | None = None) -> Run:
    """The run with another seed, and perhaps under another name."""
    return Run(arm or run.arm, run.tasks, seed, run.flags, run.steps, run.train_rows)


def tuning_grid() -> list[Run]:
    """Every setting of both sides, seed by seed."""
    settings = [run for side in SETTINGS.values() for run in side]
    return [with_seed(run, seed) for seed in TUNING_SEEDS for run in settings]


def comparison_grid() -> list[Run]:
    """The winners, and what is exploratory at their settings. Raises FileNotFoundError without winners."""
    winners = json.loads(WINNERS.read_text(encoding="utf-8"))
    best = {side: next(run for run in SETTINGS[side] if run.arm == winners[side]) for side in SETTINGS}
    flags = best["SMART"].flags
    arms = {
        "plain": best["plain"],
        "SMART": best["SMART"],
        "plain, SMART's passes": Run("", (TASK,), 0, best["plain"].flags, best["SMART"].steps, ROWS),
        "R3F": Run("", (TASK,), 0, (*flags, "--smart_steps", "0"), best["SMART"].steps, ROWS),
        "SMART without Bregman": Run(
            "", (TASK,), 0, (*flags, "--bregman_weight", "0"), best["SMART"].steps, ROWS
        ),
        "Bregman alone": Run("", (TASK,), 0, (*flags, "--smart_weight", "0"), best["SMART"].steps, ROWS),
        "R-Drop": Run("", (TASK,), 0, ("--rdrop_weight", "1", *PRECISION), best["SMART"].steps, ROWS),
    }
    primary = [with_seed(arms[name], seed, name) for seed in SEEDS for name in ("plain", "SMART")]
    exploratory = [name for name in arms if name not in ("plain", "SMART")]
    return primary + [with_seed(arms[name], seed, name) for seed in SEEDS for name in exploratory]


def accuracies(lines: list[dict[str, Any]], arm: str) -> dict[int, float]:
    """Dev accuracy by seed."""
    return {line["seed"]: line["dev"][TASK]["accuracy"] for line in lines if line["arm"] == arm}


def choose_winners() -> None:
    """Write the setting of each side with the highest mean over the tuning seeds.

    Raises ValueError if a setting lacks runs.
    """
    lines = TUNING.lines()
    winners: dict[str, Any] = {}
    for side, settings in SETTINGS.items():
        means = {}
        for run in settings:
            scores = accuracies(lines, run.arm)
            if set(scores) != set(TUNING_SEEDS):
                raise ValueError(f"{run.arm}: {len(scores)} of {len(TUNING_SEEDS)} seeds have been run")
            means[run.arm] = statistics.fmean(scores.values())
        winners[side] = max(means, key=lambda arm: means[arm])
        winners[f"{side} means"] = means
    winners["commit"] = commit()
    WINNERS.write_text(json.dumps(winners, indent=1) + "\n", encoding="utf-8")
    print({side: winners[side] for side in SETTINGS})


def right_rows(arm: str, seeds: list[int], labels: np.ndarray) -> np.ndarray:
    """(seeds, rows): 1 where the kept prediction of a run is right."""
    rows = []
    for seed in seeds:
        with np.load(COMPARISON.predictions(Run(arm, (TASK,), seed, (), 0))) as kept:
            rows.append(kept[TASK] == labels)
    return np.array(rows, dtype=np.float64)


def table(labels: np.ndarray | None = None) -> str:
    """Each arm beside plain, over the seeds that both have; with dev labels an interval over rows, too."""
    lines = COMPARISON.lines()
    base = accuracies(lines, "plain")
    heads = [
        "arm",
        "seeds",
        "accuracy",
        "difference (95 % over seeds)",
        "over seeds and rows",
        "seconds",
        "verdict",
    ]
    rows = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for arm in dict.fromkeys(line["arm"] for line in lines):
        scores = accuracies(lines, arm)
        seeds = sorted(set(scores) & set(base))
        first = [base[seed] for seed in seeds]
        second = [scores[seed] for seed in seeds]
        seconds = statistics.fmean(line["seconds"] for line in lines if line["arm"] == arm)
        cells = [arm, str(len(seeds)), f"{statistics.fmean(second):.4f}"]
        if arm == "plain" or len(seeds) < 2:
            cells += ["", "", f"{seconds:.0f}", ""]
        else:
            mean, low, high = paired(first, second)
            cells.append(f"{mean:+.4f} ({low:+.4f} to {high:+.4f})")
            sides = None if labels is None else [right_rows(name, seeds, labels) for name in ("plain", arm)]
            cells.append("" if sides is None else "{:+.4f} to {:+.4f}".format(*bootstrap(*sides)))
            cells += [f"{seconds:.0f}", verdict(first, second) if arm == "SMART" else "exploratory"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("tuning", "winners", "comparison", "table"))
    parser.add_argument("--data_dir", type=Path, default=os.environ.get("SMART_BERT_DATA_DIR"))
    parser.add_argument("--work_dir", type=Path, default=Path("runs/experiments"))
    options = parser.parse_args()
    if options.what in ("tuning", "comparison") and not options.data_dir:
        parser.error("--data_dir: the folder of the course's files is needed (or SMART_BERT_DATA_DIR)")
    if options.what == "tuning":
        run_grid(TUNING, tuning_grid(), options.data_dir, options.work_dir)
    elif options.what == "winners":
        choose_winners()
    elif options.what == "comparison":
        run_grid(COMPARISON, comparison_grid(), options.data_dir, options.work_dir)
    else:
        labels = None
        if options.data_dir:
            dev = read_examples(Path(options.data_dir) / TASKS[TASK].filename("dev"), TASKS[TASK])
            labels = np.array([example.label for example in dev])
        print(table(labels))


if __name__ == "__main__":
    main()
