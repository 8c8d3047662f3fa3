"""SMART's two regularisers, adversarial smoothness and Bregman proximal point, and their divergences.

Source: Jiang et al. 2020 (arXiv 1911.03437), Algorithm 1 and equations 2 and 3.
Shapes: B batch, T tokens, H hidden, C outputs.

This file imports nothing of the project: copy it, or install it as `smart_regularizer`. `SMART` puts both
terms on any model in three lines. It wires the parts that stand before it: `DropoutReplay`, `SMARTLoss` and
`BregmanProximal` take a function from embeddings (B,T,H) to logits (B,C). Algorithm 1, with its own line
numbers, and the code that does each line:

     1  θ̃_1 ← θ_0                                     BregmanProximal.__init__
     2  for t = 1, .., T do                           the caller's training loop, with S = 1: one update
     3    θ̄_1 ← θ_{t-1}                               of the weights for each t, so that the lines 3, 4,
     4    for s = 1, .., S do                         12 and 13 need no code
     5      sample a mini-batch B                     the caller
     6      x̃ ← x + ν, ν ~ N(0, σ² I)                 SMARTLoss.perturbation; δ = x̃ - x
     7      for m = 1, .., T_x̃ do                     SMARTLoss.perturbation, num_steps = T_x̃
     8        g̃ ← g / ‖g‖_∞                           SMARTLoss.perturbation; g = ∂ℓ_s/∂x̃
     9        x̃ ← Π(x̃ + η g̃)                          SMARTLoss.perturbation and project
    11      θ̄_{s+1} ← AdamUpdate(θ̄_s)                the caller, on L + λ_s R_s + μ D_Breg: R_s is
                                                      SMARTLoss.at, D_Breg is BregmanProximal.__call__
    14    θ̃_{t+1} ← (1-β) θ̄_S + β θ̃_t               BregmanProximal.update

Every divergence is a mean over the batch and is computed in fp32 or wider. Where its two arguments agree, its
value and its gradient are 0. It differentiates with respect to both arguments: detach the one that should
stay fixed. Each kind of head needs its own divergence:

    2+ logits (softmax)   kl_loss, sym_kl_loss, js_loss
    1 logit (sigmoid)     bernoulli_kl_loss, bernoulli_sym_kl_loss, bernoulli_js_loss
    yes-or-no labels      multilabel_sym_kl_loss
    regression            squared_error

A softmax over one logit is always 1, with zero gradient, so the softmax forms refuse it. Nothing in logits
(B,C) tells C classes from C yes-or-no labels, so they cannot refuse these.
"""

import copy
import inspect
import math
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

__version__ = "0.1.0"

# -------------------------------------------------------------------------------------- divergences


def _upcast(x: Tensor) -> Tensor:
    """x in fp32 if its type is narrower. bf16 cannot resolve the small differences that matter here."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_shapes(name: str, input: Tensor, target: Tensor) -> None:
    """Raises ValueError if the shapes differ: they would be broadcast, (B,) and (B,1) to (B,B)."""
    if input.shape != target.shape:
        raise ValueError(f"{name}: shapes {tuple(input.shape)} and {tuple(target.shape)} would be broadcast")


def _log_probs(name: str, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of two logits of the same shape (..., C), C >= 2.

    Raises ValueError if the shapes differ or if C = 1.
    """
    _check_shapes(name, input, target)
    if input.ndim < 2 or input.shape[-1] < 2:
        raise ValueError(
            f"{name}: softmax over one logit is constant, shape {tuple(input.shape)}; use"
            f" bernoulli_{name} or squared_error"
        )
    return F.log_softmax(_upcast(input), -1), F.log_softmax(_upcast(target), -1)


def kl_loss(input: Tensor, target: Tensor) -> Tensor:
    """KL(P‖Q) with P = softmax(target) and Q = softmax(input); logits (..., C) -> scalar.

    Raises ValueError if the shapes differ or if C = 1.
    """
    log_q, log_p = _log_probs("kl_loss", input, target)
    # The added q - p sums to 0. With it the gradient of each element is 0 where P = Q, not only their sum.
    return (log_p.exp() * (log_p - log_q) + log_q.exp() - log_p.exp()).sum(-1).mean()


def sym_kl_loss(input: Tensor, target: Tensor) -> Tensor:
    """KL(P‖Q) + KL(Q‖P), the paper's ℓ_s for classification; logits (..., C) -> scalar.

    For one class of C. If each of the C logits is a yes-or-no label: `multilabel_sym_kl_loss`.
    Raises ValueError if the shapes differ or if C = 1.
    """
    log_q, log_p = _log_probs("sym_kl_loss", input, target)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1).mean()


def js_loss(input: Tensor, target: Tensor) -> Tensor:
    """Jensen-Shannon divergence ½KL(P‖M) + ½KL(Q‖M), M = ½(P+Q), in nats; logits (..., C) -> scalar.

    Raises ValueError if the shapes differ or if C = 1.
    """
    log_q, log_p = _log_probs("js_loss", input, target)
    log_ratio = log_q - log_p  # log(q/p); log(m/p) = softplus(log(q/p)) - log 2
    p_part = log_p.exp() * (math.log(2) - F.softplus(log_ratio))
    q_part = log_q.exp() * (math.log(2) - F.softplus(-log_ratio))
    return 0.5 * (p_part + q_part).sum(-1).mean()


