"""The divergences against scipy, closed forms and finite differences."""

import numpy as np
import pytest
import torch
from scipy import special, stats

from mysmartloss import bernoulli_sym_kl_loss, multilabel_sym_kl_loss, squared_error
from toys import ALL, BERNOULLI, SOFTMAX, random_logits


def by_scipy(name: str, input: torch.Tensor, target: torch.Tensor) -> float:
    """The divergence from scipy's entropy, row by row."""
    kind = name.removeprefix("bernoulli_")
    if name in BERNOULLI:
        input, target = (torch.cat([torch.zeros_like(x), x], -1) for x in (input, target))
    q, p = (special.softmax(x.numpy(), axis=-1) for x in (input, target))
    kl = {
        "kl_loss": lambda p, q: stats.entropy(p, q),
        "sym_kl_loss": lambda p, q: stats.entropy(p, q) + stats.entropy(q, p),
        "js_loss": lambda p, q: (stats.entropy(p, (p + q) / 2) + stats.entropy(q, (p + q) / 2)) / 2,
    }[kind]
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
    of_one = multilabel_sym_kl_loss(input[:, :1], target[:, :1])
    torch.testing.assert_close(of_one, bernoulli_sym_kl_loss(input[:, :1], target[:, :1]))
    with pytest.raises(ValueError, match="no axis of labels"):
        multilabel_sym_kl_loss(input[:, 0], target[:, 0])


def test_squared_error_by_hand():
    """Guards against a mean over the outputs, which must be summed,
    and a sum over the rows, which must be averaged."""
    assert squared_error(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [1.0]])).item() == 2.5
    assert squared_error(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 1.0])).item() == 2.5
    assert squared_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]])).item() == 5.0


@pytest.mark.parametrize("name", [*SOFTMAX, "multilabel_sym_kl_loss", "squared_error"])
def test_the_last_axis_is_that_of_the_outputs(name):
    """Guards against an axis counted from the front: right for (B,C), wrong for outputs of every token."""
    input, target = random_logits(name)
    input, target = (torch.cat([x, 3 * x], -1) for x in (input, target))  # 6 rows of C = 10 or 2
    expected = ALL[name](input, target).item()
    for shape in ((2, 3, -1), (6, 1, -1), (1, 6, -1)):
        found = ALL[name](input.reshape(shape), target.reshape(shape)).item()
        assert found == pytest.approx(expected, rel=1e-12), shape


@pytest.mark.parametrize("name", BERNOULLI)
def test_bernoulli_forms_accept_rows_without_an_axis_of_outputs(name):
    """Guards against (B,), the output after a `squeeze`, refused or read as B classes."""
    input, target = random_logits(name)
    flat = BERNOULLI[name](input[:, 0], target[:, 0]).item()
    assert flat == BERNOULLI[name](input, target).item()


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


@pytest.mark.parametrize("name", ALL)
def test_batch_mean(name):
    """Guards against `reduction='sum'`: λ would mean something else for every batch size."""
    input, target = random_logits(name)
    once = ALL[name](input, target)
    thrice = ALL[name](input.repeat(3, 1), target.repeat(3, 1))
    assert thrice.item() == pytest.approx(once.item(), rel=1e-12)


@pytest.mark.parametrize("name", BERNOULLI)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bernoulli_forms_are_stable(name, dtype):
    """Guards against log(sigmoid) overflowing to inf or NaN for a confident model."""
    for a, b in [(80.0, -80.0), (-80.0, 80.0), (80.0, 79.0), (80.0, 0.0), (1e4, -1e4)]:
        input = torch.tensor([[a]], dtype=dtype, requires_grad=True)
        target = torch.tensor([[b]], dtype=dtype)
        loss = BERNOULLI[name](input, target)
        loss.backward()
        assert torch.isfinite(loss) and loss >= 0 and torch.isfinite(input.grad).all()
    sym = bernoulli_sym_kl_loss(torch.tensor([[80.0]]), torch.tensor([[-80.0]])).item()
    assert sym == pytest.approx(160)  # (σ(a) - σ(b)) (a - b)


@pytest.mark.parametrize("name", SOFTMAX)
@pytest.mark.parametrize("shape", [(4, 1), (4,), (4, 5, 1)])
def test_one_logit_is_refused(name, shape):
    """Guards against the softmax KL of one logit, which is always 0:
    the regulariser would do nothing on paraphrase and similarity."""
    with pytest.raises(ValueError, match=f"bernoulli_{name} or squared_error"):
        SOFTMAX[name](torch.randn(shape), torch.randn(shape))


@pytest.mark.parametrize("name", BERNOULLI)
@pytest.mark.parametrize("shape", [(4, 5), (4, 1, 5)])
def test_several_logits_are_refused_by_bernoulli_forms(name, shape):
    """Guards against five classes read as five independent coins."""
    with pytest.raises(ValueError, match=f"use {name.removeprefix('bernoulli_')}"):
        BERNOULLI[name](torch.randn(shape), torch.randn(shape))


@pytest.mark.parametrize("name", ALL)
def test_shapes_that_would_broadcast_are_refused(name):
    """Guards against (B,) broadcast against (B,1) to (B,B), which is 1.85 on identical inputs in mt-dnn."""
    input, _ = random_logits(name)
    with pytest.raises(ValueError, match="broadcast"):
        ALL[name](input[:, 0], input)
