"""Do texts without labels earn SMART's cost? The second primary comparison: SST with 250 labels.

    python -m experiments.unlabelled tuning --data_dir path/to/data      # nine settings a side
    python -m experiments.unlabelled winners                             # writes unlabelled_winners.json
    python -m experiments.unlabelled comparison --data_dir path/to/data  # the winners, seeds 200 to 219
    python -m experiments.unlabelled --table

250 rows are drawn by the seed. The other training sentences come without their labels, under R_s and D_Breg
alone, a batch of them after each labelled batch. The rival is the best plain training on the 250 rows that as
many passes can buy. The rule of the verdict is that of experiments/smart.py, fixed before seed 200 is run.
"""

import sys
from dataclasses import replace
from pathlib import Path

from experiments.runner import HERE, Question, Run, chosen_runs, guarded, parser_of, run_grid
from experiments.smart import (
    PRECISION,
    TASK,
    Study,
    check_committed,
    choose_winners,
    chosen_winners,
    plain,
    table,
    tuning_grid,
    tuning_table,
)

ROWS = 250
PASS = 8  # steps of 32 rows for one pass over 250 rows
LABELLED_STEPS = 12 * PASS
# a step with both terms costs 9 forward passes, a plain one 3; half of SMART's steps are unlabelled
EQUAL_COST_PASSES = 2 * 12 * 9 // 3
TUNING_SEEDS = range(100, 103)
SEEDS = range(200, 220)
JUDGED = "SMART, texts without labels"


def unlabelled(weight: float, epsilon: float) -> Run:
    """Both terms on labelled and unlabelled batches in turn, by λ and ε; μ is 1."""
    ball = ("--smart_epsilon", f"{epsilon:g}", "--smart_step_size", f"{epsilon:g}")
    flags = ("--use_smart", "--smart_weight", f"{weight:g}", *ball, *PRECISION)
    arm = f"unlabelled weight {weight:g} epsilon {epsilon:g}"
    return Run(arm, (TASK,), 0, flags, 2 * LABELLED_STEPS, ROWS, unlabelled=TASK)


SETTINGS = {
    "plain": [plain(passes, lr, ROWS) for passes in (12, 24, EQUAL_COST_PASSES) for lr in (5e-5, 1e-4, 2e-4)],
    JUDGED: [unlabelled(weight, epsilon) for weight in (1, 3, 10) for epsilon in (0.02, 0.1, 0.5)],
}
STUDY = Study(
    Question("unlabelled_tuning"), Question("unlabelled_comparison"), HERE / "unlabelled_winners.json"
)


def comparison_grid(winners: Path) -> list[Run]:
    """The winners of both sides; exploratory: SMART's winner on the labelled rows alone.

    Raises UserError without winners.
    """
    best = chosen_winners(winners, SETTINGS)
    arms = {
        "plain": best["plain"],
        JUDGED: best[JUDGED],
        "SMART, labelled rows alone": replace(best[JUDGED], steps=LABELLED_STEPS, unlabelled=""),
    }
    runs = [replace(run, arm=arm, seed=seed) for seed in SEEDS for arm, run in arms.items()]
    return sorted(runs, key=lambda run: run.arm not in ("plain", JUDGED))  # stable: seeds stay in order


def main() -> int:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("what", nargs="?", choices=("tuning", "winners", "comparison"))
    options = parser.parse_args()
    if not (options.what or options.table):
        parser.error("say what: tuning, winners, comparison or --table")
    if options.data_dir:
        options.data_dir = Path(options.data_dir)

    def run() -> None:
        if options.what == "tuning":
            grid = chosen_runs(options, tuning_grid(SETTINGS, TUNING_SEEDS))
            run_grid(STUDY.tuning, grid, options.data_dir, options.work_dir)
        elif options.what == "winners":
            choose_winners(STUDY, TUNING_SEEDS, SETTINGS)
        elif options.what == "comparison":
            check_committed(STUDY.winners)
            grid = chosen_runs(options, comparison_grid(STUDY.winners))
            run_grid(STUDY.comparison, grid, options.data_dir, options.work_dir)
        print(f"{tuning_table(STUDY.tuning, SETTINGS)}\n\n{table(STUDY.comparison, JUDGED)}")

    return guarded(run)


if __name__ == "__main__":
    sys.exit(main())