def _two_class(name: str, input: Tensor, target: Tensor) -> list[Tensor]:
    """Two logits (B,) or (B,1) of a sigmoid as logits (B,2) of a softmax.

    sigmoid(x) is the second probability of softmax((0, x)), and log-softmax is stable for every x.
    Raises ValueError if the shapes differ or if a row has more than one logit.
    """
    _check_shapes(name, input, target)
    if input.ndim > 1 and input.shape[-1] != 1:
        softmax_form = name.removeprefix("bernoulli_")
        raise ValueError(f"{name}: one logit a row expected, shape {tuple(input.shape)}; use {softmax_form}")
    return [F.pad(_upcast(logits).reshape(-1, 1), (1, 0)) for logits in (input, target)]


def bernoulli_kl_loss(input: Tensor, target: Tensor) -> Tensor:
    """`kl_loss` of sigmoid(input) and sigmoid(target); logits (B,1) or (B,) -> scalar.

    Raises ValueError if the shapes differ or if a row has more than one logit.
    """
    return kl_loss(*_two_class("bernoulli_kl_loss", input, target))


def bernoulli_sym_kl_loss(input: Tensor, target: Tensor) -> Tensor:
    """`sym_kl_loss` of sigmoid(input) and sigmoid(target); logits (B,1) or (B,) -> scalar.

    Raises ValueError if the shapes differ or if a row has more than one logit.
    """
    return sym_kl_loss(*_two_class("bernoulli_sym_kl_loss", input, target))


def bernoulli_js_loss(input: Tensor, target: Tensor) -> Tensor:
    """`js_loss` of sigmoid(input) and sigmoid(target); logits (B,1) or (B,) -> scalar.

    Raises ValueError if the shapes differ or if a row has more than one logit.
    """
    return js_loss(*_two_class("bernoulli_js_loss", input, target))


def multilabel_sym_kl_loss(input: Tensor, target: Tensor) -> Tensor:
    """Symmetric KL of C independent yes-or-no labels, summed over the labels; logits (..., C) -> scalar.

    For one label KL(P‖Q) + KL(Q‖P) = (p - q)(logit p - logit q). Raises ValueError if the shapes differ or if
    there is no axis of labels.
    """
    _check_shapes("multilabel_sym_kl_loss", input, target)
    if input.ndim < 2:
        raise ValueError(f"multilabel_sym_kl_loss: no axis of labels in shape {tuple(input.shape)}")
    a, b = _upcast(input), _upcast(target)
    return ((a.sigmoid() - b.sigmoid()) * (a - b)).sum(-1).mean()


def squared_error(input: Tensor, target: Tensor) -> Tensor:
    """Squared distance of the outputs, the paper's ℓ_s for regression; (B,) or (..., C) -> scalar.

    Raises ValueError if the shapes differ.
    """
    _check_shapes("squared_error", input, target)
    difference = (_upcast(input) - _upcast(target)).square()
    return (difference if difference.ndim < 2 else difference.sum(-1)).mean()


# ----------------------------------------------------------------------------------- dropout replay


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returns: a tensor, an object or a dict with `logits`, or a tuple.

    In a tuple, the first tensor with an axis: the loss may come before it. Raises TypeError if there is none.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    if isinstance(output, tuple | list):
        for part in output:
            if isinstance(part, Tensor) and part.ndim:
                return part
    raise TypeError(f"no logits in a model's output of type {type(output).__name__}")


def _backward_flag(logits: Tensor) -> list[None]:
    """A list that is empty until a backward pass reaches the logits."""
    passed: list[None] = []  # the hook holds the list alone: no cycle keeps the graph alive
    if logits.requires_grad:
        logits.register_hook(lambda gradient: passed.append(None))
    return passed


def generator_state(device: torch.device) -> Tensor | None:
    """RNG state that dropout on this device uses; None on meta, which has none.

    Reading it does not sync a GPU: CUDA's state, a seed and an offset, lies on the host.
    """
    if device.type == "meta":
        return None
    module, which = _generator(device)
    return module.get_rng_state(*which)


def set_generator_state(device: torch.device, state: Tensor | None) -> None:
    """Set the device's RNG state to one from `generator_state`; None changes nothing."""
    if state is not None:
        module, which = _generator(device)
        module.set_rng_state(state, *which)


def _generator(device: torch.device) -> tuple[Any, tuple[torch.device, ...]]:
    """The module that gets and sets the device's RNG state, and the device argument of its functions.

    Without the argument they use the current device, which may be another one. CPU and MPS have only one.
    """
    if device.type == "cpu":
        return torch, ()
    return torch.get_device_module(device), () if device.type == "mps" else (device,)


@contextmanager
def generator_at(device: torch.device, state: Tensor | None) -> Iterator[None]:
    """Inside the block the device's RNG starts from `state`; afterwards its own state is restored."""
    before = generator_state(device)
    set_generator_state(device, state)
    try:
        yield
    finally:
        set_generator_state(device, before)


