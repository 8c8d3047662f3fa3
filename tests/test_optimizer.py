"""AdamW against torch's, a case by hand, and its two ways against each other; the learning-rate schedule."""

import pytest
import torch
import transformers
from torch import nn

from optimizer import AdamW, warmup_decay

SHAPES = ((3, 4), (5,), ())


def parameters(dtype=torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]


def gradients(steps: int, dtype=torch.float64) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES] for _ in range(steps)]


def run(optimizer, params, steps) -> None:
    """A step for each list of gradients (None: no gradient), at a learning rate that falls."""
    for grads in steps:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] *= 0.97


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_fifty_steps_are_torchs(dtype, tolerance):
    """Guards against moments, bias correction or a group's settings that are slightly off:
    training works, but more slowly."""

    def groups(params):
        return [{"params": params[:1], "lr": 3e-3, "betas": (0.8, 0.95)}, {"params": params[1:]}]

    ours, theirs = parameters(dtype), parameters(dtype)
    run(AdamW(groups(ours), lr=1e-2, eps=1e-30), ours, gradients(50, dtype))
    # torch's loop, not the fused kernel that ours calls
    settings = {"lr": 1e-2, "eps": 1e-30, "weight_decay": 0, "foreach": False, "fused": False}
    run(torch.optim.AdamW(groups(theirs), **settings), theirs, gradients(50, dtype))
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def assert_both_ways_agree(dtype, tolerance: float, steps: list, **settings) -> None:
    """The formula in tensor code and the fused kernel end with the same weights and moments."""
    ends = []
    for fused in (True, False):
        params = parameters(dtype)[: len(steps[0])]
        optimizer = AdamW(params, **settings)
        assert optimizer._step_supports_amp_scaling
        optimizer._step_supports_amp_scaling = fused
        run(optimizer, params, steps)
        moments = [optimizer.state[param][name] for param in params for name in ("exp_avg", "exp_avg_sq")]
        ends.append([*params, *moments])
    for kernel, formula in zip(*ends, strict=True):
        assert (kernel - formula).norm() <= tolerance * formula.norm()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("correct_bias", [True, False])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.9), (0.9, 0.0)])
def test_the_formula_and_the_fused_kernel_agree(dtype, tolerance, correct_bias, betas):
    """Guards against an ε, a decay or a correction that the fused kernel takes at another place."""
    steps = gradients(50, dtype)
    steps[3][0] = None
    settings = {"lr": 0.1, "eps": 0.3, "weight_decay": 0.5, "betas": betas, "correct_bias": correct_bias}
    assert_both_ways_agree(dtype, tolerance, steps, **settings)


@pytest.mark.parametrize(
    "layout", [lambda grad: grad.t().contiguous().t(), lambda grad: grad[:, :1].expand_as(grad)]
)
def test_gradients_in_any_memory_layout(layout):
    """Guards against a gradient that is a view, applied to the wrong entries: the kernel ignores strides."""
    steps = [[layout(step[0])] for step in gradients(3)]
    assert_both_ways_agree(torch.float64, 1e-12, steps, lr=0.1)


@pytest.mark.parametrize(
    ("correct_bias", "expected"),
    [
        # α_t = .1 √.001 / .1 = .0316228; θ = 1 - .0316228 (.05 / .0316228) = .95; less .1 x .5 of itself
        (True, 0.9025),
        # θ = 1 - .1 (.05 / .0316228) = .8418861; less .1 x .5 of itself
        (False, 0.7997918),
    ],
)
def test_first_step_by_hand(correct_bias, expected):
    """Guards against ε added to the wrong root (√v or √v̂), and decay before the update.

    g = .5, so m = .05 and √v = √.00025 = .0158114; ε is the same number."""
    theta = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    theta.grad = torch.tensor(0.5, dtype=torch.float64)
    settings = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 0.00025**0.5, "weight_decay": 0.5}
    AdamW([theta], **settings, correct_bias=correct_bias).step()
    assert theta.item() == pytest.approx(expected, abs=1e-7)


def test_the_defaults_are_the_courses():
    """Guards against a default rate that nobody passes and everybody trains with."""
    settings = AdamW(parameters()).defaults
    expected = {"lr": 0.001, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0, "correct_bias": True}
    assert {name: settings[name] for name in expected} == expected


@pytest.mark.parametrize(
    "settings", [{"lr": float("nan")}, {"eps": -1e-8}, {"weight_decay": -0.1}, {"betas": (0.9, 1.0)}], ids=str
)
def test_settings_that_cannot_be_right(settings):
    """Guards against ascent in place of descent, or a moment that never moves."""
    with pytest.raises(ValueError, match=f"AdamW: .*{next(iter(settings))}"):
        AdamW(parameters(), **settings)


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (3, 10), (10, 10), (1, 1), (0, 1)])
def test_warmup_decay_is_transformers(warmup, total):
    """Guards against a schedule off by one: a first step at full rate, or a last one below zero."""
    optimizer = torch.optim.SGD(parameters(), lr=1.0)
    scheduler = transformers.get_linear_schedule_with_warmup(optimizer, warmup, total)
    for step in range(total + 3):
        assert warmup_decay(step, warmup, total) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-15), step
        optimizer.step()
        scheduler.step()
