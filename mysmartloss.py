"""SMART's two regularisers, adversarial smoothness and Bregman proximal point, and the divergences they are
made of.

Source: Jiang et al. 2020 (arXiv 1911.03437), Algorithm 1 and equations 2 and 3.
B batch, T tokens, H hidden, C outputs. Nothing here knows a model: the caller hands in a function from
embeddings to logits.

Every divergence is a mean over the batch, computed in at least fp32, zero with zero gradient where the two
agree, and differentiates with respect to both arguments; detach what should stay fixed. Which one a head
needs:

    2+ logits (softmax)   kl_loss, sym_kl_loss, js_loss
    1 logit (sigmoid)     bernoulli_kl_loss, bernoulli_sym_kl_loss, bernoulli_js_loss
    regression            squared_error

A softmax over one logit is the constant 1, so its KL is 0 with zero gradient: the softmax forms refuse it.
"""

import copy
import math
from collections.abc import Callable
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# -------------------------------------------------------------------------------------- divergences


def _upcast(x: Tensor) -> Tensor:
    """fp32 where the type is narrower: the differences of interest are below the resolution of bf16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _log_probs(name: str, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of two equally shaped (..., C) logits, C >= 2."""
    if input.shape != target.shape:
        raise ValueError(
            f"{name}: logits of shapes {tuple(input.shape)} and {tuple(target.shape)} would be broadcast"
        )
    if input.ndim < 2 or input.shape[-1] < 2:
        raise ValueError(
            f"{name}: softmax over one logit is constant, shape {tuple(input.shape)}; use"
            f" bernoulli_{name} or squared_error"
        )
    return F.log_softmax(_upcast(input), -1), F.log_softmax(_upcast(target), -1)


def kl_loss(input: Tensor, target: Tensor) -> Tensor:
    """KL(P‖Q) with P = softmax(target), Q = softmax(input); logits (..., C) -> scalar. Raises ValueError for
    C = 1."""
    log_q, log_p = _log_probs("kl_loss", input, target)
    # q - p sums to 0; with it each element, not only the sum, has a zero gradient where P = Q
    return (log_p.exp() * (log_p - log_q) + log_q.exp() - log_p.exp()).sum(-1).mean()


def sym_kl_loss(input: Tensor, target: Tensor) -> Tensor:
    """KL(P‖Q) + KL(Q‖P), the paper's ℓ_s for classification; logits (..., C) -> scalar. Raises ValueError for
    C = 1."""
    log_q, log_p = _log_probs("sym_kl_loss", input, target)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1).mean()


def js_loss(input: Tensor, target: Tensor) -> Tensor:
    """Jensen-Shannon divergence ½KL(P‖M) + ½KL(Q‖M), M = ½(P+Q), in nats; logits (..., C) -> scalar. Raises
    ValueError for C = 1."""
    log_q, log_p = _log_probs("js_loss", input, target)
    log_ratio = log_q - log_p  # log(m/p) = softplus(log(q/p)) - log 2
    p_part = log_p.exp() * (math.log(2) - F.softplus(log_ratio))
    q_part = log_q.exp() * (math.log(2) - F.softplus(-log_ratio))
    return 0.5 * (p_part + q_part).sum(-1).mean()


def _two_class(
    softmax_form: Callable[[Tensor, Tensor], Tensor], name: str
) -> Callable[[Tensor, Tensor], Tensor]:
    """The Bernoulli form of a divergence: one logit x is the two logits (0, x), whose log-softmax is stable
    at any x."""

    def bernoulli_form(input: Tensor, target: Tensor) -> Tensor:
        if input.shape != target.shape:
            raise ValueError(
                f"{name}: logits of shapes {tuple(input.shape)} and {tuple(target.shape)} would be broadcast"
            )
        if input.ndim > 1 and input.shape[-1] != 1:
            raise ValueError(
                f"{name}: one logit a row expected, shape {tuple(input.shape)}; use {softmax_form.__name__}"
            )
        pairs = [
            F.pad(_upcast(logits).reshape(-1, 1), (1, 0)) for logits in (input, target)
        ]  # (B,) or (B,1) -> (B,2)
        return softmax_form(*pairs)

    bernoulli_form.__name__ = bernoulli_form.__qualname__ = name
    bernoulli_form.__doc__ = (
        f"`{softmax_form.__name__}` between sigmoid(input) and"
        " sigmoid(target); logits (B,1) or (B,) -> scalar."
    )
    return bernoulli_form


bernoulli_kl_loss = _two_class(kl_loss, "bernoulli_kl_loss")
bernoulli_sym_kl_loss = _two_class(sym_kl_loss, "bernoulli_sym_kl_loss")
bernoulli_js_loss = _two_class(js_loss, "bernoulli_js_loss")


def squared_error(input: Tensor, target: Tensor) -> Tensor:
    """Squared distance of the outputs, the paper's ℓ_s for regression; (B,) or (..., C) -> scalar. Raises
    ValueError if shapes differ."""
    if input.shape != target.shape:
        raise ValueError(
            f"squared_error: shapes {tuple(input.shape)} and {tuple(target.shape)} would be broadcast"
        )
    difference = (_upcast(input) - _upcast(target)).square()
    return (difference if difference.ndim < 2 else difference.sum(-1)).mean()


