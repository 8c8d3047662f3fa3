"""What is measured of a model: the attack on its embeddings, calibration."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from bert import BertModel
from datasets import Batch, tokenize
from evaluation import model_outputs
from experiments.attack import FULL, Strength, attack, attacked, damage
from experiments.calibration import cross_fitted, fitted_temperature
from helpers import sample_examples
from multitask_classifier import MultitaskBERT
from tasks import TASKS
from tiny_bert import MINILM_VOCABULARY, tiny_batch, tiny_config, tiny_model

# ---------------------------------------------------------------------------------------- the attack


class Linear(nn.Module):
    """Embeddings are given, outputs are linear in them: Σ over real tokens of x W, plus an offset a row.

    Row i is known by its first coordinate, which W ignores. `seen` has what the encoder was given.
    """

    def __init__(self, x: torch.Tensor, weights: torch.Tensor, offsets: torch.Tensor):
        super().__init__()
        self.weights = nn.Parameter(weights)
        self.offsets = offsets
        self.compute_type = None
        self.bert = SimpleNamespace(embed=lambda *_: x)
        self.seen: list[torch.Tensor] = []

    def logits(self, task, x, mask):
        self.seen.append(x.detach().clone())
        rows = x[:, 0, 0].round().long()
        return ((x @ self.weights) * mask[..., None]).sum(1) + self.offsets[rows]


def linear_case(offset: float) -> tuple[Linear, Batch, torch.Tensor]:
    """A linear model of one output, a batch of 6 rows of 3 to 5 tokens, and ‖W‖₁ x tokens of each row."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, 4, generator=random)
    x[:, 0, 0] = torch.arange(6)
    weights = torch.randn(4, 1, generator=random)
    weights[0] = 0
    mask = torch.arange(5) < torch.tensor([[5], [4], [3], [5], [4], [3]])
    labels = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    model = Linear(x, weights, offset * (2 * labels - 1)[:, None] + torch.randn(6, 1, generator=random))
    batch = Batch(np.arange(6), torch.zeros(6, 5, dtype=torch.long), None, mask, labels, int(mask.sum()))
    return model, batch, weights.abs().sum() * mask.sum(1)


def clean_outputs(model, task: str, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().logits(task, model.bert.embed(batch.input_ids, None), batch.attention_mask)


@pytest.mark.parametrize("task", ["para", "sts"])
def test_the_attack_reaches_the_worst_case_of_a_linear_model(task):
    """Guards against an attack that stops half-way: the worst δ is ε times the sign of the gradient."""
    model, batch, reach = linear_case(offset=50.0)
    clean = clean_outputs(model, task, batch)
    worst = attack(model, TASKS[task], batch, 0.1)
    if task == "para":
        expected = damage(TASKS[task], clean, batch.labels) + 0.1 * reach
    else:
        expected = ((clean.squeeze(1) - batch.labels).abs() + 0.1 * reach) ** 2
    torch.testing.assert_close(damage(TASKS[task], worst.outputs, batch.labels), expected)
    up = (2 * batch.labels - 1) * (-1 if task == "para" else 1)
    corner = 0.1 * model.weights.sign().T * up[:, None, None] * batch.attention_mask[..., None]
    torch.testing.assert_close(worst.delta[..., 1:], corner[..., 1:])


def test_every_point_on_the_way_counts():
    """Guards against an attack that keeps its last step: the target's hill lies in the middle of the box."""
    model, batch, _ = linear_case(offset=0.0)
    plainly = model.logits
    model.logits = lambda *given: torch.sin(300 * plainly(*given))
    worst = attack(model, TASKS["sts"], batch, 0.1, Strength(steps=5, restarts=2))
    offsets = [torch.sin(300 * plainly("sts", x, batch.attention_mask)).detach() for x in model.seen[:13]]
    seen = torch.stack([damage(TASKS["sts"], outputs, batch.labels) for outputs in offsets])
    assert len(offsets) == 1 + 2 * 6
    torch.testing.assert_close(damage(TASKS["sts"], worst.outputs, batch.labels), seen.amax(0))
    assert (seen.argmax(0) != len(seen) - 1).any()


def test_an_ascent_begins_anywhere_in_the_ball_and_takes_small_steps():
    """Guards against starts in one corner, and steps that leap from corner to corner: on a linear model both
    find the worst δ, on ours they do not. 20 steps of 2.5 ε / 20 cross the ball once."""
    model, batch, _ = linear_case(offset=50.0)
    attack(model, TASKS["sts"], batch, 0.1, Strength(steps=20, restarts=1))
    clean, *seen = (x[batch.attention_mask] for x in model.seen)
    start = (seen[0] - clean) / 0.1
    assert -1 <= start.min() < -0.8 and 0.8 < start.max() <= 1 and start.mean().abs() < 0.2
    steps = torch.stack([after - before for before, after in zip(seen, seen[1:], strict=False)]).abs()
    assert len(steps) == 20 and steps.max() == pytest.approx(0.0125, rel=1e-3)
    assert not steps[..., 0].any()  # the model ignores this coordinate


def test_the_damage_of_five_classes_by_hand():
    """Guards against a lead over a class that is not the best wrong one."""
    logits = torch.tensor([[1.0, 4.0, 2.0, 0.0, 0.0], [1.0, 4.0, 2.0, 0.0, 0.0]])
    assert damage(TASKS["sst"], logits, torch.tensor([1.0, 2.0])).tolist() == [-2.0, 2.0]


@pytest.mark.parametrize("task", ["sst", "para", "sts"])
def test_the_attack_stays_in_the_ball(task):
    """Guards against a δ beyond ε, and outputs that are of another δ."""
    model, batch = tiny_model().eval(), tiny_batch(task)
    worst = attack(model, TASKS[task], batch, 0.2, Strength(steps=4, restarts=2))
    assert 0 < worst.delta.abs().max() <= np.float32(0.2)
    with torch.no_grad():
        again = model.logits(task, model.bert.embed(batch.input_ids) + worst.delta, batch.attention_mask)
    torch.testing.assert_close(again, worst.outputs)


def test_padding_does_not_move_even_where_a_model_reads_it():
    """Guards against a mask that is left to the model: without it a leak there would look like an attack."""
    model, batch, _ = linear_case(offset=50.0)
    model.logits = lambda task, x, mask: (x @ model.weights).sum(1)
    worst = attack(model, TASKS["sts"], batch, 0.1)
    assert not worst.delta[~batch.attention_mask].any() and worst.delta[batch.attention_mask].any()


def test_the_model_is_left_as_it_was():
    """Guards against gradients that the next training step would add up, and a model left in another mode."""
    model, batch = tiny_model(precision="bf16").train(), tiny_batch("sst")
    frozen = next(model.parameters()).requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    generator = torch.Generator().manual_seed(0)
    attack(model, TASKS["sst"], batch, 0.1, Strength(2, 1), generator)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()].count(False) == 1
    assert not frozen.requires_grad and model.training and model.compute_type == torch.bfloat16
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_no_epsilon_no_attack():
    """Guards against scores without attack that differ from the clean ones, rows that are mended, and an
    attack on whatever the labels of an unlabelled batch are taken for."""
    model, batch = tiny_model().eval(), tiny_batch("sst")
    task = TASKS["sst"]
    clean = clean_outputs(model, "sst", batch)
    torch.testing.assert_close(attack(model, task, batch, 0.0).outputs, clean, atol=0, rtol=0)
    wrong = task.predict(clean) != batch.labels
    fallen = attack(model, task, batch, 0.5, Strength(3, 1)).outputs
    assert wrong.any() and torch.equal(fallen[wrong], clean[wrong])
    with pytest.raises(ValueError, match="needs labels"):
        attack(model, task, dataclasses.replace(batch, labels=None), 0.1)


