"""Do texts without labels earn SMART's cost? The second primary comparison: SST with 250 labels.

250 rows were drawn by the seed. The other training sentences came without their labels, under R_s and D_Breg
alone, a batch of them after each labelled batch: 96 labelled steps and as many unlabelled ones. The rival was
the best plain training on the 250 rows that as many forward passes can buy.

Both sides were tuned alike on seeds 100 to 102, nine settings each. Plain: 12, 24 or 72 passes over the rows
(8 steps of 32 rows each), learning rate 5e-5, 1e-4 or 2e-4; 72 passes cost what SMART's steps cost. SMART:
λ_s 1, 3 or 10, ε .02, .1 or .5, μ = 1 and η = ε. The rule in `study.py` was fixed before the first run of
seed 200. The exploratory arm is SMART's winner on the labelled rows alone. Finished at commit 5313b272afb0.
"""

from experiments.study import Study

STUDY = Study(
    "unlabelled",
    "SST-5 with 250 labels",
    "with 250 labels and unlabelled texts",
    "SMART, texts without labels",
    # forward passes of a step, labelled or not
    {"plain": 3, "SMART, texts without labels": 9, "SMART, labelled rows alone": 9},
)