class DropoutReplay:
    """Wraps a function so that every call draws the same random numbers as the first call.

    Every extra pass then reuses the clean pass's dropout masks, and two passes differ by the perturbation
    alone. The first call advances the device's RNG as the bare function does. Later calls restore its state.

    Make one for each step. A call after the first call's backward pass raises RuntimeError: the masks of the
    first step would be those of the whole training.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.called = False
        self.state: Tensor | None = None  # before the first call
        self.backward: list[None] = []  # of the first call, see `_backward_flag`

    def __call__(self, embed: Tensor) -> Tensor:
        if self.backward:
            raise RuntimeError(
                "DropoutReplay: called again after backward. One step's dropout masks would be those of the"
                " whole training: make a new DropoutReplay in each step"
            )
        if self.called:
            with generator_at(embed.device, self.state):
                return logits_of(self.function(embed))
        self.called = True
        self.state = generator_state(embed.device)
        logits = logits_of(self.function(embed))
        self.backward = _backward_flag(logits)
        return logits


# -------------------------------------------------------------------------------------------- SMART


def inf_norm(x: Tensor) -> Tensor:
    """‖x‖_∞ over the last axis: (B,T,H) -> (B,T,1)."""
    return x.abs().amax(-1, keepdim=True)


def l2_norm(x: Tensor) -> Tensor:
    """‖x‖₂ over the last axis: (B,T,H) -> (B,T,1)."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def project(delta: Tensor, epsilon: float, norm_fn: Callable[[Tensor], Tensor] = inf_norm) -> Tensor:
    """Π of Algorithm 1, line 9: δ (B,T,H) -> (B,T,H), moved into the ball of radius ε for every token.

    `norm_fn` may be any norm over the last axis. For `inf_norm` and `l2_norm` the result is the nearest point
    of the ball.
    """
    if norm_fn is inf_norm:
        return delta.clamp(-epsilon, epsilon)
    # The radius is 4e-6 ε smaller than ε: rounding must not push a norm above ε.
    radius = epsilon * (1 - 4e-6)
    norm = norm_fn(delta).clamp_min(torch.finfo(delta.dtype).tiny)  # (B,T,1)
    return delta * (radius / norm).clamp_max(1.0)


def delta_ratio(delta: Tensor, embed: Tensor) -> Tensor:
    """Mean of ‖δ‖₂ / ‖embedding‖₂ over the perturbed tokens: (B,T,H), (B,T,H) -> scalar."""
    size = l2_norm(delta)  # (B,T,1), 0 on padding
    length = l2_norm(_upcast(embed))  # some models have zeros on padding
    counted = (size > 0) & (length > 0)
    return (size / length).where(counted, 0.0).sum() / counted.sum().clamp_min(1)


def _replayed_noise(x: Tensor) -> Tensor:
    """Standard normal noise in the shape of x, in fp32 or wider; the RNG state is restored afterwards."""
    with generator_at(x.device, generator_state(x.device)):
        return torch.randn_like(x, dtype=torch.promote_types(x.dtype, torch.float32))


# Largest factor on the ascent's gradient, which is about 1e-7: fp16 would round it to 0. Line 8 normalises
# it, so the factor changes nothing else. As a power of 2 it does not round.
ASCENT_SCALE = 2.0**16
# The factor is lowered so that the gradient at the logits stays below this. A large head may make it about 60
# times larger on the way back, and fp16 ends at 65,504.
ASCENT_LIMIT = 2.0**10


def ascent_gradient(
    logits: Tensor,
    state: Tensor,
    delta: Tensor,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    retain_graph: bool = False,
) -> Tensor:
    """g of Algorithm 1, line 8, times a positive number: logits, state (B,C), delta (B,T,H) -> (B,T,H).

    retain_graph: whether the logits are to go backward again, to the weights.

    The gradient at the logits is computed in fp32, scaled, and then propagated through the model, without a
    GPU sync. Where it still overflows it is set to 0, so that part of δ does not change.
    """
    outputs = _upcast(logits.detach()).requires_grad_()
    (at_logits,) = torch.autograd.grad(loss_fn(outputs, state), outputs)  # (B,C)
    largest = at_logits.abs().amax().clamp_min(torch.finfo(at_logits.dtype).tiny)
    scale = torch.exp2(torch.floor(torch.log2(ASCENT_LIMIT / largest))).clamp_max(ASCENT_SCALE)
    weights = (at_logits * scale).to(logits.dtype)
    (gradient,) = torch.autograd.grad(logits, delta, weights, retain_graph=retain_graph)
    return gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _check_gradients(name: str, *tensors: Tensor) -> None:
    """Raises RuntimeError under `torch.inference_mode`, or for tensors made there: no ascent is possible."""
    if torch.is_inference_mode_enabled() or any(tensor.is_inference() for tensor in tensors):
        raise RuntimeError(
            f"{name}: the ascent needs gradients, which torch.inference_mode does not allow; use"
            " torch.no_grad there, also for the pass that makes embeddings and logits"
        )


