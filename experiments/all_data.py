"""Does SMART help with all of SST? The fourth primary comparison: 8,544 rows, both sides tuned alike.

    python -m experiments.all_data --data_dir path/to/data             # tunes; then, once more, compares
    python -m experiments.all_data --data_dir path/to/data --seeds 600 602   # one of several processes

The trainer has its defaults. Plain is tried with 2, 3 and 6 passes, SMART (both terms, λ = μ = 1,
ε = η = .04) with 2, 3 and 5, each with three learning rates, on the rows that `held_out.py` took out of
training. The rule is in `tuned.py`. Exploratory arms have seeds 600 to 609: as many forward passes of plain
as SMART takes, each term alone, R-Drop in its paper's form, R3F, and R_s and D_Breg in every 2nd, 4th, 8th
batch.

Beside the measures on dev: accuracy under the attack of question 7 on its 300 rows, at its middle ε, for five
seeds of plain, SMART and the lazy arms; and another domain: AUROC of positive against negative over all
labelled CFIMDB reviews, which needs no border between the two. They are read in pieces of 256 tokens.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from datasets import Example, read_examples, sample_rows, tokenize
from evaluation import model_outputs
from experiments.attack import attacked
from experiments.robustness import ATTACKED_ROWS, WITHIN, constant_scores
from experiments.runner import Run, finished_model
from experiments.tuned import SEEDS, SMART, SST, Arm, Tuned
from support.errors import exit_status
from tasks import TASKS, score

LAZY = (2, 4, 8)  # --smart_every
NOISE = ("--smart_steps", "0", "--smart_noise_var", "0.0016", "--bregman_weight", "0")  # σ = ε
ARMS = {
    "plain": Arm("plain", seeds=SEEDS, passes=3),
    "SMART": Arm("SMART", SMART, seeds=SEEDS),
    **{f"SMART every {n}": Arm("SMART", (*SMART, "--smart_every", str(n)), passes=3 + 6 / n) for n in LAZY},
    "R_s alone": Arm("SMART", (*SMART, "--bregman_weight", "0"), passes=8),
    "D_Breg alone": Arm("SMART", (*SMART, "--smart_weight", "0"), passes=4),
    "R-Drop": Arm("SMART", ("--rdrop_weight", "1"), passes=6),
    "R3F": Arm("SMART", (*SMART, *NOISE), passes=6),
    # plain at SMART's settings, over three times the steps
    "plain, SMART's cost": Arm("SMART", cost=3, passes=3),
}
ATTACKED = {"plain", "SMART", *(f"SMART every {n}" for n in LAZY)}


def pieces(text: str, tokenizer: Any, size: int) -> list[str]:
    """A text in pieces of at most `size` tokens, cut where the tokenizer's offsets are."""
    tokenizer.no_truncation()
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    parts = [offsets[begin : begin + size] for begin in range(0, len(offsets), size)]
    return [text[part[0][0] : part[-1][1]] for part in parts]


def more(run: Run, data_dir: Path, folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """AUROC on CFIMDB; for some arms and seeds accuracy under attack. And what they are computed from.

    The arrays: "cfimdb", a score of each review, "cfimdb labels", "sst attacked", "sst attacked labels".
    """
    model, tokenizer, config = finished_model(folder)
    cfimdb = TASKS["cfimdb"]
    size = config.max_length - 2  # [CLS] and [SEP]
    reviews = [
        row for split in ("train", "dev") for row in read_examples(data_dir / cfimdb.filename(split), cfimdb)
    ]
    rows = [(k, part) for k, row in enumerate(reviews) for part in pieces(row.texts[0], tokenizer, size)]
    examples = [Example(str(k), (part,), None) for k, part in rows]
    dataset = tokenize(examples, SST, tokenizer, config.max_length)
    probabilities = model_outputs(model, dataset, config.batch_size).softmax(-1).numpy()
    leaning = probabilities @ np.array([-1, -1, 0, 1, 1])  # P(positive) - P(negative) of each piece
    owner = np.array([k for k, _ in rows])
    means = np.bincount(owner, leaning) / np.bincount(owner)
    positive = np.array([row.label == 1 for row in reviews])
    found = {"cfimdb_auroc": float(roc_auc_score(positive, means))}
    arrays = {"cfimdb": means, "cfimdb labels": positive}
    if run.arm in ATTACKED and run.seed in SEEDS[:5]:
        dev = sample_rows(read_examples(data_dir / SST.filename("dev"), SST), ATTACKED_ROWS["sst"])
        attacked_rows = tokenize(dev, SST, tokenizer, config.max_length)
        assert attacked_rows.labels is not None, "dev files have labels"
        predicted = SST.predict(attacked(model, attacked_rows, WITHIN)).numpy()
        labels = attacked_rows.labels.numpy()
        found["under_attack"] = score(SST, predicted, labels)["accuracy"]
        found["constant_under_attack"] = constant_scores(SST, labels)["accuracy"]
        arrays |= {"sst attacked": predicted, "sst attacked labels": labels}
    return found, arrays


STUDY = Tuned(
    "all_data",
    "SST-5, all rows",
    "with all of SST",
    {"plain": (2, 3, 6), "SMART": (2, 3, 5)},
    ARMS,
    more=more,
    extra={
        "AUROC, CFIMDB": "cfimdb_auroc",
        "under attack": "under_attack",
        "a constant answer there": "constant_under_attack",
    },
)


if __name__ == "__main__":
    sys.exit(exit_status("experiments.all_data", lambda: STUDY.program(__doc__)))
