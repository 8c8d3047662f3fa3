"""Dropout's own random numbers: the rate and the scale."""

import pytest
import torch

import support.dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(7, 13), (40, 50, 60)])
def test_dropout_keeps_what_it_should(p, shape):
    """Guards against another rate or scale than the one asked for, and neighbours dropped together."""
    torch.manual_seed(0)
    x = torch.ones(shape, dtype=torch.float64, requires_grad=True)
    draws = torch.stack([support.dropout.dropout(x, p) for _ in range(20_000 // x.numel() + 3)])
    kept = (draws != 0).double()
    assert abs(kept.mean() - (1 - p)) < 5 * (p * (1 - p) / kept.numel()) ** 0.5 + 2**-16
    scale = torch.tensor([1 / (1 - p)], dtype=torch.float64)
    torch.testing.assert_close(draws[draws != 0].unique(), scale, rtol=2**-12, atol=0)
    if len(shape) == 3:
        neighbours = (kept[:, :, :, 1:] - kept.mean()) * (kept[:, :, :, :-1] - kept.mean())
        assert abs(neighbours.mean()) < 5 * p * (1 - p) / neighbours.numel() ** 0.5
    (gradient,) = torch.autograd.grad(draws[0].sum(), x)
    assert torch.equal(gradient, draws[0])  # the mask of the forward pass
