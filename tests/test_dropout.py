"""Dropout's own random numbers: the rate, the scale, and masks that are kept for another pass."""

import contextlib
import gc
import weakref

import pytest
import torch

import multitask_classifier
import support.dropout
from config import TrainConfig
from mysmartloss import BregmanProximal
from tasks import TASKS
from tiny_bert import tiny_batch, tiny_model


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


def test_kept_masks_change_no_number(monkeypatch):
    """Guards against a pass with another mask than the state of the random generator says: of another pass,
    another shape or another rate; and against masks that are drawn again, which costs time."""
    draws = []
    draw_mask = support.dropout.draw_mask
    monkeypatch.setattr(support.dropout, "draw_mask", lambda x, p: draws.append(p) or draw_mask(x, p))
    shapes = [((4, 6), 0.1), ((4, 6), 0.5), ((24,), 0.5), ((2, 3), 0.1)]

    def four_passes():
        torch.manual_seed(0)
        start = torch.get_rng_state()
        found = []
        for order in (shapes, shapes, shapes[::-1], shapes[1:]):  # the last two meet other states
            torch.set_rng_state(start)
            found += [support.dropout.dropout(torch.ones(shape), p) for shape, p in order]
        return [*found, torch.get_rng_state()]

    drawn_anew = four_passes()
    assert len(draws) == 15
    draws.clear()
    with support.dropout.keep_masks():
        kept = four_passes()
        assert 4 + 3 <= len(draws) <= 11  # none of the second pass is drawn
    assert all(torch.equal(*both) for both in zip(drawn_anew, kept, strict=True))
    draws.clear()
    four_passes()
    assert len(draws) == 15  # the block is over


def test_a_smart_step_draws_each_mask_once(monkeypatch):
    """Guards against masks that are drawn again for the ascent, for R_s or for the teacher, against losses
    that keeping them changes, and against masks that outlive their step."""
    drawn = []
    draw_mask = support.dropout.draw_mask

    def counted(x, p):
        mask = draw_mask(x, p)
        drawn.append(weakref.ref(mask))
        return mask

    monkeypatch.setattr(support.dropout, "draw_mask", counted)
    model = tiny_model()
    config = TrainConfig(use_smart=True, smart_steps=2, precision="fp32")
    outcomes = []
    for keep_masks in (support.dropout.keep_masks, lambda enabled: contextlib.nullcontext()):
        monkeypatch.setattr(multitask_classifier, "keep_masks", keep_masks)
        torch.manual_seed(0)
        losses = multitask_classifier.training_loss(
            model, TASKS["sst"], tiny_batch("sst"), config, BregmanProximal(model), True
        )
        outcomes.append({name: value.item() for name, value in losses.items()} | {"drawn": len(drawn)})
        del losses
        gc.collect()
        assert not any(mask() is not None for mask in drawn)
        drawn.clear()
    masks = 1 + 3 * model.bert.config.num_hidden_layers + 1  # embeddings, each layer, before the head
    assert outcomes[0].pop("drawn") == masks
    assert outcomes[1].pop("drawn") == 1 + (masks - 1) * (2 + 3) + masks  # clean, 2 of the ascent, R_s, ...
    assert outcomes[0] == outcomes[1]
