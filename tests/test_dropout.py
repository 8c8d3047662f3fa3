"""Dropout's own random numbers: the rate, the scale, and masks that are kept for another pass."""

import pytest
import torch

import support.dropout
from tiny_bert import both_berts, inputs


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1,), (7, 13), (40, 50, 60)])
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


def test_kept_masks(tmp_path):
    """Guards against a later pass with other masks than the first,
    with its masks in another order, or with masks drawn again, which costs time."""
    ours = both_berts(tmp_path, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)[0].train()
    ids, mask, types = inputs()
    masks = []
    with support.dropout.keep_masks(masks):
        embeddings = ours.embed(ids, types)
    start = len(masks)
    with support.dropout.keep_masks(masks, start):
        first = ours.encode(embeddings, mask)
    assert (start, len(masks)) == (1, 1 + 3 * ours.config.num_hidden_layers)
    other = ours.encode(embeddings, mask)
    state = torch.get_rng_state()
    with support.dropout.keep_masks(masks):
        whole = ours(ids, mask, types)["last_hidden_state"]
    with support.dropout.keep_masks(masks, start):
        again = ours.encode(embeddings, mask)
    assert torch.equal(first, whole) and torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-2)
    assert torch.equal(torch.get_rng_state(), state) and len(masks) == 1 + 3 * ours.config.num_hidden_layers
    # Outside `keep_masks` every pass draws masks of its own.
    assert not torch.allclose(first, ours.encode(embeddings, mask), atol=1e-2)
