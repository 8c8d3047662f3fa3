"""The runs behind SMART's defaults, and their table.

    python -m experiments.sweep

The runs are older than the runner, so this file can only print them. Each trained one task on 1,000 rows, the
same for all seeds, for 96 steps of 32 rows (3 passes). The whole dev set was scored once, at the end, with
the student. Where a setting says nothing else: λ_s = 1, η = ε, μ = 0, β = `fitted`.
"""

import json
import statistics
from pathlib import Path

LINES = Path(__file__).resolve().parent / "sweep.jsonl"
TASKS = ("sst", "sts")
Scores = dict[tuple[str, str, int], float]  # by setting, task, seed


def kept_scores() -> Scores:
    """Dev accuracy of sst and Pearson correlation of sts, from `sweep.jsonl`."""
    lines = map(json.loads, LINES.read_text(encoding="utf-8").splitlines())
    return {(line["setting"], line["task"], line["seed"]): line["score"] for line in lines}


def table(scores: Scores) -> str:
    """Scores of each seed, since seeds differ by more than settings do, and the mean of both tasks."""
    rows = [
        "| setting | SST, seeds 0, 1 | STS, seeds 0, 1 | both tasks, seed 0 | both tasks, both seeds |",
        "|---|---|---|---|---|",
    ]
    for setting in dict.fromkeys(setting for setting, _, _ in scores):
        seeds = [
            [score for (name, of, _), score in sorted(scores.items()) if (name, of) == (setting, task)]
            for task in TASKS
        ]
        cells = [", ".join(f"{score:.3f}" for score in task) for task in seeds]
        cells.append(f"{statistics.fmean(task[0] for task in seeds):.4f}")
        both = len(seeds[0]) > 1
        cells.append(f"{statistics.fmean(statistics.fmean(task) for task in seeds):.4f}" if both else "")
        rows.append(f"| {setting} | {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table(kept_scores()))