def test_a_whole_data_set_is_attacked_in_file_order_from_the_same_starts(tokenizer):
    """Guards against rows that get the outputs of others, and arms that are attacked from other starts."""
    dataset = tokenize(sample_examples("sst", count=40), TASKS["sst"], tokenizer, 16)
    config = tiny_config(vocab_size=MINILM_VOCABULARY)
    model = MultitaskBERT(BertModel(config)).eval()
    expected = model_outputs(model, dataset, 7)
    torch.testing.assert_close(attacked(model, dataset, 0.0), expected)
    first = attacked(model, dataset, 0.2, Strength(2, 1))
    torch.manual_seed(2)
    assert torch.equal(attacked(model, dataset, 0.2, Strength(2, 1)), first)
    assert not torch.equal(first, expected)
    assert (FULL.steps, FULL.restarts) == (20, 3)


# -------------------------------------------------------------------------------------- calibration


def sure_case(factor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (4000,5) whose labels are drawn from softmax(logits / factor)."""
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 5, generator=random)
    return factor * logits, torch.multinomial(logits.softmax(-1), 1, generator=random).squeeze(1).float()


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_the_temperature_is_what_the_logits_were_multiplied_by(factor):
    """Guards against a temperature of the wrong direction: logits that are 3 times too large need T = 3.

    A binary task has one logit, which is scaled alike."""
    logits, labels = sure_case(factor)
    assert fitted_temperature(TASKS["sst"], logits, labels) == pytest.approx(factor, rel=0.07)
    scaled, temperatures = cross_fitted(TASKS["sst"], logits, labels)
    assert temperatures == pytest.approx([factor] * 2, rel=0.1)
    assert TASKS["sst"].loss(scaled, labels) <= TASKS["sst"].loss(logits, labels) + 2e-3
    logit = logits[:, :1]
    ones = torch.bernoulli((logit / factor).sigmoid(), generator=torch.Generator().manual_seed(1)).squeeze(1)
    assert fitted_temperature(TASKS["para"], logit, ones) == pytest.approx(factor, rel=0.1)


def test_no_row_is_scored_with_a_temperature_that_has_seen_it():
    """Guards against a fit on the scored rows: their own labels must not move them."""
    logits, labels = sure_case(2.0)
    scaled, temperatures = cross_fitted(TASKS["sst"], logits, labels)
    factor = (logits / scaled)[:, 0]
    first = (factor - temperatures[0]).abs() < (factor - temperatures[1]).abs()  # scored by the first fit
    assert int(first.sum()) == 2000
    for number, scored in enumerate((first, ~first)):
        other = torch.where(scored, (labels + 1) % 5, labels)
        again, others = cross_fitted(TASKS["sst"], logits, other)
        assert others[number] == temperatures[number] and torch.equal(again[scored], scaled[scored])
        assert others[1 - number] != pytest.approx(temperatures[1 - number], rel=0.1)