class SMARTLoss:
    """R_s of the SMART paper (equation 2): the divergence of the outputs under the worst perturbation of the
    embeddings within a ball of radius ε.

    A call runs Algorithm 1, lines 6 to 10, for one batch and returns ℓ_s at x + δ, which differentiates with
    respect to the model's parameters. Norm, division by the norm and projection are done for each token.
    `num_steps=0` keeps the noise as it is (R3F). The arguments have the names of smart-pytorch's class.

    eval_fn: embeddings (B,T,H) -> logits (B,C). In train mode, wrap it in `DropoutReplay`. It gets x + δ in
        fp32 or wider; a model whose weights are bf16 needs a cast there, which `SMART` does by itself.
    loss_fn: divergence that the ascent increases; (perturbed logits, clean logits) -> scalar.
    loss_last_fn: divergence that is returned; `loss_fn` if None.
    norm_fn: norm over the last axis, `inf_norm` or `l2_norm`.
    num_steps: T_x̃, number of ascent steps.
    step_size: η, in units of the embeddings.
    epsilon: ε, radius of the ball for each token, in units of the embeddings.
    noise_var: σ², variance of the first noise for each coordinate.
    noise_fn: embeddings (B,T,H) -> standard normal noise (B,T,H). None draws the noise and restores the RNG.

    Raises ValueError if num_steps, step_size or noise_var is below 0, or if epsilon is not above 0.

    It fits a model of your own that can be cut behind its embeddings. Cut where word, position and segment
    embeddings are summed and normalised: there the rms is about 0.5. That of word embeddings alone is 0.06,
    and R_s differs 60 times for the same ε. For other models, such as those of `transformers`, see `SMART`.

    >>> import torch
    >>> embed = torch.nn.Sequential(torch.nn.Embedding(99, 32), torch.nn.LayerNorm(32), torch.nn.Dropout(0.1))
    >>> layer = torch.nn.TransformerEncoderLayer(32, nhead=2, dim_feedforward=64, batch_first=True)
    >>> head = torch.nn.Linear(32, 5)
    >>> ids = torch.randint(1, 99, (4, 7))
    >>> embeddings = embed(ids)
    >>> encode = DropoutReplay(lambda x: head(layer(x)[:, 0]))  # a new one in each step
    >>> logits = encode(embeddings)
    >>> smart = SMARTLoss(encode, sym_kl_loss, epsilon=0.04, step_size=0.04)
    >>> loss = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3]))
    >>> loss = loss + smart(embeddings, logits)
    >>> loss.backward()
    """

    def __init__(
        self,
        eval_fn: Callable[[Tensor], Tensor],
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        loss_last_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        norm_fn: Callable[[Tensor], Tensor] = inf_norm,
        num_steps: int = 1,
        step_size: float = 0.01,
        epsilon: float = 0.01,
        noise_var: float = 1e-5,
        noise_fn: Callable[[Tensor], Tensor] | None = None,
    ):
        if num_steps < 0 or not min(step_size, noise_var) >= 0 or not epsilon > 0:
            raise ValueError(
                "SMARTLoss: num_steps, step_size and noise_var must be at least 0, epsilon above 0"
            )
        self.eval_fn = eval_fn
        self.loss_fn = loss_fn
        self.loss_last_fn = loss_last_fn or loss_fn
        self.norm_fn = norm_fn
        self.num_steps = num_steps
        self.step_size = step_size
        self.epsilon = epsilon
        self.noise_var = noise_var
        self.noise_fn = noise_fn or _replayed_noise

    def perturbation(self, embed: Tensor, state: Tensor, mask: Tensor | None = None) -> Tensor:
        """The perturbation δ (B,T,H) after the ascent: detached, fp32 or wider, 0 where mask (B,T) is 0.

        embed (B,T,H) are the embeddings x, state (B,C) the clean logits f(x). Only δ is differentiated: no
        parameter gets a gradient. The RNG state is restored afterwards. Raises RuntimeError under
        `torch.inference_mode`, except for num_steps = 0.
        """
        embed = embed.detach()
        state = logits_of(state).detach()
        if self.num_steps:
            _check_gradients("SMARTLoss", embed, state)
        # ±ε is below the resolution of bf16 for most coordinates, so δ and the sum x + δ are fp32.
        dtype = torch.promote_types(embed.dtype, torch.float32)
        real = (torch.ones_like(embed[..., 0]) if mask is None else mask)[..., None].to(dtype)  # (B,T,1)
        # Algorithm 1, line 6: x̃ ← x + ν, ν ~ N(0, σ² I); projected, so that ‖δ‖ ≤ ε holds from the start
        delta = project(self.noise_fn(embed) * math.sqrt(self.noise_var) * real, self.epsilon, self.norm_fn)
        # Algorithm 1, line 7: for m = 1, .., T_x̃
        for _ in range(self.num_steps):
            delta.requires_grad_()
            with torch.enable_grad():
                logits = logits_of(self.eval_fn(embed + delta))
                gradient = ascent_gradient(logits, state, delta, self.loss_fn)
            # Algorithm 1, line 8: g̃ ← g / ‖g‖_∞. The raw gradient, about 1e-7, would vanish in the noise.
            direction = gradient / self.norm_fn(gradient).clamp_min(torch.finfo(dtype).tiny)
            # Algorithm 1, line 9: x̃ ← Π(x̃ + η g̃)
            delta = project((delta.detach() + self.step_size * direction) * real, self.epsilon, self.norm_fn)
        return delta

    def at(self, delta: Tensor, embed: Tensor, state: Tensor) -> Tensor:
        """ℓ_s(f(x + δ), f(x)) by `loss_last_fn`, a scalar, from δ and embed (B,T,H) and state (B,C)."""
        return self.loss_last_fn(logits_of(self.eval_fn(embed + delta)), logits_of(state))

    def __call__(self, embed: Tensor, state: Tensor, mask: Tensor | None = None) -> Tensor:
        """R_s, a scalar, from embeddings (B,T,H), their clean logits (B,C) and the clean pass' mask (B,T)."""
        return self.at(self.perturbation(embed, state, mask), embed, state)

    @torch.no_grad()
    def evidence(self, delta: Tensor, embed: Tensor, state: Tensor, ascent: Tensor) -> dict[str, Tensor]:
        """Diagnostics of the attack, 0-dim tensors. `ascent` is ℓ_s at δ. Costs one forward pass.

        delta_ratio: mean of ‖δ‖₂ / ‖embedding‖₂ over the real tokens.
        random_divergence: ℓ_s at Gaussian noise that has δ's 2-norm in each token.
        ascent_gain: ascent_divergence / random_divergence. A value near 1 means that the ascent does nothing.
        """
        size = l2_norm(delta)  # (B,T,1), 0 on padding
        noise = _replayed_noise(delta)  # (B,T,H)
        at_noise = logits_of(self.eval_fn(embed + noise * (size / l2_norm(noise))))
        random = self.loss_fn(at_noise, logits_of(state))
        return {
            "delta_ratio": delta_ratio(delta, embed),
            "random_divergence": random,
            "ascent_divergence": ascent.detach(),
            "ascent_gain": ascent.detach() / random.clamp_min(torch.finfo(torch.float32).tiny),
        }


