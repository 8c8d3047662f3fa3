"""AdamW by hand, its parameter groups and the learning-rate schedule. It knows tensors only, no model class.

Source: Kingma & Ba 2015 (arXiv 1412.6980), Algorithm 1 and the efficient form at the end of its section 2;
Loshchilov & Hutter 2019 (arXiv 1711.05101) for the decoupled weight decay.
Not handled: sparse gradients, AMSGrad, closures that compute the gradients.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay, in the signature of Stanford's CS 224N project.

        m ← β₁ m + (1-β₁) g
        v ← β₂ v + (1-β₂) g²
        θ ← θ - α_t m / (√v + ε)     with α_t = α √(1-β₂ᵗ) / (1-β₁ᵗ) if `correct_bias`, else α
        θ ← θ - α λ θ

    Two details differ from `torch.optim.AdamW`. ε is added to the uncorrected √v (the efficient form of
    Kingma & Ba), and the weight decay follows the update. A parameter without a gradient is not changed, and
    its step count t does not advance.

    lr: α. betas: β₁ and β₂. eps: ε. weight_decay: λ.
    Raises ValueError if lr, eps or weight_decay is below 0, or if a β lies outside [0, 1).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
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
    def step(  # type: ignore[override]  # the base class declares overloads, without our keywords
        self,
        closure: Callable[[], float] | None = None,
        *,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> float | None:
        """One update of every parameter that has a gradient. Returns the closure's loss, or None.

        grad_scale: scalar tensor. Gradients are first divided by it, in place, in the same pass over memory,
            so that clipping needs no pass of its own.
        found_inf: scalar tensor. Where it is 1, weights and moments keep their values, and the host does not
            wait for a GPU to read it. The step count t advances in both cases.

        Raises RuntimeError for a sparse gradient, ValueError if lr times weight_decay is 1 or more.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            # A head trains only on its own task's batches, so its t is smaller than the encoder's.
            by_step: dict[int, list[Tensor]] = defaultdict(list)
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

    def _update(
        self,
        group: dict[str, Any],
        step: int,
        params: list[Tensor],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """The formula of the class for parameters that share t = `step`, in one pass over memory.

        torch's fused kernel computes θ (1 - α'λ') - α'/(1-β₁ᵗ) m / (√v/√(1-β₂ᵗ) + ε'). Our update, followed
        by our decay, is the same with ε' = ε/√(1-β₂ᵗ), α' = α(1 - αλ) and α'λ' = αλ. t = ∞ switches the bias
        correction off.

        `torch._fused_adamw_` is private. The public `torch.optim.AdamW(fused=True)` runs the same kernel and
        takes 1.02 times as long, but it has one ε for a group, and ε' depends on t. The formula of the class
        takes 4.4 times as long in plain tensor operations and 6.1 times in `torch._foreach_...` operations
        (MiniLM's 22.7 M parameters, one CPU core, medians of 50 interleaved steps). If torch drops the
        kernel, write the formula here as a loop over the parameters; the tests compare it with torch's AdamW.
        """
        beta1, beta2 = group["betas"]
        kept = 1 - group["lr"] * group["weight_decay"]  # the factor 1 - αλ of the decay
        if kept <= 0:
            raise ValueError(
                f"AdamW: lr {group['lr']} times weight_decay {group['weight_decay']} must be below 1"
            )
        t = torch.full((), float(step) if group["correct_bias"] else torch.inf, device=params[0].device)
        torch._fused_adamw_(
            params,
            [_gradient(param) for param in params],
            [self.state[param]["exp_avg"] for param in params],
            [self.state[param]["exp_avg_sq"] for param in params],
            [],
            [t] * len(params),
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


def _gradient(param: Tensor) -> Tensor:
    """The gradient with the parameter's strides. The fused kernel ignores them and reads in order."""
    assert param.grad is not None  # `step` selects parameters with a gradient
    if param.grad.stride() == param.stride():
        return param.grad
    return torch.empty_like(param).copy_(param.grad)


def parameter_groups(
    model: nn.Module, weight_decay: float, lr_factor: Callable[[str], float] = lambda name: 1.0
) -> list[dict[str, Any]]:
    """The model's trainable parameters, in two groups for each learning rate.

    Matrices have weight decay. Biases and LayerNorm weights have none.
    lr_factor: from a parameter's name to the factor on the learning rate, the group's `lr_factor`.
    """
    by_factor: dict[float, list[Tensor]] = {}
    for name, param in model.named_parameters():
        if param.requires_grad:
            by_factor.setdefault(lr_factor(name), []).append(param)
    groups = []
    for factor, params in by_factor.items():
        matrices = [param for param in params if param.ndim >= 2]
        others = [param for param in params if param.ndim < 2]
        groups.append({"params": matrices, "weight_decay": weight_decay, "lr_factor": factor})
        groups.append({"params": others, "weight_decay": 0.0, "lr_factor": factor})
    return groups


def warmup_decay(step: int, warmup_steps: int, total_steps: int) -> float:
    """Factor on the learning rate for step 0, 1, ...

    It rises linearly from 0 to 1 over `warmup_steps`, then falls linearly to 0 at `total_steps`. The numbers
    are those of `transformers.get_linear_schedule_with_warmup`.
    """
    if step < warmup_steps:
        return step / max(1, warmup_steps)
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
