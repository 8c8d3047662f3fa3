"""Does SMART help? The primary comparison: SST with 1,000 rows, SMART against the best plain training.

    python -m experiments.smart tuning --data_dir path/to/data      # nine settings a side, seeds 100 to 104
    python -m experiments.smart winners                             # writes smart_winners.json; commit it
    python -m experiments.smart comparison --data_dir path/to/data  # the winners, seeds 200 to 219
    python -m experiments.smart --table

It was finished at commit 271cdf2576cf. Both sides were tuned alike: plain over the number of passes and the
learning rate, SMART over λ and ε. `study.py` has the rule of the verdict, which was fixed before seed 200 was
run. About four hours on two cores in bf16. All of it on subsets: `python -m experiments.smart --quick`.
"""

import sys
from dataclasses import replace

from experiments.runner import Run
from experiments.study import PRECISION, TASK, Study, counted, main_of, plain

ROWS = 1000
PASS = 32  # steps of 32 rows for one pass over 1,000 rows


def smart(weight: float, epsilon: float) -> Run:
    """SMART with both terms, three passes, by λ and ε; a step of the ascent is as long as ε."""
    ball = ("--smart_epsilon", f"{epsilon:g}", "--smart_step_size", f"{epsilon:g}")
    flags = ("--use_smart", "--smart_weight", f"{weight:g}", *ball, *PRECISION)
    return Run(f"SMART weight {weight:g} epsilon {epsilon:g}", (TASK,), 0, flags, 3 * PASS, ROWS)


def arms(best: dict[str, Run]) -> dict[str, Run]:
    """The winners, and what is exploratory at their settings."""
    flags = best["SMART"].flags
    return {
        **best,
        "plain, SMART's passes": replace(best["plain"], steps=best["SMART"].steps),
        "R3F": replace(best["SMART"], flags=(*flags, "--smart_steps", "0")),
        "SMART without Bregman": replace(best["SMART"], flags=(*flags, "--bregman_weight", "0")),
        "Bregman alone": replace(best["SMART"], flags=(*flags, "--smart_weight", "0")),
        "R-Drop": replace(best["SMART"], flags=("--rdrop_weight", "1", *PRECISION)),
    }


# forward passes of a step: the clean pass and its backward pass are 3, R_s with one ascent step 5 (with noise
# alone 3), D_Breg 1, R-Drop's second pass 3
PASSES = {"plain": 3, "SMART": 9, "plain, SMART's passes": 3, "R3F": 7}
PASSES |= {"SMART without Bregman": 8, "Bregman alone": 4, "R-Drop": 6}

STUDY = Study(
    "smart",
    "SST-5 with 1,000 rows",
    "with 1,000 rows",
    {
        "plain": [plain(passes, lr, ROWS) for passes in (3, 6, 9) for lr in (5e-5, 1e-4, 2e-4)],
        "SMART": [smart(weight, epsilon) for weight in (0.5, 1, 3) for epsilon in (0.01, 0.02, 0.04)],
    },
    range(100, 105),
    arms,
    counted(PASSES),
)


if __name__ == "__main__":
    sys.exit(main_of(STUDY, __doc__))