# ------------------------------------------------------------------------------------------ Bregman


def paper_beta(step: int, total_steps: int) -> float:
    """The paper's momentum β: 0.99 for the first tenth of the steps, then 0.999."""
    return 0.99 if step < 0.1 * total_steps else 0.999


def fitted_beta(step: int, total_steps: int) -> float:
    """A momentum β that fits the length of the run.

    Its horizon 1/(1-β) is a tenth of the run's steps, at least 1 step and at most the paper's 1,000 steps. In
    a run of a few hundred steps the paper's momentum would keep the teacher at its starting point.
    """
    return 1 - 1 / min(1000.0, max(1.0, 0.1 * total_steps))


class BregmanProximal:
    """D_Breg of the SMART paper (equation 3) in its momentum form: the divergence between the model and a
    moving average of the model.

    `teacher`, θ̃, starts as a copy of the whole model (Algorithm 1, line 1). After each optimizer step,
    `update` moves every parameter of it towards the model. The teacher is never differentiated. It uses the
    model's dropout masks, so the term is 0 at step 0.
    """

    def __init__(self, model: nn.Module):
        # Algorithm 1, line 1: θ̃_1 ← θ_0
        self.teacher = copy.deepcopy(model).requires_grad_(False)

    def __call__(
        self,
        logits: Tensor,
        forward: Callable[[nn.Module], Tensor],
        divergence: Callable[[Tensor, Tensor], Tensor],
        generator: Tensor | None,
    ) -> Tensor:
        """D_Breg, a scalar: the divergence of `logits` (B,C) and forward(teacher) (B,C).

        `generator` is the RNG state before the model's own pass.
        """
        with torch.no_grad(), generator_at(logits.device, generator):
            target = logits_of(forward(self.teacher))
        return divergence(logits, target)

    @torch.no_grad()
    def update(self, model: nn.Module, beta: float) -> None:
        """One step of the moving average; call it after the optimizer's step."""
        # Algorithm 1, line 14: θ̃ ← (1-β) θ + β θ̃
        teacher = list(self.teacher.parameters())
        # a copy only if the model is bf16 and the teacher fp32: bf16 cannot resolve a step of 1-β
        student = [theta.to(average) for theta, average in zip(model.parameters(), teacher, strict=True)]
        get_ema_multi_avg_fn(beta)(teacher, student, None)
        for average, buffer in zip(self.teacher.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)  # statistics of BatchNorm are averages already


# -------------------------------------------------------------------------------------------- FreeLB


def freelb_loss(
    encode: Callable[[Tensor], Tensor],
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    embeddings: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    noise: Tensor,
    num_steps: int,
    step_size: float,
    epsilon: float,
) -> Tensor:
    """The mean task loss at the K = `num_steps` moves of FreeLB (Zhu et al. 2020, arXiv 1909.11764).

    encode: embeddings (B,T,H) -> logits (B,C), always with the same dropout masks. mask: (B,T) or None.
    noise: standard normal, (B,T,H). step_size, epsilon: α and ε, 2-norms of a whole text's move.
    Raises RuntimeError under `torch.inference_mode`.
    """
    _check_gradients("freelb_loss", embeddings)
    real = (torch.ones_like(embeddings[..., 0]) if mask is None else mask).to(torch.float32)[..., None]

    def whole_norm(x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)  # (B,1,1)

    # Algorithm 1, line 4: δ_0 ← U(-ε, ε) / √N_δ, with N_δ numbers in the text
    # (erf(ν / √2) of a normal ν is uniform)
    size = real.sum((1, 2), keepdim=True) * embeddings.shape[-1]
    delta = epsilon * torch.erf(noise / math.sqrt(2)) / size.sqrt() * real
    losses = []
    for t in range(num_steps):  # line 6
        delta.requires_grad_()
        logits = encode(embeddings + delta)
        losses.append(loss_fn(logits, labels))
        if t + 1 < num_steps:
            # lines 10 and 11: δ_t ← Π(δ_{t-1} + α g / ‖g‖_F)
            gradient = ascent_gradient(logits, labels, delta, loss_fn, retain_graph=True)
            direction = gradient / whole_norm(gradient).clamp_min(torch.finfo(torch.float32).tiny)
            delta = project((delta.detach() + step_size * direction) * real, epsilon, whole_norm)
    return torch.stack(losses).mean()


