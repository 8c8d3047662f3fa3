"""FreeLB beside a straight reading of its Algorithm 1 (Zhu et al. 2020, arXiv 1909.11764)."""

import math

import pytest
import torch

from config import TrainConfig
from multitask_classifier import training_loss
from support.errors import UserError
from tasks import TASKS
from tiny_bert import tiny_batch, tiny_model

SETTINGS = {"use_smart": True, "adversary": "freelb", "bregman_weight": 0.0, "precision": "fp32"}


def straight_reading(model, task, batch, steps: int, alpha: float, epsilon: float) -> tuple[float, list]:
    """Mean loss, and the gradients of all weights, accumulated over the K steps (lines 4 to 12)."""
    mask = batch.attention_mask[..., None].float()
    embeddings = model.bert.embed(batch.input_ids, batch.token_type_ids)
    noise = torch.erf(batch.noise(embeddings) / math.sqrt(2))
    numbers = batch.attention_mask.sum(1)[:, None, None] * embeddings.shape[-1]
    delta = epsilon * noise * mask / numbers.sqrt()
    weights = list(model.parameters())
    accumulated = [torch.zeros_like(weight) for weight in weights]
    losses = []
    for _ in range(steps):
        delta = delta.detach().requires_grad_()
        embeddings = model.bert.embed(batch.input_ids, batch.token_type_ids)
        loss = task.loss(model.logits(task.name, embeddings + delta, batch.attention_mask), batch.labels)
        found = torch.autograd.grad(loss, [delta, *weights], allow_unused=True)
        for total, gradient in zip(accumulated, found[1:], strict=True):
            if gradient is not None:
                total += gradient / steps
        losses.append(loss.item())
        for row in range(len(delta)):
            moved = delta[row] + alpha * found[0][row] / found[0][row].norm() * mask[row]
            if moved.norm() > epsilon:
                moved = moved * epsilon / moved.norm()
            delta = torch.cat([delta[:row], moved[None], delta[row + 1 :]])
    return sum(losses) / steps, accumulated


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", ["sst", "sts"])
def test_loss_and_gradient_are_those_of_the_algorithm(name, steps):
    """Guards against gradients of the last step alone, a norm for each token, a clean loss that stays in."""
    model = tiny_model().eval()
    task, batch = TASKS[name], tiny_batch(name)
    ball = {"smart_steps": steps, "smart_step_size": 0.2, "smart_epsilon": 0.3}
    config = TrainConfig(tasks=(name,), **SETTINGS, **ball)
    losses = training_loss(model, task, batch, config)
    expected, gradients = straight_reading(model, task, batch, steps, alpha=0.2, epsilon=0.3)
    assert losses["total"].item() == pytest.approx(expected, rel=1e-5)
    losses["total"].backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(mine, gradient, rtol=1e-3, atol=1e-6)


def test_dropout_masks_are_those_of_the_clean_pass():
    """Guards against new masks at every step: FreeLB keeps them (section 3.3)."""
    model = tiny_model(hidden_dropout_prob=0.5).train()
    ball = {"smart_steps": 2, "smart_step_size": 0.0, "smart_epsilon": 1e-9}
    config = TrainConfig(tasks=("sst",), **SETTINGS, **ball)
    torch.manual_seed(0)
    losses = training_loss(model, TASKS["sst"], tiny_batch("sst"), config)
    torch.manual_seed(0)
    clean = training_loss(model, TASKS["sst"], tiny_batch("sst"), TrainConfig(tasks=("sst",)))
    assert losses["task"].item() == pytest.approx(clean["task"].item(), abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        # λ A + (1 - λ) clean would be no FreeLB
        ({"smart_weight": 0.5}, "--smart_weight .* with --adversary freelb"),
        ({"smart_weight": {"sst": 2.0}}, "--smart_weight .* with --adversary freelb"),
        # a mean over no steps is NaN
        ({"smart_steps": 0}, "--adversary freelb: needs --smart_steps 1 or more"),
    ],
)
def test_settings_that_make_no_freelb_are_refused(settings, said):
    """Guards against another loss under the name of FreeLB."""
    with pytest.raises(UserError, match=said):
        TrainConfig(**SETTINGS, **settings)
