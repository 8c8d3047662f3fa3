"""The learner's step on a model of one weight, what it measures, and the price of each term: in milliseconds.

`test_training_loss.py` takes the same step with a BERT.
"""

import dataclasses
import math

import pytest
import torch
from torch import nn

import losses
import mysmartloss
from config import TrainConfig
from losses import TERMS
from multitask_classifier import TrainingLoss, training_loss
from mysmartloss import BregmanProximal
from support import parallel
from tasks import TASKS
from tiny_bert import tiny_batch, tiny_model
from training import Learner, forward_passes, memory_price, passes_kept

SST = TASKS["sst"]
BATCH = tiny_batch("sst")


class OneWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))


class LossOf:
    """A loss of one weight, as `Learner` calls it."""

    def __init__(self, function) -> None:
        self.model = OneWeight()
        self.bregman = BregmanProximal(self.model)
        self.function = function

    def __call__(self, task, batch, measure):
        return {"total": self.function(self.model.weight.sum())}


def learner_of(function, **settings) -> Learner:
    return Learner(LossOf(function), TrainConfig(**settings))


@pytest.mark.parametrize("norm", [1e-6, 3e-6, 0.5, 1.5, 40.0])
@pytest.mark.parametrize("max_grad_norm", [1e-6, 1.0, 2.0])
def test_the_divisor_of_the_gradient_is_torchs(monkeypatch, norm, max_grad_norm):
    """Guards against clipping that differs from torch's for short gradients, or makes one longer."""
    learner = learner_of(lambda weight: weight * norm, max_grad_norm=max_grad_norm)
    given = {}
    monkeypatch.setattr(learner.optimizer, "step", lambda **named: given.update(named))
    losses = learner.step(SST, BATCH, lr=0.25, beta=0.9)
    assert losses["grad_norm"].item() == pytest.approx(norm)
    theirs = OneWeight()
    (theirs.weight * norm).sum().backward()
    nn.utils.clip_grad_norm_(theirs.parameters(), max_grad_norm)
    assert norm / given["grad_scale"].item() == pytest.approx(theirs.weight.grad.item(), rel=1e-5)
    assert [group["lr"] for group in learner.optimizer.param_groups] == [0.25, 0.25]


@pytest.mark.parametrize(
    "function",
    [lambda weight: weight + math.nan, lambda weight: weight + math.inf, lambda weight: (weight - 2).sqrt()],
    ids=["nan", "inf", "infinite gradient"],
)
def test_a_bad_batch_on_the_cpu_leaves_everything_as_it_was(function):
    """Guards against a step that is counted, or a teacher that moves, where no weight has changed;
    the infinite loss has a finite gradient, and the infinite gradient a finite loss."""
    learner = learner_of(function)
    with torch.no_grad():
        learner.bregman.teacher.weight.fill_(1.0)
    learner.step(SST, BATCH, lr=0.1, beta=0.5)
    assert learner.model.weight.item() == 2.0 and learner.bregman.teacher.weight.item() == 1.0
    assert not learner.optimizer.state


def test_a_good_batch_moves_weight_and_teacher():
    """Guards against a model that is never updated, or a teacher that stays at its start."""
    learner = learner_of(lambda weight: 3 * weight)
    learner.step(SST, BATCH, lr=0.1, beta=0.5)
    assert learner.model.weight.item() == pytest.approx(1.9, abs=1e-5)  # AdamW's first step is as long as lr
    assert learner.bregman.teacher.weight.item() == pytest.approx(1.95, abs=1e-5)
    assert learner.model.weight.grad is None


@pytest.mark.parametrize(("size", "weight", "gradient"), [(1, 1.0, 3.0), (2, 1.0, 1.5), (4, 2.0, 1.5)])
def test_a_process_gives_its_share_of_the_gradient(monkeypatch, size, weight, gradient):
    """Guards against a gradient that grows with the number of processes, or rows that count unequally."""
    monkeypatch.setattr(parallel, "size", lambda: size)
    monkeypatch.setattr(parallel, "sum_gradients", lambda parameters: None)
    monkeypatch.setattr(parallel, "mean", lambda losses, weight: losses)
    batch = dataclasses.replace(BATCH, weight=weight)
    losses = learner_of(lambda weight: 3 * weight).step(SST, batch, lr=0.1, beta=0.5)
    assert losses["grad_norm"].item() == pytest.approx(gradient)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_loss_is_scaled_in_fp16_alone(precision):
    """Guards against fp16 gradients rounded to 0, and steps left out by a scale that nothing needs."""
    learner = learner_of(lambda weight: weight, precision=precision)
    assert learner.scaler.is_enabled() == (precision == "fp16")


