"""SMART's Algorithm 1, line by line, on transformers' BERT: what the project's own training is compared with.

It is written from the papers and the course's handout, without this project's modules. There is no dropout.
A comment quotes the line of Algorithm 1 (Jiang et al. 2020) that the code below it carries out.
B batch, T tokens, H hidden, C outputs.

`config` holds the papers' hyperparameters by the program's names: lr (α at its peak),
max_grad_norm, weight_decay, smart_norm (p of the ball, 2 or inf), smart_epsilon (ε), smart_step_size (η),
smart_noise_var (σ²), smart_steps (T_x̃), and by task smart_weight (λ_s) and bregman_weight (μ).
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn


@dataclass(frozen=True)
class Rows:
    """A batch of one task, and the random numbers that Algorithm 1 draws for it."""

    task: str
    input_ids: Tensor  # (B,T)
    token_type_ids: Tensor  # (B,T)
    real: Tensor  # (B,T), 1 for a token and 0 for padding
    labels: Tensor  # (B,)
    noise: Tensor  # (B,T,H), standard normal


class Model(nn.Module):
    """f(x; θ): an encoder, the mean over real tokens, and a linear head for each task."""

    def __init__(self, bert: transformers.BertModel, heads: nn.ModuleDict):
        super().__init__()
        self.bert = bert
        self.heads = heads

    def forward(self, rows: Rows, delta: Tensor | float = 0.0) -> Tensor:
        """Outputs (B,C) at x + δ, where x (B,T,H) is what the embedding layer puts out."""
        hook = self.bert.embeddings.register_forward_hook(lambda module, inputs, x: x + delta)
        hidden = self.bert(rows.input_ids, rows.real, rows.token_type_ids).last_hidden_state  # (B,T,H)
        hook.remove()
        real = rows.real[:, :, None]  # (B,T,1)
        return self.heads[rows.task]((hidden * real).sum(1) / real.sum(1))


def task_loss(task: str, outputs: Tensor, labels: Tensor) -> Tensor:
    """L: cross entropy for classes, binary cross entropy for one logit, mean squared error for a score."""
    if task == "para":
        return F.binary_cross_entropy_with_logits(outputs[:, 0], labels)
    if task == "sts":
        return F.mse_loss(outputs[:, 0], labels)
    return F.cross_entropy(outputs, labels.long())


def divergence(task: str, a: Tensor, b: Tensor) -> Tensor:
    """ℓ_s of outputs (B,C), the batch mean: KL(P‖Q) + KL(Q‖P) for classes, squared error for a score."""
    a = a.double()  # a KL of close distributions is a small difference of large terms
    b = b.double()
    if task == "sts":
        return (a - b).pow(2).mean()
    if task == "para":  # one logit: the two classes have the probabilities sigmoid(a) and sigmoid(-a)
        p = torch.cat([a, -a], dim=1).sigmoid()
        q = torch.cat([b, -b], dim=1).sigmoid()
    else:
        p = a.softmax(1)
        q = b.softmax(1)
    return (p * (p / q).log()).sum(1).mean() + (q * (q / p).log()).sum(1).mean()


def norm(x: Tensor, p: float) -> Tensor:
    """‖x‖_p of each token, (B,T,H) -> (B,T,1)."""
    return torch.linalg.vector_norm(x, p, dim=-1, keepdim=True)


def project(delta: Tensor, epsilon: float, p: float) -> Tensor:
    """Π: for each token the nearest point with ‖δ‖_p ≤ ε."""
    if p == torch.inf:
        return delta.clamp(-epsilon, epsilon)
    return torch.where(norm(delta, p) > epsilon, delta * epsilon / norm(delta, p), delta)


def perturbation(model: Model, rows: Rows, config: Any) -> Tensor:
    """δ = x̃ - x (B,T,H) after the ascent. Padding is no part of x, so its δ is 0."""
    real = rows.real[:, :, None]
    p = float(config.smart_norm)
    clean = model(rows).detach()
    # x̃ ← x + ν with ν ~ N(0, σ²)
    delta = rows.noise * config.smart_noise_var**0.5 * real
    for _ in range(config.smart_steps):
        delta.requires_grad_()
        # g ← ∂/∂x̃ ℓ_s(f(x; θ), f(x̃; θ))
        (g,) = torch.autograd.grad(divergence(rows.task, model(rows, delta), clean), delta)
        # g̃ ← g / ‖g‖_p, where on padding g is 0
        g = g / norm(g, p).clamp_min(1e-30)
        # x̃ ← Π(x̃ + η g̃)
        delta = project(delta.detach() + config.smart_step_size * g, config.smart_epsilon, p) * real
    return delta


def learning_rate(step: int, total_steps: int, peak: float) -> float:
    """α of step 0, 1, ...: in a tenth of the steps from 0 to the peak, then in a line to 0 at the end."""
    warmup_steps = total_steps // 10
    if step < warmup_steps:
        return peak * step / warmup_steps
    return peak * (total_steps - step) / (total_steps - warmup_steps)


def adamw(parameter: Tensor, state: dict, lr: float, weight_decay: float) -> None:
    """The course's AdamW: ε beside the uncorrected √v, decay after the update and for matrices only."""
    state["t"] = state.get("t", 0) + 1
    state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * parameter.grad
    state["v"] = 0.999 * state.get("v", 0.0) + 0.001 * parameter.grad**2
    corrected_lr = lr * (1 - 0.999 ** state["t"]) ** 0.5 / (1 - 0.9 ** state["t"])
    parameter -= corrected_lr * state["m"] / (state["v"].sqrt() + 1e-6)
    if parameter.ndim > 1:
        parameter -= lr * weight_decay * parameter


def train(model: Model, batches: list[Rows], config: Any) -> tuple[list[dict[str, float]], Model]:
    """Train the model in place, one step a batch. Returns what each step measured, and the teacher."""
    history = []
    states = {parameter: {} for parameter in model.parameters()}
    teacher = copy.deepcopy(model)  # θ̃ ← θ
    for step, rows in enumerate(batches):
        outputs = model(rows)
        delta = perturbation(model, rows, config)
        # F(θ) = L(θ) + λ_s R_s(θ) + μ D_Breg(θ, θ̃)
        loss = task_loss(rows.task, outputs, rows.labels)
        smart = divergence(rows.task, model(rows, delta), outputs)
        bregman = divergence(rows.task, outputs, teacher(rows).detach())
        total = loss + config.smart_weight[rows.task] * smart + config.bregman_weight[rows.task] * bregman
        x = model.bert.embeddings(rows.input_ids, token_type_ids=rows.token_type_ids)
        ratio = (norm(delta, 2) / norm(x, 2)).sum() / rows.real.sum()  # the mean over real tokens
        model.zero_grad()
        total.backward()
        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        # θ ← AdamUpdate(θ). The heads of other tasks have no gradient, so they stay as they are.
        lr = learning_rate(step, len(batches), config.lr)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    adamw(parameter, states[parameter], lr, config.weight_decay)
            # θ̃ ← (1 - β) θ + β θ̃, where β is .99 for the first tenth of the steps, then .999
            beta = 0.99 if step < len(batches) / 10 else 0.999
            for average, parameter in zip(teacher.parameters(), model.parameters(), strict=True):
                average.copy_(beta * average.double() + (1 - beta) * parameter.double())
        measured = {"task": loss, "smart": smart, "bregman": bregman, "total": total, "grad_norm": grad_norm}
        measured = {name: value.item() for name, value in measured.items()}
        history.append(measured | {"delta_ratio": ratio.item(), "lr": lr})
    return history, teacher
