"""How large is ε? The attack's δ and SMART's beside the distance from a word to the nearest other word.

    python -m experiments.distance     # one to two minutes; no data but the bundled rows

Tokens of the bundled dev rows of SST, the embedded encoder before training. Distance is by the largest
coordinate, as ε is: of a token's embedding from that of every other word at the same place. δ is that of the
attack at question 7's middle ε, and that of SMART's ascent with the settings of its runs, on a fresh head.
"""

import json
import statistics
from collections.abc import Sequence

import numpy as np
import torch

from base_bert import load_tokenizer
from bert import BertModel
from datasets import Batch, evaluation_batches, read_examples, tokenize
from experiments.attack import attack, embedded
from experiments.robustness import WITHIN
from experiments.runner import SAMPLE
from experiments.tables import Line, Question, markdown
from multitask_classifier import MultitaskBERT
from mysmartloss import SMARTLoss, delta_ratio
from support.files import write_text
from tasks import TASKS

SMART_EPSILON = 0.04  # and η
SST = TASKS["sst"]


def model_and_rows() -> tuple[MultitaskBERT, Batch, list[int]]:
    """The encoder with a fresh head, 50 rows as one batch, and the ids of what counts as a word."""
    tokenizer = load_tokenizer()
    dataset = tokenize(read_examples(SAMPLE / SST.filename("dev"), SST), SST, tokenizer, 128)
    (batch,) = evaluation_batches(dataset, len(dataset))
    words = [number for word, number in tokenizer.get_vocab().items() if not word.startswith("[")]
    return MultitaskBERT(BertModel.from_pretrained(), tasks=["sst"]).eval(), batch, sorted(words)


@torch.no_grad()
def nearest(model: MultitaskBERT, batch: Batch, words: Sequence[int], count: int) -> list[float]:
    """Distance to the nearest other word of so many tokens (by chance, the same in each call), in ∞-norm."""
    bert = model.bert
    rows, places = np.nonzero(np.isin(batch.input_ids.numpy(), words))
    distances = []
    for k in np.random.default_rng(0).permutation(len(rows))[:count]:
        token, place = int(batch.input_ids[rows[k], places[k]]), places[k]
        tables = (
            bert.word_embedding.weight,
            bert.pos_embedding.weight[place],
            bert.tk_type_embedding.weight[0],
        )
        x = bert.embed_layer_norm(sum(tables))
        others = [word for word in words if word != token]
        distances.append(float((x[others] - x[token]).abs().amax(1).min()))
    return distances


def main() -> None:
    """Measure, write the line, print it."""
    model, batch, words = model_and_rows()
    x, mask = embedded(model, batch)
    smart = SMARTLoss(
        lambda moved: model.logits("sst", moved, mask),
        SST.divergence,
        step_size=SMART_EPSILON,
        epsilon=SMART_EPSILON,
    )
    deltas = (
        attack(model, SST, batch, WITHIN).delta,
        smart.perturbation(x, model.logits("sst", x, mask), mask),
    )
    line: Line = {"delta": [float(delta_ratio(delta, x)) for delta in deltas]}
    line["nearest"] = nearest(model, batch, words, 200)
    write_text(QUESTION.file, json.dumps(line) + "\n")
    print(shown([line]))


def shown(lines: Sequence[Line]) -> str:
    """Both ε in units of the distance, and how long both δ are."""
    (line,) = lines
    distance = statistics.median(line["nearest"])
    sides = zip(("attack", "SMART, in training"), (WITHIN, SMART_EPSILON), line["delta"], strict=True)
    rows = [[side, f"{eps:g}", f"{eps / distance:.2%}", f"{delta:.1%}"] for side, eps, delta in sides]
    return markdown(["", "ε", "of the distance to the nearest other word", "‖δ‖ / ‖embedding‖"], rows)


QUESTION = Question("distance", shown)

if __name__ == "__main__":
    main()
