"""The divergences against scipy, closed forms and finite differences."""

import numpy as np
import pytest
import torch
from scipy import special, stats

from mysmartloss import bernoulli_sym_kl_loss, multilabel_sym_kl_loss, squared_error
from toys import ALL, BERNOULLI, SOFTMAX, random_logits


def by_scipy(name: str, input: torch.Tensor, target: torch.Tensor) -> float:
    """The divergence from scipy's entropy, row by row."""
    if name in BERNOULLI:
        input, target = (torch.cat([torch.zeros_like(x), x], -1) for x in (input, target))
    q, p = (special.softmax(x.numpy(), axis=-1) for x in (input, target))
    kl = {
        "kl_loss": lambda p, q: stats.entropy(p, q),
        "sym_kl_loss": lambda p, q: stats.entropy(p, q) + stats.entropy(q, p),
        "js_loss": lambda p, q: (stats.entropy(p, (p + q) / 2) + stats.entropy(q, (p + q) / 2)) / 2,
    }[name.removeprefix("bernoulli_")]
    return float(np.mean([kl(a, b) for a, b in zip(p, q, strict=True)]))


@pytest.mark.parametrize("name", [*SOFTMAX, *BERNOULLI])
def test_values_are_scipys(name):
    """Guards against a divergence with swapped arguments, without one half, or with a sum for a mean."""
    input, target = random_logits(name)
    assert ALL[name](input, target).item() == pytest.approx(by_scipy(name, input, target), rel=1e-9)


def test_multilabel_is_torchs_kl_of_independent_bernoullis():
    """Guards against a softmax over labels that do not exclude each other, and a mean over the labels:
    the divergence of independent labels is the sum of theirs."""
    input, target = random_logits("multilabel_sym_kl_loss")
    q, p = (torch.distributions.Bernoulli(logits=x) for x in (input, target))
    expected = torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p)  # (B,C)
    torch.testing.assert_close(multilabel_sym_kl_loss(input, target), expected.sum(-1).mean())


def test_squared_error_by_hand():
    """Guards against a mean over the outputs, which must be summed,
    and a sum over the rows, which must be averaged."""
    assert squared_error(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [1.0]])).item() == 2.5
    assert squared_error(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 1.0])).item() == 2.5
    assert squared_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]])).item() == 5.0


@pytest.mark.parametrize("name", ALL)
def test_the_last_axis_is_that_of_the_outputs(name):
    """Guards against an axis counted from the front, wrong for outputs of every token, and against (B,), the
    output after a `squeeze`, read as B classes."""
    input, target = random_logits(name)
    expected = ALL[name](input, target).item()
    shapes = [(6,)] if name in BERNOULLI else [(*rows, input.shape[-1]) for rows in ((2, 3), (6, 1), (1, 6))]
    for shape in shapes:
        found = ALL[name](input.reshape(shape), target.reshape(shape)).item()
        assert found == pytest.approx(expected, rel=1e-12), shape


@pytest.mark.parametrize("name", ALL)
def test_gradients_by_finite_differences(name):
    """Guards against a detach inside a divergence: gradients flow to both arguments."""
    pairs = [x.requires_grad_() for x in random_logits(name)]
    assert torch.autograd.gradcheck(ALL[name], pairs)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_with_zero_gradient_at_equality(name, dtype):
    """Guards against a term that changes the model although the two outputs are equal."""
    input, target = (random_logits(name)[0].to(dtype).requires_grad_() for _ in range(2))
    loss = ALL[name](input, target)
    loss.backward()
    assert loss.item() == 0 and loss.dtype == torch.float32
    assert input.grad.abs().max() == 0 and target.grad.abs().max() == 0


@pytest.mark.parametrize("name", BERNOULLI)
def test_bernoulli_forms_are_stable(name):
    """Guards against log(sigmoid) overflowing to inf or NaN for a confident model."""
    for a, b in [(80.0, -80.0), (-80.0, 80.0), (80.0, 79.0), (80.0, 0.0), (1e4, -1e4)]:
        input = torch.tensor([[a]], requires_grad=True)
        loss = BERNOULLI[name](input, torch.tensor([[b]]))
        loss.backward()
        assert torch.isfinite(loss) and loss >= 0 and torch.isfinite(input.grad).all()
    sym = bernoulli_sym_kl_loss(torch.tensor([[80.0]]), torch.tensor([[-80.0]])).item()
    assert sym == pytest.approx(160)  # (σ(a) - σ(b)) (a - b)


# One logit: the softmax KL is always 0, and the regulariser would do nothing on paraphrase and similarity.
# Five logits: five classes are not five independent coins.
# (B,) against (B,1) would be broadcast to (B,B), which is 1.85 on identical inputs in mt-dnn.
REFUSED = [
    *(
        (name, shape, shape, f"bernoulli_{name} or squared_error")
        for name in SOFTMAX
        for shape in ((4, 1), (4,))
    ),
    *((name, (4, 5), (4, 5), f"use {name.removeprefix('bernoulli_')}") for name in BERNOULLI),
    *((name, (4,), (4, 1), "broadcast") for name in ALL),
    ("multilabel_sym_kl_loss", (4,), (4,), "no axis of labels"),
]


@pytest.mark.parametrize(("name", "shape", "other", "said"), REFUSED)
def test_shapes_that_mean_something_else_are_refused(name, shape, other, said):
    """Guards against a value that is silently always 0 or of other rows."""
    with pytest.raises(ValueError, match=said):
        ALL[name](torch.randn(shape), torch.randn(other))
