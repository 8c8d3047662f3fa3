"""AdamW against torch's, its own formula in float64 and a case by hand; the learning-rate schedule."""

import copy
import io

import pytest
import torch
import transformers
from torch import nn

from optimizer import AdamW, warmup_decay

SHAPES = ((3, 4), (5,), ())


def parameters(dtype=torch.float64, device=None) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype).to(device)) for shape in SHAPES]


def gradients(steps: int, dtype=torch.float64) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES] for _ in range(steps)]


def run(optimizer, params, steps) -> None:
    """A step for each list of gradients (None: the parameter sits out), at a learning rate that falls."""
    for grads in steps:
        for param, grad in zip(params, grads, strict=True):
            param.grad = None if grad is None else grad.clone()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] *= 0.97


def by_formula(param, grads, lr, betas, eps, weight_decay, correct_bias):
    """The docstring's formula, word for word, in float64."""
    theta = param.detach().double().clone()
    m = torch.zeros_like(theta)
    v = torch.zeros_like(theta)
    for t, grad in enumerate(grads, start=1):
        g = grad.double()
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        rate = lr * (1 - betas[1] ** t) ** 0.5 / (1 - betas[0] ** t) if correct_bias else lr
        theta = theta - rate * m / (v.sqrt() + eps)
        theta = theta - lr * weight_decay * theta
        lr *= 0.97
    return theta


# -------------------------------------------------------------------------------------------- AdamW


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_fifty_steps_are_torchs(dtype, tolerance):
    """Guards against moments, bias correction or a group's settings that are slightly off:
    training works, but more slowly."""

    def groups(params):
        return [{"params": params[:1], "lr": 3e-3, "betas": (0.8, 0.95)}, {"params": params[1:]}]

    ours, theirs = parameters(dtype), parameters(dtype)
    run(AdamW(groups(ours), lr=1e-2, eps=1e-30), ours, gradients(50, dtype))
    # torch's loop, not the primitive that ours is built on
    settings = {"lr": 1e-2, "eps": 1e-30, "weight_decay": 0, "foreach": False, "fused": False}
    run(torch.optim.AdamW(groups(theirs), **settings), theirs, gradients(50, dtype))
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
@pytest.mark.parametrize("correct_bias", [True, False])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.9), (0.9, 0.0)])
@pytest.mark.parametrize(("eps", "weight_decay"), [(1e-6, 0.0), (0.3, 0.5)])
def test_fifty_steps_are_the_formulas(dtype, tolerance, correct_bias, betas, eps, weight_decay):
    """Guards against ε added to the wrong root (√v or √v̂), decay before the update or through the moments,
    and a correction that can't be switched off."""
    settings = {"lr": 0.1, "betas": betas, "eps": eps}
    settings |= {"weight_decay": weight_decay, "correct_bias": correct_bias}
    params = parameters(dtype)
    grads = gradients(50, dtype)
    pairs = zip(params, zip(*grads, strict=True), strict=True)
    expected = [by_formula(param, series, **settings).to(dtype) for param, series in pairs]
    run(AdamW(params, **settings), params, grads)
    torch.testing.assert_close([param.detach() for param in params], expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("correct_bias", [True, False])
def test_the_formula_and_the_fused_kernel_agree(dtype, tolerance, correct_bias):
    """Guards against other results on devices without the fused kernel, where the formula itself runs."""
    steps = gradients(50, dtype)
    steps[3][0] = None
    ends = []
    for fused in (True, False):
        params = parameters(dtype)
        optimizer = AdamW(params, lr=0.01, weight_decay=0.1, correct_bias=correct_bias)
        assert optimizer._step_supports_amp_scaling
        optimizer._step_supports_amp_scaling = fused
        run(optimizer, params, steps)
        moments = [optimizer.state[param][name] for param in params for name in ("exp_avg", "exp_avg_sq")]
        ends.append([*params, *moments])
    for plain, fused in zip(*ends, strict=True):
        assert (plain - fused).norm() <= tolerance * fused.norm()


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
    """Guards against the formula and its test being wrong in the same way.

    g = .5, so m = .05 and √v = √.00025 = .0158114; ε is the same number."""
    theta = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    theta.grad = torch.tensor(0.5, dtype=torch.float64)
    settings = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 0.00025**0.5, "weight_decay": 0.5}
    AdamW([theta], **settings, correct_bias=correct_bias).step()
    assert theta.item() == pytest.approx(expected, abs=1e-7)


def test_a_parameter_that_sits_out():
    """Guards against a head that decays, or counts a step, in batches of other tasks."""
    settings = {"lr": 0.1, "weight_decay": 0.5, "eps": 0.1}
    params = parameters()
    alone = parameters()
    grads = gradients(6)
    for step in (0, 2, 3, 5):
        grads[step][0] = None
    optimizer = AdamW(params, **settings)
    run(optimizer, params, grads)
    other = AdamW(alone[:1], **settings)  # only steps 1 and 4, at the learning rates of steps 1 and 4
    for step in (1, 4):
        other.param_groups[0]["lr"] = 0.1 * 0.97**step
        run(other, alone[:1], [grads[step][:1]])
    torch.testing.assert_close(params[0], alone[0], atol=1e-14, rtol=0)
    assert [optimizer.state[param]["step"] for param in params] == [2, 6, 6]


def test_state_dict_continues_identically():
    """Guards against a resumed run whose moments or step counts start anew."""
    params = parameters(torch.float32)
    grads = gradients(10, torch.float32)
    grads[2][0] = None
    optimizer = AdamW(params, lr=0.1, weight_decay=0.1)
    run(optimizer, params, grads[:5])
    again = copy.deepcopy(params)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    run(optimizer, params, grads[5:])
    resumed = AdamW(again, lr=7.0)  # whose own settings the state replaces
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    run(resumed, again, grads[5:])
    assert all(torch.equal(a, b) for a, b in zip(params, again, strict=True))


LAYOUTS = {
    "transposed": lambda grad: grad.t().contiguous().t(),
    "expanded": lambda grad: grad[:, :1].expand_as(grad),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_in_any_memory_layout(layout):
    """Guards against a gradient that is a view, as a hook may set it, applied to the wrong entries."""
    params = parameters()[:1]
    grads = [LAYOUTS[layout](step[0]) for step in gradients(3)]
    settings = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0, "correct_bias": True}
    expected = by_formula(params[0], grads, **settings)
    optimizer = AdamW(params, **settings)
    for grad in grads:
        params[0].grad = grad
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.97
    torch.testing.assert_close(params[0].detach(), expected, atol=1e-12, rtol=0)


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


def test_what_it_cannot_do_is_refused():
    """Guards against weights that decay to zero or change sign, and a sparse gradient read as a dense one."""
    params = parameters()
    with pytest.raises(ValueError, match="lr .* times weight_decay"):
        run(AdamW(params, lr=0.1, weight_decay=10.0), params, gradients(1))
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1, 3])).sum().backward()
    with pytest.raises(RuntimeError, match="AdamW: sparse"):
        AdamW(embedding.parameters()).step()


# ----------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (3, 10), (10, 10), (1, 1), (0, 1)])
def test_warmup_decay_is_transformers(warmup, total):
    """Guards against a schedule off by one: a first step at full rate, or a last one below zero."""
    optimizer = torch.optim.SGD(parameters(), lr=1.0)
    scheduler = transformers.get_linear_schedule_with_warmup(optimizer, warmup, total)
    for step in range(total + 3):
        assert warmup_decay(step, warmup, total) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-15), step
        optimizer.step()
        scheduler.step()
