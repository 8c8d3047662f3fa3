"""A projected-gradient attack on a model's embeddings.

    Batch ─ embed ─> x (B,T,H) ─ attack: the worst δ, ‖δ‖_∞ ≤ ε ─> x + δ ─ encode, head ─> outputs (B,C)

It is SMART's ascent (`mysmartloss`: the gradient, the projection) with the label in place of the clean
outputs, more steps, several random starts, and the sign of the gradient: the longest step that fits in a box
(Madry et al. 2018). A step is 2.5 ε / steps long, so that every start can cross the whole box, which is 2 ε
wide, and a little is left to settle. Every point on the way counts, not the last one alone.

Shapes: B batch, T tokens, H hidden, C outputs. Not handled: heads that compare two texts by a cosine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from datasets import Batch, Task, TokenizedDataset, evaluation_batches
from multitask_classifier import MultitaskBERT
from mysmartloss import ascent_gradient, project

BATCH_ROWS = 32


class Worst(NamedTuple):
    """The worst that was found for each row: outputs (B,C) at x + δ, and δ (B,T,H), 0 on padding."""

    outputs: Tensor
    delta: Tensor


class Strength(NamedTuple):
    """How hard the attack tries: steps of one ascent, and ascents from other random starts."""

    steps: int
    restarts: int


FULL = Strength(steps=20, restarts=3)


def damage(task: Task, outputs: Tensor, labels: Tensor) -> Tensor:
    """What the attack makes large, of each row: outputs (B,C), labels (B,) -> (B,).

    Of classes it is the lead of the best wrong logit over the right one, above 0 where the row is wrong. The
    cross entropy would not do: its gradient vanishes where a model is sure of itself, and so such a model
    would look robust. Of a regression it is the squared error.
    """
    if not task.label_names:
        return (outputs.squeeze(-1) - labels) ** 2
    if outputs.shape[1] == 1:  # the logit of class 1
        return (1 - 2 * labels) * outputs.squeeze(-1)
    right = labels.long()[:, None]  # (B,1)
    wrong = outputs.scatter(1, right, -torch.inf)
    return wrong.amax(1) - outputs.gather(1, right).squeeze(1)


def fallen(task: Task, outputs: Tensor, labels: Tensor) -> Tensor:
    """Which rows are wrong: outputs (B,C), labels (B,) -> bool (B,). A score is never simply wrong."""
    if not task.label_names:
        return torch.zeros_like(labels, dtype=torch.bool)
    return task.predict(outputs) != labels


@contextmanager
def evaluating(model: MultitaskBERT) -> Iterator[None]:
    """Inside the block: no dropout, fp32. Mode and compute type are restored afterwards."""
    before = model.training, model.compute_type
    model.eval()
    model.compute_type = None
    try:
        yield
    finally:
        model.train(before[0])
        model.compute_type = before[1]


def embedded(model: MultitaskBERT, batch: Batch) -> tuple[Tensor, Tensor]:
    """The embeddings (B,T,H) of a batch, and True for its real tokens (B,T)."""
    with torch.no_grad():
        x = model.bert.embed(batch.input_ids, batch.token_type_ids)
    mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
    return x, mask.bool()


def attack(
    model: MultitaskBERT,
    task: Task,
    batch: Batch,
    epsilon: float,
    strength: Strength = FULL,
    generator: torch.Generator | None = None,
) -> Worst:
    """The worst outputs within ε, in units of the embeddings, of each row of a batch.

    A row that has fallen is left alone, also one that is wrong without an attack: of classes only that
    counts, and most of the time is saved. The generator draws the starts, the same for every model; padding
    does not move. The model gets no gradients and is left as it was. Raises ValueError without labels.
    """
    if (labels := batch.labels) is None:
        raise ValueError("an attack needs labels")

    def harm(outputs: Tensor, labels: Tensor) -> Tensor:
        return damage(task, outputs, labels).sum()  # rows do not touch each other

    with evaluating(model):
        x, mask = embedded(model, batch)
        with torch.no_grad():
            worst = Worst(model.logits(task.name, x, mask), torch.zeros_like(x))
        for _ in range(strength.restarts if epsilon else 0):
            delta = (2 * torch.rand(x.shape, generator=generator).to(x) - 1) * epsilon * mask[..., None]
            for step in range(strength.steps + 1):
                rows = torch.nonzero(~fallen(task, worst.outputs, labels)).squeeze(1)  # (b,)
                if not len(rows):
                    break
                moved = delta[rows].requires_grad_()  # (b,T,H)
                outputs = model.logits(task.name, x[rows] + moved, mask[rows])  # (b,C)
                so_far = damage(task, worst.outputs[rows], labels[rows])
                worse = damage(task, outputs.detach(), labels[rows]) > so_far
                worst.outputs[rows[worse]] = outputs.detach()[worse]
                worst.delta[rows[worse]] = moved.detach()[worse]
                if step < strength.steps:
                    uphill = ascent_gradient(outputs, labels[rows], moved, harm).sign()
                    step_up = 2.5 * epsilon / strength.steps * uphill * mask[rows][..., None]
                    delta[rows] = project(moved.detach() + step_up, epsilon)
    return worst


def attacked(
    model: MultitaskBERT, dataset: TokenizedDataset, epsilon: float, strength: Strength = FULL
) -> Tensor:
    """Outputs (rows,C) of a whole data set under attack, in file order, on the CPU.

    The generator starts from the same state in every call, so the starts are the same for all models. Raises
    ValueError without labels.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    outputs = torch.empty(len(dataset), dataset.task.num_outputs)
    for batch in evaluation_batches(dataset, BATCH_ROWS):
        worst = attack(model, dataset.task, batch.to(device), epsilon, strength, generator)
        outputs[torch.from_numpy(batch.rows)] = worst.outputs.cpu()
    return outputs