def test_nothing_is_measured_unless_asked_for():
    """Guards against one more forward pass in every step, for numbers that nobody reads."""
    config = TrainConfig(use_smart=True)
    model = tiny_model()
    bregman = BregmanProximal(model)
    loss = TrainingLoss(model, config, bregman)
    parts = {"task", "smart", "bregman", "total"}
    assert set(training_loss(model, SST, BATCH, config, bregman)) == set(loss(SST, BATCH)) == parts
    assert set(Learner(loss, config).step(SST, BATCH, lr=0.1, beta=0.5)) == parts | {"grad_norm"}


@pytest.mark.parametrize(("precision", "passes"), [("fp32", 1), ("bf16", 2)])
def test_the_rounding_floor_is_taken_at_a_delta_that_rounding_hides(monkeypatch, precision, passes):
    """Guards against a floor measured at δ itself: R_s would always look like rounding."""
    sizes = []
    at = mysmartloss.SMARTLoss.at

    def spy(self, delta, embed, state):
        sizes.append(delta.abs().max().item())
        return at(self, delta, embed, state)

    monkeypatch.setattr(mysmartloss.SMARTLoss, "at", spy)
    config = TrainConfig(use_smart=True, bregman_weight=0.0, precision=precision)
    losses = training_loss(tiny_model(precision=precision), SST, BATCH, config, measure=True)
    assert sizes == pytest.approx([0.01, 1e-5][:passes]) and ("smart_floor" in losses) == (passes == 2)


def test_the_passes_of_a_step_cannot_be_changed():
    """Guards against a term of the loss that changes what the terms after it see."""
    passes = losses.Passes(*[None] * len(dataclasses.fields(losses.Passes)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        passes.embeddings = torch.zeros(1)


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({}, 3),
        ({"use_smart": True, "bregman_weight": 0.0, "smart_steps": 0}, 6),
        ({"use_smart": True, "bregman_weight": 0.0, "smart_steps": 1}, 8),
        ({"use_smart": True, "bregman_weight": 0.0, "smart_steps": 3}, 12),
        ({"use_smart": True, "smart_steps": 1}, 9),
        ({"rdrop_weight": 1.0}, 6),
        ({"use_smart": True, "bregman_weight": 0.0, "adversary": "freelb", "smart_steps": 2}, 10),
        ({"contrastive_weight": 1.0}, 6),
    ],
)
def test_the_price_of_a_step_by_hand(settings, passes):
    """Guards against a run whose announced cost is not what it does.

    A backward pass is two forward passes, one where only the input's gradient is wanted. A plain step is
    1 + 2, R_s 1 + 2 and a step of its ascent 1 + 1, the teacher 1, R-Drop's second pass 1 + 2. FreeLB has two
    passes, each 1 + 2, and between them a backward pass to the embeddings, 1. The contrastive pass is 1 + 2.
    """
    assert forward_passes(TrainConfig(**settings), "para") == passes
    assert set(TERMS) == {"smart", "bregman", "rdrop", "contrastive"}


def test_freelb_keeps_the_activations_of_every_move():
    """Guards against a run that is priced for one pass and killed for memory: K go backward at once."""
    freelb = {"use_smart": True, "adversary": "freelb", "smart_steps": 3, "bregman_weight": 0.0}
    assert passes_kept(TrainConfig(**freelb), "sst", frozen=False) == 4  # with the clean pass
    assert passes_kept(TrainConfig(use_smart=True, smart_steps=3), "sst", frozen=False) == 2


def test_pcgrad_is_priced_with_every_tasks_gradient():
    """Guards against a step with many gradients of the model that is priced for one. By hand: 3 + 2."""
    model = tiny_model()
    joint = TrainConfig(precision="fp32", schedule="joint")
    surgery = dataclasses.replace(joint, gradient_surgery="pcgrad")
    prices = [memory_price(model, config, (4, 7), (4, 7)).gradients for config in (joint, surgery)]
    assert prices[1] == 5 * prices[0]
