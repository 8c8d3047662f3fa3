"""The terms of the training loss beside a task's own: a record each, by name.

    Passes (the clean pass of a batch) ─ TERMS[name].function ─> a scalar

A new term is a function, its record in TERMS, and its weight, a field of TrainConfig.
Shapes: B batch, T tokens, H hidden, C outputs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mysmartloss
from config import NORMS, TrainConfig
from datasets import Batch, Task, apart

FLOOR_DELTA = 1e-5  # largest coordinate of a δ that bf16 and fp16 round away; embeddings are about 0.5


@dataclass(frozen=True)
class Passes:
    """The clean pass of a batch through the model, and how a term of the loss makes further passes.

    embeddings (B,T,H), mask (B,T) or None, logits (B,C): of the clean pass. Where the task compares its texts
    by their cosine, each is a sequence of its own, and the first two have 2B rows.
    repeat: embeddings (B,T,H) -> logits (B,C) with the dropout masks of the clean pass.
    generator: state of the random generator before the clean pass.
    measure: whether to fill `measured`, numbers for the log that cost a pass.
    """

    config: TrainConfig
    model: nn.Module
    task: Task
    batch: Batch
    embeddings: Tensor
    mask: Tensor | None
    logits: Tensor
    repeat: Callable[[Tensor], Tensor]
    generator: Tensor | None
    bregman: mysmartloss.BregmanProximal | None
    measure: bool
    measured: dict[str, Tensor]

    def whole(self, model: nn.Module) -> Tensor:
        """The logits (B,C) of a model for the batch, from the token ids on, with new dropout masks."""
        logits: Tensor = model(self.task.name, *self.batch.inputs)
        return logits


class Term(NamedTuple):
    """One term of the loss beside the task's own. Its weight is the setting `<name>_weight`.

    cost: forward passes of a step (a backward pass is 2, or 1 where only the input's gradient is wanted).
    advice: the flags to raise where the term has no measurable effect. function: -> the term, a scalar.
    kept: how many of its passes wait for the backward pass, where its cost has such.
    """

    cost: Callable[[TrainConfig], int]
    advice: str
    function: Callable[[Passes], Tensor]
    kept: Callable[[TrainConfig], int] = lambda config: 1


def smart_term(passes: Passes) -> Tensor:
    """R_s: the divergence under the worst perturbation of the embeddings (Jiang et al. 2020, equation 2)."""
    config = passes.config
    smart = mysmartloss.SMARTLoss(
        passes.repeat,
        passes.task.divergence,
        norm_fn=NORMS[config.smart_norm],
        num_steps=config.smart_steps,
        step_size=config.smart_step_size,
        epsilon=config.smart_epsilon,
        noise_var=config.smart_noise_var,
        noise_fn=passes.batch.noise,
    )
    delta = smart.perturbation(passes.embeddings, passes.logits, passes.mask)
    value = smart.at(delta, passes.embeddings, passes.logits)
    if passes.measure:
        passes.measured.update(smart.evidence(delta, passes.embeddings, passes.logits, value))
        if config.precision in ("bf16", "fp16"):
            # so far below what the type resolves that R_s reads the rounding alone
            below = delta * (FLOOR_DELTA / delta.abs().amax())
            with torch.no_grad():
                floor = smart.at(below, passes.embeddings, passes.logits)
            passes.measured["smart_floor"] = floor
    return value


def whole_norm(x: Tensor) -> Tensor:
    """‖x‖_F of each row: (B,T,H) -> (B,1,1)."""
    return torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)


def freelb_term(passes: Passes) -> Tensor:
    """FreeLB (Zhu et al. 2020, arXiv 1909.11764, Algorithm 1): the mean loss at K moves, less the clean loss.

    With weight 1 the total is then the algorithm's mean loss alone, and the backward pass adds up its K
    gradients (line 8). K is --smart_steps, α --smart_step_size, ε --smart_epsilon: 2-norms of a whole text.
    """
    config = passes.config
    labels = passes.batch.labels
    assert labels is not None, "the settings refuse texts without labels"
    embeddings = passes.embeddings
    mask = torch.ones_like(embeddings[..., 0]) if passes.mask is None else passes.mask
    real = mask.to(torch.float32)[..., None]  # (B,T,1)
    # line 4: δ_0 ← U(-ε, ε) / √N_δ, with N_δ numbers in the text; erf(ν / √2) of a normal ν is uniform
    uniform = torch.erf(passes.batch.noise(embeddings) / math.sqrt(2))
    size = real.sum((1, 2), keepdim=True) * embeddings.shape[-1]
    delta = config.smart_epsilon * uniform / size.sqrt() * real
    losses = []
    for t in range(config.smart_steps):  # line 6
        delta.requires_grad_()
        logits = passes.repeat(embeddings + delta)
        losses.append(passes.task.loss(logits, labels))
        if t + 1 < config.smart_steps:
            # lines 10 and 11: δ_t ← Π(δ_{t-1} + α g / ‖g‖_F)
            gradient = mysmartloss.ascent_gradient(logits, labels, delta, passes.task.loss, retain_graph=True)
            direction = gradient / whole_norm(gradient).clamp_min(torch.finfo(torch.float32).tiny)
            moved = (delta.detach() + config.smart_step_size * direction) * real
            delta = mysmartloss.project(moved, config.smart_epsilon, whole_norm)
    return torch.stack(losses).mean() - passes.task.loss(passes.logits, labels)


ADVERSARIES = {"smart": smart_term, "freelb": freelb_term}


def adversarial_term(passes: Passes) -> Tensor:
    """What --adversary names."""
    return ADVERSARIES[passes.config.adversary](passes)


def bregman_term(passes: Passes) -> Tensor:
    """D_Breg: the divergence from the teacher, a moving average of the model (equation 3)."""
    assert passes.bregman is not None, "the term is on, so there is a teacher"
    return passes.bregman(passes.logits, passes.whole, passes.task.divergence, passes.generator)


def rdrop_term(passes: Passes) -> Tensor:
    """R-Drop: the divergence of two passes that differ in their dropout masks (Wu et al. 2021)."""
    return passes.task.divergence(passes.whole(passes.model), passes.logits)


def in_batch_negatives(anchors: Tensor, positives: Tensor, scale: float = 20.0) -> Tensor:
    """Multiple negatives ranking: every anchor should be nearer to its own positive than to the others.

    anchors, positives (N,H) -> scalar: cross-entropy of `scale` times the cosines (N,N), where the own
    positive is the right class. Source: Henderson et al. 2017, section 4.4; sentence-transformers'
    MultipleNegativesRankingLoss.
    """
    cosines = F.normalize(anchors.float(), dim=-1) @ F.normalize(positives.float(), dim=-1).T
    return F.cross_entropy(scale * cosines, torch.arange(len(anchors), device=anchors.device))


def contrastive_term(passes: Passes) -> Tensor:
    """`in_batch_negatives` on the pairs of the batch that mean the same; each text in a pass of its own.

    Under torchrun the negatives are those of the process. 0 where there is only one such pair.
    """
    labels = passes.batch.labels
    assert labels is not None, "a task with labels"
    assert passes.task.alike_label is not None, "the settings say so"
    alike = labels.eq(passes.task.alike_label).nonzero().squeeze(1)  # a GPU is waited for
    if len(alike) < 2:
        return passes.logits.sum() * 0.0
    ids, mask, types = (None if tensor is None else tensor[alike] for tensor in passes.batch.inputs)
    ids, mask = apart(cast(Tensor, ids), mask, types)
    vectors: Tensor = cast(Any, passes.model).sentence_vectors(ids, mask)  # (2N,H)
    return in_batch_negatives(vectors[0::2], vectors[1::2])


def adversarial_cost(config: TrainConfig) -> int:
    """A step of the ascent has a forward pass and a backward pass to the embeddings alone.

    SMART's loss has one whole pass, FreeLB's has as many as there are moves, with an ascent between two.
    """
    if config.adversary == "freelb":
        return 4 * config.smart_steps - 1
    return 2 * config.smart_steps + 3


TERMS = {
    "smart": Term(
        adversarial_cost,
        "--smart_epsilon or --smart_step_size",
        adversarial_term,
        kept=lambda config: config.smart_steps if config.adversary == "freelb" else 1,
    ),
    "bregman": Term(lambda config: 1, "--bregman_weight or --bregman_beta", bregman_term),
    "rdrop": Term(lambda config: 3, "--rdrop_weight", rdrop_term),
    "contrastive": Term(lambda config: 3, "--contrastive_weight", contrastive_term),
}
