"""Do texts without labels earn SMART's cost? The second primary comparison: SST with 250 labels.

    python -m experiments.unlabelled tuning --data_dir path/to/data      # nine settings a side
    python -m experiments.unlabelled winners                             # writes unlabelled_winners.json
    python -m experiments.unlabelled comparison --data_dir path/to/data  # the winners, seeds 200 to 219
    python -m experiments.unlabelled --table

It was finished at commit 5313b272afb0. 250 rows are drawn by the seed. The other training sentences come
without their labels, under R_s and D_Breg alone, a batch of them after each labelled batch. The rival is the
best plain training on the 250 rows that as many passes can buy. `study.py` has the rule of the verdict, which
was fixed before seed 200 was run.

About six hours of one core in bf16. All of it on subsets: `python -m experiments.unlabelled --quick`.
"""

import sys
from dataclasses import replace

from experiments.runner import Run
from experiments.study import PRECISION, TASK, Study, counted, main_of, plain

ROWS = 250
PASS = 8  # steps of 32 rows for one pass over 250 rows
LABELLED_STEPS = 12 * PASS
# a step with both terms costs 9 forward passes, a plain one 3; half of SMART's steps are unlabelled
EQUAL_COST_PASSES = 2 * 12 * 9 // 3
JUDGED = "SMART, texts without labels"


def unlabelled(weight: float, epsilon: float) -> Run:
    """Both terms on labelled and unlabelled batches in turn, by λ and ε; μ is 1."""
    ball = ("--smart_epsilon", f"{epsilon:g}", "--smart_step_size", f"{epsilon:g}")
    flags = ("--use_smart", "--smart_weight", f"{weight:g}", *ball, *PRECISION)
    arm = f"unlabelled weight {weight:g} epsilon {epsilon:g}"
    return Run(arm, (TASK,), 0, flags, 2 * LABELLED_STEPS, ROWS, unlabelled=TASK)


def arms(best: dict[str, Run]) -> dict[str, Run]:
    """The winners; exploratory: SMART's winner on the labelled rows alone."""
    return {**best, "SMART, labelled rows alone": replace(best[JUDGED], steps=LABELLED_STEPS, unlabelled="")}


# forward passes of a step, labelled or not
PASSES = {"plain": 3, JUDGED: 9, "SMART, labelled rows alone": 9}

STUDY = Study(
    "unlabelled",
    "SST-5 with 250 labels",
    "with 250 labels, and the other sentences without theirs",
    {
        "plain": [
            plain(passes, lr, ROWS) for passes in (12, 24, EQUAL_COST_PASSES) for lr in (5e-5, 1e-4, 2e-4)
        ],
        JUDGED: [unlabelled(weight, epsilon) for weight in (1, 3, 10) for epsilon in (0.02, 0.1, 0.5)],
    },
    range(100, 103),
    arms,
    counted(PASSES),
)


if __name__ == "__main__":
    sys.exit(main_of(STUDY, __doc__))