# ------------------------------------------------------------------------------------ any model at once

DIVERGENCES = {
    "classification": sym_kl_loss,
    "regression": squared_error,
    "binary": bernoulli_sym_kl_loss,
    "multilabel": multilabel_sym_kl_loss,
}
LABELS = ("labels", "label")
# The module behind the word embeddings in models without a block: GPT-2, GPT-NeoX, BART, BLOOM, XLM.
BEHIND_WORDS = ("drop", "emb_dropout", "layernorm_embedding", "word_embeddings_layernorm", "layer_norm_emb")


def embedding_block(model: nn.Module) -> nn.Module:
    """The module whose output is a model's embeddings: words, positions and segments, summed and normalised.

    It is the innermost module around the word embeddings that is named `embeddings`, or whose class's name
    ends so. Models without one: the dropout or LayerNorm behind the word embeddings, else these themselves.
    The word embeddings are `get_input_embeddings()` of transformers, or a model's only nn.Embedding.
    Raises ValueError if there are several nn.Embedding, or none.
    """
    words: Any = None
    part: Any
    for part in model.modules():
        if words is None and hasattr(part, "get_input_embeddings"):
            encodes = getattr(getattr(part, "config", None), "is_encoder_decoder", False)
            with suppress(NotImplementedError):  # T5 and BART never call the table that they share
                words = (part.get_encoder() if encodes else part).get_input_embeddings()
    if words is None:
        found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
        if len(found) != 1:
            raise ValueError(
                f"SMART: {type(model).__name__} has {len(found)} nn.Embedding ({', '.join(found)}); pass"
                " embedding_module=, the module whose output is the sum of all embeddings"
            )
        (words,) = found.values()
    parents = next(name for name, module in model.named_modules() if module is words).split(".")[:-1]
    for depth in range(len(parents), 0, -1):
        module = model.get_submodule(".".join(parents[:depth]))
        is_block = type(module).__name__.endswith(("Embedding", "Embeddings"))
        if is_block or parents[depth - 1] == "embeddings":
            return module
    beside = model.get_submodule(".".join(parents))
    behind = [getattr(beside, name, None) for name in BEHIND_WORDS]
    return next((module for module in behind if isinstance(module, nn.Module)), words)


@dataclass
class _Pass:
    """A forward pass of the user's model as the hooks of `SMART` saw it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    states: dict[torch.device, Tensor | None]  # RNG states before the pass
    embeddings: list[Tensor] = field(default_factory=list)  # (B,T,H), one for each call of the block
    output: Any = None
    backward: list[None] = field(default_factory=list)  # see `_backward_flag`


def _weak(method: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that calls the method, and does not keep its object alive."""
    reference = weakref.WeakMethod(method)

    def hook(*arguments: Any) -> Any:
        alive = reference()
        return None if alive is None else alive(*arguments)

    return hook