# ----------------------------------------------------------------------------------- dropout replay


def generator_state(device: torch.device) -> Tensor | None:
    """State of the generator that dropout on this device draws from; None where there is none (meta)."""
    if device.type == "meta":
        return None
    return torch.get_rng_state() if device.type == "cpu" else torch.get_device_module(device).get_rng_state()


def set_generator_state(device: torch.device, state: Tensor | None) -> None:
    """Inverse of `generator_state`."""
    if state is not None:
        (torch if device.type == "cpu" else torch.get_device_module(device)).set_rng_state(state)


@contextmanager
def generator_at(device: torch.device, state: Tensor | None):
    """Within, the device's generator starts from `state`; afterwards it is where it was before."""
    before = generator_state(device)
    set_generator_state(device, state)
    try:
        yield
    finally:
        set_generator_state(device, before)


class DropoutReplay:
    """A function that draws, in every call, the random numbers of its first call.

    The first call leaves the device's generator as the bare function would; later calls leave it as they
    found it.
    So a clean and a perturbed pass see the same dropout masks, and their difference is the perturbation's
    alone.
    """

    def __init__(self, function: Callable[..., Tensor]):
        self.function = function
        self.state = None
        self.called = False

    def __call__(self, embed: Tensor) -> Tensor:
        if not self.called:
            self.state, self.called = generator_state(embed.device), True
            return self.function(embed)
        with generator_at(embed.device, self.state):
            return self.function(embed)


# -------------------------------------------------------------------------------------------- SMART


def inf_norm(x: Tensor) -> Tensor:
    """‖x‖_∞ over the last axis, which is kept: (B,T,H) -> (B,T,1)."""
    return x.abs().amax(-1, keepdim=True)


