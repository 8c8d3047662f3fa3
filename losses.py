"""The terms of the training loss beside a task's own: a record each, by name.

    Passes (the clean pass of a batch) ─ TERMS[name].function ─> a scalar

A new term is a function, its record in TERMS, and its weight, a field of TrainConfig.
Shapes: B batch, T tokens, H hidden, C outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

import mysmartloss
from config import NORMS, TrainConfig
from datasets import Batch, Task

FLOOR_DELTA = 1e-5  # largest coordinate of a δ that bf16 and fp16 round away; embeddings are about 0.5


@dataclass(frozen=True)
class Passes:
    """The clean pass of a batch through the model, and how a term of the loss makes further passes.

    embeddings (B,T,H), logits (B,C): of the clean pass.
    repeat: embeddings (B,T,H) -> logits (B,C) with the dropout masks of the clean pass.
    generator: state of the random generator before the clean pass.
    measure: whether to fill `measured`, numbers for the log that cost a pass.
    """

    config: TrainConfig
    model: nn.Module
    task: Task
    batch: Batch
    embeddings: Tensor
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
    """

    cost: Callable[[TrainConfig], int]
    advice: str
    function: Callable[[Passes], Tensor]


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
    delta = smart.perturbation(passes.embeddings, passes.logits, passes.batch.attention_mask)
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


def bregman_term(passes: Passes) -> Tensor:
    """D_Breg: the divergence from the teacher, a moving average of the model (equation 3)."""
    assert passes.bregman is not None, "the term is on, so there is a teacher"
    return passes.bregman(passes.logits, passes.whole, passes.task.divergence, passes.generator)


def rdrop_term(passes: Passes) -> Tensor:
    """R-Drop: the divergence of two passes that differ in their dropout masks (Wu et al. 2021)."""
    return passes.task.divergence(passes.whole(passes.model), passes.logits)


TERMS = {
    "smart": Term(
        lambda config: 2 * config.smart_steps + 3, "--smart_epsilon or --smart_step_size", smart_term
    ),
    "bregman": Term(lambda config: 1, "--bregman_weight or --bregman_beta", bregman_term),
    "rdrop": Term(lambda config: 3, "--rdrop_weight", rdrop_term),
}
