"""Does SMART help where labels are wrong? The fifth primary comparison: 2,000 rows of SST, 30 % wrong.

    python -m experiments.wrong_labels --data_dir path/to/data    # tunes; then, once more, compares

The seed draws the rows, and moves 30 % of their labels to a neighbouring class. Both sides are tuned alike
at 30 %, three numbers of passes and three learning rates each; the winners are compared at 0 and at 30 %.
The rule is in `tuned.py`; primary is accuracy at 30 %. R-Drop, in its paper's form, has ten seeds.
"""

import sys

from experiments.tuned import SEEDS, SMART, Arm, Tuned
from support.errors import exit_status

ARMS = {
    "plain": Arm("plain", seeds=SEEDS, passes=3),
    "SMART": Arm("SMART", SMART, seeds=SEEDS),
    "R-Drop": Arm("SMART", ("--rdrop_weight", "1"), passes=6),
}
PASSES = (2, 4, 6)
STUDY = Tuned(
    "wrong_labels",
    "SST-5, 2,000 rows, 0 and 30 % wrong labels",
    "with 2,000 rows, 30 % of the labels wrong",
    {"plain": PASSES, "SMART": PASSES},
    ARMS,
    rows=2_000,
    wrong=0.3,
    comparison_wrong=(0.0, 0.3),
)


if __name__ == "__main__":
    sys.exit(exit_status("experiments.wrong_labels", lambda: STUDY.program(__doc__)))
