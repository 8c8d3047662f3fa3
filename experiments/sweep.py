"""Choose SMART's defaults by measurement: many short runs of the main program and a table of their scores.

    python experiments/sweep.py --data_dir path/to/data --work_dir runs/sweep   # does the missing runs
    python experiments/sweep.py --table                                         # prints the table of all runs

Each run trains one task on 1,000 rows for 96 steps of 32 rows (3 passes). Regularisation has an effect on so
few rows, but not on the full data. The whole dev set is scored once, at the end: choosing the best epoch
would favour noisy runs. Each finished run adds one line to `experiments/sweep.jsonl`. An interrupted run is
resumed from its own checkpoint.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "sweep.jsonl"
TASKS = {"sst": "accuracy", "sts": "pearson"}
# Short test files from the sample, since these predictions are not used.
SHORT = {"sst": "ids-sst-test-student.csv", "sts": "sts-test-student.csv"}
COMMON = ["--max_train_samples=1000", "--epochs=1", "--steps_per_epoch=96", "--keep=student"]
SAMPLE = HERE.parent / "data" / "sample"


def smart(epsilon: float, weight: float = 1.0, mu: float = 0.0, step: float = 1.0) -> list[str]:
    """The flags of a SMART run: epsilon is ε, weight λ_s, mu μ, and step is η / ε."""
    settings = {
        "smart_epsilon": epsilon,
        "smart_step_size": step * epsilon,
        "smart_weight": weight,
        "bregman_weight": mu,
    }
    return ["--use_smart", *(f"--{name}={value:g}" for name, value in settings.items())]


# Where the name does not say otherwise: λ = 1, η = ε, μ = 0.
SETTINGS: dict[str, list[str]] = {
    "plain": [],
    "ε=0.03": smart(0.03),
    "ε=0.1": smart(0.1),
    "ε=0.03 μ=1": smart(0.03, mu=1.0),
    "μ=1 alone": smart(0.03, weight=0.0, mu=1.0),
    "ε=0.01": smart(0.01),
    "ε=0.1 λ=5": smart(0.1, weight=5.0),
    "ε=0.01 μ=1": smart(0.01, mu=1.0),
    "ε=0.01 η=3ε": smart(0.01, step=3.0),
    "ε=0.01 η=ε/3": smart(0.01, step=1 / 3),
    "ε=0.01 λ=5": smart(0.01, weight=5.0),
    "μ=1 alone, paper's β": [*smart(0.01, weight=0.0, mu=1.0), "--bregman_beta=paper"],
    "μ=1 alone, β=0.97": [*smart(0.01, weight=0.0, mu=1.0), "--bregman_beta=0.97"],
    "R-Drop 1": ["--rdrop_weight=1"],
}


def measured() -> dict[tuple[str, str, int], dict[str, Any]]:
    """The lines of `sweep.jsonl`, by setting, task and seed."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    return {(line["setting"], line["task"], line["seed"]): line for line in map(json.loads, lines)}


def run(setting: str, task: str, seed: int, data_dir: str, work_dir: Path) -> None:
    """One run of the main program, or the rest of an interrupted run. Appends its line to `sweep.jsonl`."""
    folder = work_dir / f"{list(SETTINGS).index(setting):02d}-{task}-{seed}"
    if (folder / "last").exists():
        flags = ["--resume"]
    else:
        flags = [*COMMON, *SETTINGS[setting], "--tasks", task, "--seed", str(seed)]
    flags += [f"--{task}_test", str(SAMPLE / SHORT[task])]
    flags += ["--data_dir", data_dir, "--output_dir", str(folder)]
    command = [sys.executable, str(HERE.parent / "multitask_classifier.py"), "--no_report", *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    results = json.loads((folder / "results.json").read_text())
    line = {
        "setting": setting,
        "task": task,
        "seed": seed,
        "score": results["dev"][task][TASKS[task]],
        "seconds": results["train_seconds"],
    }
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def table() -> str:
    """Dev scores as a Markdown table, the score of each seed and their mean.

    Every seed is shown because seeds differ by more than settings do.
    """
    results = measured()
    seeds = sorted({seed for _, _, seed in results})
    rows = [
        f"| setting | SST accuracy, seed {', '.join(map(str, seeds))} | mean | STS Pearson | mean |",
        "|---|---|---|---|---|",
    ]
    for setting in SETTINGS:
        cells = []
        for task in TASKS:
            runs = [results[setting, task, seed] for seed in seeds if (setting, task, seed) in results]
            scores = [run["score"] for run in runs]
            if scores:
                shown = ", ".join(f"{score:.3f}" for score in scores)
                cells.append(f"{shown} | {statistics.fmean(scores):.4f}")
        if cells:
            rows.append(f"| {setting} | {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", help="folder of the course's files")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--table", action="store_true", help="print the table without new runs")
    arguments = parser.parse_args()
    if not arguments.table and not arguments.data_dir:
        parser.error("--data_dir is needed to run")
    for seed in [] if arguments.table else arguments.seeds:
        for setting in arguments.settings:
            for task in TASKS:
                if (setting, task, seed) not in measured():
                    run(setting, task, seed, arguments.data_dir, arguments.work_dir)
    print(table())