def l2_norm(x: Tensor) -> Tensor:
    """‖x‖₂ over the last axis, which is kept: (B,T,H) -> (B,T,1)."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def project(delta: Tensor, epsilon: float, norm_fn: Callable[[Tensor], Tensor] = inf_norm) -> Tensor:
    """The point nearest to δ (B,T,H) whose norm is at most ε for every token; any norm over the last axis
    will do."""
    if norm_fn is inf_norm:
        return delta.clamp(-epsilon, epsilon)
    # a few parts in a million short of the surface, so that rounding can't carry a norm over it
    return delta * (epsilon * (1 - 4e-6) / norm_fn(delta).clamp_min(torch.finfo(delta.dtype).tiny)).clamp_max(
        1.0
    )


def _replayed_noise(x: Tensor) -> Tensor:
    """Standard normal numbers in the shape of x, at least fp32; the generator is left as it was."""
    with generator_at(x.device, generator_state(x.device)):
        return torch.randn_like(x, dtype=torch.promote_types(x.dtype, torch.float32))


ASCENT_SCALE = (
    2.0**16
)  # of a divergence whose gradient is normalised: without it that gradient, about 1e-7, is 0 in fp16


class SMARTLoss:
    """R_s of the SMART paper: the divergence of the outputs under the worst perturbation of the embeddings
    within an ε-ball.

    Algorithm 1 for one batch: δ ~ N(0, σ²), then `num_steps` times g = ∂ℓ_s/∂δ, δ ← Π(δ + η g/‖g‖), with the
    norm, its
    quotient and the projection taken for each token; then ℓ_s at x + δ, differentiable in the model's
    parameters.
    `num_steps=0` leaves the noise as it is (R3F). The arguments are those of smart-pytorch's class of this
    name;
    what is done with them is Algorithm 1.

    eval_fn: embeddings (B,T,H) -> logits (B,C), the rest of the model. Wrap it in `DropoutReplay` in train
    mode.
    loss_fn: divergence that the ascent climbs; (perturbed logits, clean logits) -> scalar.
    loss_last_fn: divergence that is returned; `loss_fn` if None.
    norm_fn: norm p over the last axis, `inf_norm` or `l2_norm`.
    num_steps: T, ascent steps. step_size: η, in units of the embeddings. epsilon: ε, radius of the ball per
    token.
    noise_var: σ², variance of the first noise, per coordinate.
    noise_fn: embeddings (B,T,H) -> standard normal noise (B,T,H); None draws it anew and leaves the generator
    as it was.

    With nothing of this project but this file, on any model that takes embeddings:

    >>> import torch, transformers
    >>> sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    >>> config = transformers.BertConfig(**sizes, num_labels=5)
    >>> model = transformers.BertForSequenceClassification(config).train()
    >>> ids, mask = torch.randint(1, 99, (4, 7)), torch.ones(4, 7)
    >>> encode = DropoutReplay(lambda embeddings: model(inputs_embeds=embeddings, attention_mask=mask).logits)
    >>> embeddings = model.bert.embeddings.word_embeddings(ids)
    >>> logits = encode(embeddings)
    >>> smart = SMARTLoss(encode, sym_kl_loss, epsilon=0.01, step_size=0.01)
    >>> loss = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3]))
    >>> (loss + smart(embeddings, logits, mask)).backward()
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
        """The δ (B,T,H) that the ascent ends at: at least fp32, detached, 0 where mask (B,T) is 0.

        Only δ is differentiated: no gradient of a parameter is computed. The generator is left as it was.
        """
        embed, state = embed.detach(), state.detach()
        # ±ε is below the resolution of bf16 for most coordinates: δ and the sum x + δ are fp32
        dtype = torch.promote_types(embed.dtype, torch.float32)
        real = (
            torch.ones_like(embed[..., :1], dtype=dtype) if mask is None else mask[..., None].to(dtype)
        )  # (B,T,1)
        delta = project(self.noise_fn(embed) * math.sqrt(self.noise_var) * real, self.epsilon, self.norm_fn)
        for _ in range(self.num_steps):
            delta.requires_grad_()
            with torch.enable_grad():
                divergence = self.loss_fn(self.eval_fn(embed + delta), state)
                (gradient,) = torch.autograd.grad(divergence * ASCENT_SCALE, delta)
            # normalised before the step: the raw gradient, about 1e-7, would vanish beside the noise
            direction = gradient / self.norm_fn(gradient).clamp_min(torch.finfo(dtype).tiny)
            delta = project((delta.detach() + self.step_size * direction) * real, self.epsilon, self.norm_fn)
        return delta

    def at(self, delta: Tensor, embed: Tensor, state: Tensor) -> Tensor:
        """`loss_last_fn` between the outputs at embed + δ and `state`; a scalar."""
        return self.loss_last_fn(self.eval_fn(embed + delta), state)

    def __call__(self, embed: Tensor, state: Tensor, mask: Tensor | None = None) -> Tensor:
        """R_s, a scalar, for embeddings (B,T,H), the clean logits (B,C) they gave, and the mask (B,T) of the
        clean pass."""
        return self.at(self.perturbation(embed, state, mask), embed, state)

    @torch.no_grad()
    def evidence(self, delta: Tensor, embed: Tensor, state: Tensor, ascent: Tensor) -> dict[str, Tensor]:
        """Whether the ascent does anything, as 0-dim tensors; costs one forward pass. `ascent` is ℓ_s under
        δ.

        delta_ratio: mean over real tokens of ‖δ‖₂ / ‖embedding‖₂. random_divergence: ℓ_s under Gaussian noise
        that has δ's 2-norm in
        each token. ascent_gain: ascent_divergence / random_divergence, about 1 if the ascent is inert.
        """
        size = l2_norm(delta)  # (B,T,1), 0 on padding
        noise = _replayed_noise(delta)
        random = self.loss_fn(self.eval_fn(embed + noise * (size / l2_norm(noise))), state)
        ratio = (size / l2_norm(_upcast(embed))).sum() / (size > 0).sum().clamp_min(1)
        return {
            "delta_ratio": ratio,
            "random_divergence": random,
            "ascent_divergence": ascent.detach(),
            "ascent_gain": ascent.detach() / random.clamp_min(torch.finfo(torch.float32).tiny),
        }


# ------------------------------------------------------------------------------------------ Bregman


def paper_beta(step: int, total_steps: int) -> float:
    """The SMART paper's momentum: 0.99 for the first tenth of the run, then 0.999."""
    return 0.99 if step < 0.1 * total_steps else 0.999


def fitted_beta(step: int, total_steps: int) -> float:
    """A momentum whose horizon 1/(1-β) is a tenth of the run, and at most the paper's 1,000 steps.

    In a run of some hundred steps the paper's momentum would keep the teacher at the starting point.
    """
    return 1 - 1 / min(1000.0, max(1.0, 0.1 * total_steps))


class BregmanProximal:
    """D_Breg of the SMART paper in its momentum form: the divergence between the model and a moving average
    of itself.

    `teacher`, θ̃, is a copy of the whole model at step 0. After each optimizer step, `update` makes it θ̃ ←
    (1-β)θ + β θ̃,
    every parameter. It is never differentiated, and sees the dropout masks of the model, so the term is 0 at
    step 0.
    """

    def __init__(self, model: nn.Module):
        self.teacher = copy.deepcopy(model).requires_grad_(False)

    def __call__(
        self,
        logits: Tensor,
        forward: Callable[[nn.Module], Tensor],
        divergence: Callable[[Tensor, Tensor], Tensor],
        generator: Tensor | None,
    ) -> Tensor:
        """divergence(logits, forward(teacher)), a scalar; `generator` is the generator's state before the
        model's own pass."""
        with torch.no_grad(), generator_at(logits.device, generator):
            target = forward(self.teacher)
        return divergence(logits, target)

    @torch.no_grad()
    def update(self, model: nn.Module, beta: float) -> None:
        """One step of the moving average, after the optimizer's."""
        torch._foreach_lerp_(list(self.teacher.parameters()), list(model.parameters()), 1 - beta)
