"""Does SMART help? The primary comparison: SST with 1,000 rows, SMART against the best plain training.

Both sides were tuned alike on seeds 100 to 104, nine settings each. Plain: 3, 6 or 9 passes over the rows
(32 steps of 32 rows each), learning rate 5e-5, 1e-4 or 2e-4. SMART: both terms, 3 passes, λ_s .5, 1 or 3,
ε .01, .02 or .04, and η = ε. The rule in `study.py` was fixed before the first run of seed 200. Each
exploratory arm changes one thing: "plain, SMART's passes" is plain's winner over 3 passes, R3F is SMART's
winner without a step of the ascent, the others leave out a term or have R-Drop (weight 1) instead. Finished
at commit 271cdf2576cf.
"""

from experiments.study import Study

# forward passes of a step: the clean pass and its backward pass are 3, R_s with one ascent step 5 (with noise
# alone 3), D_Breg 1, R-Drop's second pass 3
PASSES: dict[str, float] = {
    "plain": 3,
    "SMART": 9,
    "plain, SMART's passes": 3,
    "R3F": 7,
    "SMART without Bregman": 8,
    "Bregman alone": 4,
    "R-Drop": 6,
}
STUDY = Study("smart", "SST-5 with 1,000 rows", "with 1,000 rows (plain: twice the passes)", "SMART", PASSES)