class SMART:
    """λ_s R_s + μ D_Breg for any model that has embeddings, in three lines.

    It hooks the output of the embedding block (`embedding_block`), so ids, positions and padding do not
    change. A call takes the batch that the model has just read. It reuses that clean pass with its dropout
    masks, and costs the ascent, the adversarial pass and the teacher's pass.

    >>> import torch, transformers
    >>> config = transformers.BertConfig(
    ...     hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, num_labels=5
    ... )
    >>> model = transformers.BertForSequenceClassification(config).train()
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    >>> ids = torch.randint(1, 99, (4, 7))
    >>> batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(4)}
    >>> smart = SMART(model, task="classification", epsilon=0.04)
    >>> outputs = model(**batch)
    >>> loss = outputs.loss + smart(batch)
    >>> loss.backward()
    >>> optimizer.step()
    >>> smart.update()

    model: the one that you call, with its weights loaded: the teacher starts as a copy of it.
    task: classification, regression, binary (one logit), multilabel (yes-or-no labels), or a divergence
        (perturbed logits, clean logits) -> scalar.
    epsilon: ε, in units of the block's output; choose it by `last["delta_ratio"]`.
    smart_weight, bregman_weight: λ_s and μ. Without μ there is no teacher.
    beta: β of the teacher. Its horizon 1/(1-β) should fit the run, as that of `fitted_beta` does.
    embedding_module: the block, or its name in the model, where `embedding_block` does not find it.
    settings: of `SMARTLoss`: num_steps, noise_var, norm_fn, noise_fn, and step_size, which is ε by default.

    `last` has the values of the last call, 0-dim tensors: `smart` R_s, `bregman` D_Breg, and `delta_ratio`,
    the mean of ‖δ‖₂ / ‖embedding‖₂. Raises ValueError if a setting is wrong, or if no block is found.
    """

    # Whose extra passes run now. Meanwhile the hooks of all others do nothing.
    _running: ClassVar["SMART | None"] = None

    def __init__(
        self,
        model: nn.Module,
        task: str | Callable[[Tensor, Tensor], Tensor],
        epsilon: float = 0.04,
        smart_weight: float = 1.0,
        bregman_weight: float = 1.0,
        beta: float = 0.99,
        embedding_module: nn.Module | str | None = None,
        **settings: Any,
    ):
        if isinstance(task, str) and task not in DIVERGENCES:
            raise ValueError(f"SMART: task {task!r} is none of {', '.join(DIVERGENCES)}, and no function")
        if not min(smart_weight, bregman_weight) >= 0 or not 0 <= beta <= 1:
            raise ValueError("SMART: smart_weight and bregman_weight must be at least 0, beta within 0 and 1")
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module  # the backward pass still sums the gradients over the ranks
        self.model = model
        self.root: nn.Module = getattr(model, "_orig_mod", model)  # what torch.compile has wrapped
        self.task = task
        self.divergence = DIVERGENCES[task] if isinstance(task, str) else task
        self.settings = {"epsilon": epsilon, "step_size": epsilon, **settings}
        SMARTLoss(self.model, self.divergence, **self.settings)  # raises ValueError if a setting is wrong
        self.smart_weight = smart_weight
        self.bregman_weight = bregman_weight
        self.beta = beta
        self.bregman: BregmanProximal | None = None
        if bregman_weight:
            self.bregman = BregmanProximal(self.root)
            for parameter in self.bregman.teacher.parameters():  # bf16 cannot resolve a step of 1-β
                parameter.data = _upcast(parameter.data)
        self.last: dict[str, Tensor] = {}
        self.checked = False
        self._open: _Pass | None = None  # the model's pass that runs now
        self._clean: _Pass | None = None  # the model's last pass, until it is used
        self._embeddings: Tensor | None = None  # the block's output in an extra pass
        if isinstance(embedding_module, str):
            embedding_module = self.root.get_submodule(embedding_module)
        self.block: nn.Module = embedding_module or embedding_block(self.root)
        self._hooks = [
            self.root.register_forward_pre_hook(_weak(self._begin), with_kwargs=True, prepend=True),
            self.block.register_forward_hook(_weak(self._embed)),
            self.root.register_forward_hook(_weak(self._end)),
        ]

    def __call__(self, batch: Any, mask: Tensor | None = None) -> Tensor:
        """λ_s R_s + μ D_Breg of the batch, a scalar; 0 in eval mode.

        batch: what the model takes: a dict, with or without labels, a tuple or a tensor. If the model's last
            pass was not of these very tensors, a clean pass is made first.
        mask: (B,T), 0 for tokens that are not perturbed; by default the batch's `attention_mask`.

        Raises ValueError if the task does not fit the logits, RuntimeError if the block did not run once.
        """
        if not self.root.training:
            return torch.zeros((), device=next(self.root.parameters()).device)
        problem_type = getattr(getattr(self.root, "config", None), "problem_type", None)
        if self.task == "classification" and problem_type == "multi_label_classification":
            raise ValueError("SMART: the model's labels are yes-or-no labels: use task='multilabel'")
        clean = self._clean_pass(batch)
        (embeddings,) = clean.embeddings  # (B,T,H)
        if mask is None:
            names = inspect.signature(self.root.forward).parameters
            mask = (dict(zip(names, clean.args, strict=False)) | clean.kwargs).get("attention_mask")
        if not isinstance(mask, Tensor) or mask.shape != embeddings.shape[:2]:
            mask = None  # for example a mask of pairs of tokens (B,T,T)

        def real(output: Any) -> Tensor:
            """Logits of rows (B,C) unchanged, logits of tokens (B,T,C) without padding (N,C)."""
            logits = logits_of(output)
            return logits if mask is None or logits.shape[:-1] != mask.shape else logits[mask.bool()]

        logits = real(clean.output)
        smart = SMARTLoss(lambda x: real(self._again(clean, self.model, x)), self.divergence, **self.settings)
        total = torch.zeros((), device=logits.device)
        self.last = {}
        if self.smart_weight:
            delta = smart.perturbation(embeddings, logits, mask)
            value = smart.at(delta, embeddings, logits)
            total = total + self.smart_weight * value
            self.last |= {"smart": value.detach(), "delta_ratio": delta_ratio(delta, embeddings.detach())}
        if self.bregman:
            value = self.bregman(
                logits, lambda _: real(self._again(clean, self._taught)), self.divergence, None
            )
            total = total + self.bregman_weight * value
            self.last["bregman"] = value.detach()
        if not self.checked:
            self.checked = True
            self._check(smart, embeddings.detach(), logits.detach())
        return total

    def update(self) -> None:
        """Move the teacher; call it after each `optimizer.step()`."""
        if self.bregman:
            self.bregman.update(self.root, self.beta)

    def state_dict(self) -> dict[str, Any]:
        """The teacher's weights, for a checkpoint."""
        return {"teacher": self.bregman.teacher.state_dict()} if self.bregman else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the teacher of a checkpoint."""
        if self.bregman:
            self.bregman.teacher.load_state_dict(state["teacher"])
        self.checked = True

    def remove(self) -> None:
        """Remove the hooks, for example before you pickle the whole model."""
        for hook in self._hooks:
            hook.remove()

    # ------------------------------------------------------------------ passes, and the hooks that see them

    def _clean_pass(self, batch: Any) -> _Pass:
        """The model's last pass if it was of this batch and can still go backward, else a new one."""
        args, kwargs = (), {}
        if isinstance(batch, Mapping):
            kwargs = {name: value for name, value in batch.items() if name not in LABELS}
        else:
            args = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
        clean, self._clean = self._clean, None
        if clean is not None:
            read = {id(value) for value in (*clean.args, *clean.kwargs.values())}
            tensors = {id(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor)}
        if clean is None or clean.backward or not tensors or not tensors <= read:
            with torch.enable_grad():
                self.model(*args, **kwargs)
            clean, self._clean = self._clean, None
        if clean is None:
            raise RuntimeError("SMART: its hooks were removed from the model")
        if len(clean.embeddings) != 1:
            raise RuntimeError(
                f"SMART: a forward pass ran the embedding block, {type(self.block).__name__},"
                f" {len(clean.embeddings)} times instead of once; pass another one by embedding_module="
            )
        return clean

    def _again(self, clean: _Pass, model: Callable[..., Any], embeddings: Tensor | None = None) -> Any:
        """The clean pass once more, with its dropout masks and other embeddings (B,T,H) or weights."""
        with ExitStack() as stack:
            for device, state in clean.states.items():
                stack.enter_context(generator_at(device, state))
            SMART._running, self._embeddings = self, embeddings
            try:
                return model(*clean.args, **clean.kwargs)
            finally:
                SMART._running, self._embeddings = None, None

    def _taught(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the model with the teacher's weights, in the model's own mode."""
        assert self.bregman is not None, "the term is on"
        weights = {}
        teacher = self.bregman.teacher.parameters()
        for (name, own), theta in zip(self.model.named_parameters(), teacher, strict=True):
            theta.data = theta.data.to(own.device)
            weights[name] = theta.to(own.dtype)
        return torch.func.functional_call(self.model, weights, args, kwargs)

    def _check(self, smart: SMARTLoss, embeddings: Tensor, logits: Tensor) -> None:
        """Warn, at the first call, of mistakes that would silently change the terms."""

        def warn(message: str) -> None:
            warnings.warn(f"SMART: {message}", stacklevel=4)

        allowed = self.divergence(logits * 1.01, logits)  # of a change of 1 % in the logits
        if self.smart_weight:
            same = smart.at(torch.zeros_like(embeddings), embeddings, logits).detach()
            if same > allowed:
                warn(
                    f"without a perturbation R_s is {same:.1e}, not 0: the clean pass cannot be repeated."
                    " Does it draw with numpy? Or do you call a compiled model, and SMART has the bare one?"
                )
            epsilon = self.settings["epsilon"]
            shifted = (_upcast(embeddings) + epsilon).to(embeddings.dtype)
            lost = (shifted == embeddings).float().mean().item()
            if lost > 0.5:
                warn(
                    f"epsilon {epsilon} is below the resolution of {embeddings.dtype} in {lost:.0%} of"
                    " the coordinates: take a larger one, or keep weights in float32 and use torch.autocast"
                )
        if self.last.get("bregman", allowed) > allowed:
            warn(
                f"D_Breg of the first batch is {self.last['bregman']:.1e}, not 0. The teacher is a copy of"
                " the model: make SMART when the weights are loaded, of the compiled model if there is one"
            )

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the model's own pass: keep its inputs and the RNG states."""
        if SMART._running is not None:
            return
        self._open = None
        if module.training and torch.is_grad_enabled():
            devices = {torch.device("cpu"), *(parameter.device for parameter in module.parameters())}
            self._open = _Pass(args, kwargs, {device: generator_state(device) for device in devices})

    def _embed(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The block's output: kept in the model's own pass, replaced in an extra pass.

        A deepcopy of the model has the same hooks, hence `module is`.
        """
        embeddings = output[0] if isinstance(output, tuple) else output
        if module is self.block and SMART._running is None and self._open is not None:
            self._open.embeddings.append(embeddings)
            embeddings = embeddings.clone()  # CTRL scales its embeddings in place
        elif module is self.block and SMART._running is self and self._embeddings is not None:
            embeddings = self._embeddings.to(embeddings.dtype)  # x + δ is fp32, rounded once
        else:
            return None
        return (embeddings, *output[1:]) if isinstance(output, tuple) else embeddings

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        """After the model's own pass: keep its output until it is used."""
        if module is self.root and SMART._running is None and self._open is not None:
            self._open.output = output
            self._open.backward = _backward_flag(logits_of(output))
            self._clean, self._open = self._open, None
