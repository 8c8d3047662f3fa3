"""AdamW by hand, its parameter groups and the learning-rate schedule. Tensors in, tensors out.

Source: Kingma & Ba 2015 (arXiv 1412.6980, Algorithm 1 and the efficient form at the end of its section 2);
Loshchilov & Hutter 2019 (arXiv 1711.05101) for the decoupled weight decay.
Not handled: sparse gradients, AMSGrad, closures that recompute the loss.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay, in the signature of Stanford's CS 224N project.

    m ← β₁m + (1-β₁)g;  v ← β₂v + (1-β₂)g²;  θ ← θ - α_t m / (√v + ε);  θ ← θ - α λ θ
    with α_t = α √(1-β₂ᵗ) / (1-β₁ᵗ) if `correct_bias`, else α. ε stands beside the uncorrected √v (the
    efficient form), where
    `torch.optim.AdamW` has it beside the corrected one; decay comes after the update, there before it.
    A parameter without a gradient is left alone and its t does not advance.

    Raises ValueError for a learning rate, ε or decay below 0, or a β outside [0, 1).
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
    ):
        for name, value in {"lr": lr, "eps": eps, "weight_decay": weight_decay}.items():
            if not value >= 0:
                raise ValueError(f"AdamW: {name} must be at least 0, not {value}")
        for beta in betas:
            if not 0 <= beta < 1:
                raise ValueError(f"AdamW: each of betas must lie in [0, 1), not {beta}")
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "correct_bias": correct_bias,
            },
        )

    @torch.no_grad()
    def step(
        self, closure=None, *, grad_scale: torch.Tensor | None = None, found_inf: torch.Tensor | None = None
    ):
        """One update of every parameter that has a gradient. Returns the closure's loss, or None.

        grad_scale: gradients are first divided by it (a scalar tensor), in place; clipping costs no pass of
        its own then.
        found_inf: where this scalar is 1, weights and moments stay as they are, and no GPU is waited for to
        know it; t advances anyway.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_step = defaultdict(list)  # a head that sat out some batches is at a smaller t than the encoder
            for param in group["params"]:
                if param.grad is None:
                    continue
                if param.grad.is_sparse:
                    raise RuntimeError("AdamW: sparse gradients are not supported")
                state = self.state[param]
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(param)
                    state["exp_avg_sq"] = torch.zeros_like(param)
                state["step"] += 1
                by_step[state["step"]].append(param)
            for step, params in by_step.items():
                self._update(group, step, params, grad_scale, found_inf)
        return loss

    def _update(self, group: dict, step: int, params: list[torch.Tensor], grad_scale, found_inf) -> None:
        """The formula above for parameters that share t = `step`, in one pass over memory by torch's fused
        AdamW.

        That primitive computes θ(1 - α'λ') - α'/(1-β₁ᵗ) m / (√v/√(1-β₂ᵗ) + ε'). With ε' = ε/√(1-β₂ᵗ), α' =
        α(1 - αλ) and
        α'λ' = αλ this is our update followed by our decay; t = ∞ leaves the bias uncorrected.
        """
        beta1, beta2 = group["betas"]
        kept = 1 - group["lr"] * group["weight_decay"]
        if kept <= 0:
            raise ValueError(
                f"AdamW: lr {group['lr']} times weight_decay {group['weight_decay']} must be below 1"
            )
        seen = torch.full((), float(step) if group["correct_bias"] else torch.inf, device=params[0].device)
        torch._fused_adamw_(
            params,
            [_laid_out_like(param.grad, param) for param in params],
            [self.state[param]["exp_avg"] for param in params],
            [self.state[param]["exp_avg_sq"] for param in params],
            [],
            [seen] * len(params),
            lr=group["lr"] * kept,
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"] / kept,
            eps=group["eps"] / ((1 - beta2**step) ** 0.5 if group["correct_bias"] else 1.0),
            amsgrad=False,
            maximize=False,
            grad_scale=grad_scale,
            found_inf=found_inf,
        )


def _laid_out_like(grad: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
    """The gradient with the parameter's strides: the fused primitive goes through memory in order and would
    not notice others."""
    return grad if grad.stride() == param.stride() else torch.empty_like(param).copy_(grad)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """The model's trainable parameters in two groups: matrices, which decay, and biases and LayerNorm
    weights, which don't."""
    params = [param for param in model.parameters() if param.requires_grad]
    return [
        {"params": [param for param in params if param.ndim >= 2], "weight_decay": weight_decay},
        {"params": [param for param in params if param.ndim < 2], "weight_decay": 0.0},
    ]


def warmup_decay(step: int, warmup_steps: int, total_steps: int) -> float:
    """Factor on the learning rate for step 0, 1, ...: linear from 0 to 1 over `warmup_steps`, then linear to
    0 at `total_steps`.

    The same numbers as `transformers.get_linear_schedule_with_warmup`.
    """
    if step < warmup_steps:
        return step / max(1, warmup_steps)
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
