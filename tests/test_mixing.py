"""Several tasks in a step: losses added, weights of tasks, gradient surgery. Reference: torchjd's PCGrad."""

import copy
import dataclasses

import pytest
import torch

from config import TrainConfig
from multitask_classifier import TrainingLoss, training_loss
from support.errors import UserError
from tasks import TASKS
from tiny_bert import tiny_batch, tiny_model
from training import Learner, pcgrad

NAMES = ("sst", "para", "sts")
PLAIN = {"tasks": NAMES, "schedule": "joint", "hidden_dropout_prob": 0.0, "precision": "fp32"}


def gradients(seed: int, tasks: int, size: int = 7) -> torch.Tensor:
    return torch.randn(tasks, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------------- PCGrad


def test_two_tasks_that_conflict_by_hand():
    """Guards against a projection on the wrong gradient. g1 = (1,0), g2 = (-1,1): g1·g2 = -1, so
    g1 becomes (1,0) + ½(-1,1) = (½,½) and g2 becomes (-1,1) + (1,0) = (0,1); together (½, 1½)."""
    combined, conflicts = pcgrad(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]), [[1], [0]])
    assert combined.tolist() == [0.5, 1.5] and conflicts.tolist() == [1.0, 1.0]


def test_tasks_that_agree_are_added():
    """Guards against a projection of gradients that do not conflict."""
    agreeing = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    combined, conflicts = pcgrad(agreeing, [[1, 2], [2, 0], [0, 1]])
    assert combined.tolist() == [2.0, 3.0] and conflicts.tolist() == [0.0, 0.0, 0.0]


def test_conflicts_are_shares_of_the_others():
    """Guards against counts where shares are said. The first conflicts with one of the two others."""
    _, conflicts = pcgrad(torch.tensor([[1.0, 0.0], [-1.0, 1.0], [1.0, 2.0]]), [[1, 2], [2, 0], [0, 1]])
    assert conflicts.tolist() == [0.5, 0.5, 0.0]


def test_a_task_without_a_gradient_changes_nothing():
    """Guards against a division by zero."""
    combined, _ = pcgrad(torch.tensor([[0.0, 0.0], [-1.0, 1.0]]), [[1], [0]])
    assert combined.tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_it_is_torchjds(tasks, seed, monkeypatch):
    """Guards against projections that use gradients already changed, or an order that the library has not."""
    torchjd = pytest.importorskip("torchjd.aggregation")
    matrix = gradients(seed, tasks)
    drawn = []
    randperm = torch.randperm

    def listed(n, **settings):
        drawn.append(randperm(n, **settings))
        return drawn[-1]

    monkeypatch.setattr(torch, "randperm", listed)
    expected = torchjd.PCGrad()(matrix)
    orders = [[j for j in order.tolist() if j != i] for i, order in enumerate(drawn)]
    if not orders or any(len(order) != tasks - 1 for order in orders):
        pytest.fail(f"torchjd draws its order otherwise now: {drawn}")
    torch.testing.assert_close(pcgrad(matrix, orders)[0], expected, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------------------------- joint step


def learner_of(**settings) -> Learner:
    config = TrainConfig(**PLAIN | settings)
    model = tiny_model().eval()  # no dropout
    return Learner(TrainingLoss(model, config), config)


def parts() -> list:
    return [(TASKS[name], [tiny_batch(name)]) for name in NAMES]


def gradient_of(model, config, names) -> torch.Tensor:
    """Gradient of the sum of the tasks' losses, by autograd, as one vector."""
    model = copy.deepcopy(model)
    sum(training_loss(model, TASKS[name], tiny_batch(name), config)["total"] for name in names).backward()
    flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters() if p.requires_grad]
    return torch.cat([gradient.flatten() for gradient in flat])


@pytest.mark.parametrize("surgery", ["none", "pcgrad"])
def test_a_joint_step_adds_the_losses(surgery, monkeypatch):
    """Guards against a step on the last task alone, on a mean instead of a sum, and against gradients of one
    task that leak into the next one's. Reference: autograd on the sum; for PCGrad `pcgrad` on each task's."""
    learner = learner_of(gradient_surgery=surgery)
    config = TrainConfig(**PLAIN)
    expected = gradient_of(learner.model, config, NAMES)
    if surgery == "pcgrad":
        single = torch.stack([gradient_of(learner.model, config, [name]) for name in NAMES])
        choices = [[[1, 2], [2, 1]], [[0, 2], [2, 0]], [[0, 1], [1, 0]]]
        orders = [[a, b, c] for a in choices[0] for b in choices[1] for c in choices[2]]
        allowed = [pcgrad(single, order)[0] for order in orders]
        conflicts = pcgrad(single, orders[0])[1]
    taken = {}

    def noted(grad_scale, found_inf):
        flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in learner.parameters]
        taken["gradient"] = torch.cat([gradient.flatten() for gradient in flat])

    monkeypatch.setattr(learner.optimizer, "step", noted)
    losses = learner.joint_step(parts(), 1e-3, 0.0)
    if surgery == "pcgrad":
        assert min((taken["gradient"] - one).abs().max() for one in allowed) < 1e-6
        assert [float(part["conflict"]) for part in losses] == conflicts.tolist()
    else:
        torch.testing.assert_close(taken["gradient"], expected)
    norm = taken["gradient"].norm()
    for name, part in zip(NAMES, losses, strict=True):
        alone = training_loss(learner.model, TASKS[name], tiny_batch(name), config)
        torch.testing.assert_close(part["total"], alone["total"].detach())
        torch.testing.assert_close(part["grad_norm"], norm)


def test_a_step_of_one_task_is_as_before():
    """Guards against a joint step that treats a single batch otherwise."""
    one, other = learner_of(), learner_of()
    one.step(TASKS["sst"], tiny_batch("sst"), 1e-3, 0.0)
    other.joint_step([(TASKS["sst"], [tiny_batch("sst")])], 1e-3, 0.0)
    for mine, theirs in zip(one.parameters, other.parameters, strict=True):
        assert torch.equal(mine, theirs)


def test_a_batch_that_is_half_full_counts_half():
    """Guards against --max_tokens whose long rows count more than the short ones."""
    norms = []
    for fullness in (1.0, 0.5):
        learner = learner_of()
        batch = dataclasses.replace(tiny_batch("sst"), fullness=fullness)
        losses = learner.step(TASKS["sst"], batch, 1e-3, 0.0)
        norms.append(losses["grad_norm"].item())
        alone = training_loss(tiny_model().eval(), TASKS["sst"], tiny_batch("sst"), TrainConfig(**PLAIN))
        assert losses["task"].item() == pytest.approx(
            alone["task"].item()
        )  # the log has the mean of the rows
    assert norms[1] == pytest.approx(norms[0] / 2)


def test_one_infinite_loss_stops_the_whole_step():
    """Guards against an update from the other tasks, while the log says that the batch was left out."""
    learner = learner_of()
    before = [parameter.clone() for parameter in learner.parameters]
    sst, para, (sts, [batch]) = parts()
    batch = dataclasses.replace(batch, labels=torch.tensor([0.0, float("inf"), 1.0, 2.0]))
    losses = learner.joint_step([sst, para, (sts, [batch])], 1e-3, 0.0)
    assert [bool(part["total"].isfinite()) for part in losses] == [True, True, False]
    for old, new in zip(before, learner.parameters, strict=True):
        assert torch.equal(old, new)


# ------------------------------------------------------------------------------------ weights of tasks


def test_the_weight_is_on_the_tasks_own_loss():
    """Guards against a weight that scales SMART's terms, too, or that is lost for a task left out."""
    smart = {"use_smart": True, "bregman_weight": 0.0}
    config = TrainConfig(**PLAIN | smart, task_weights={"sst": 0.25, "para": 0.0})
    model = tiny_model().train()
    for name, weight in {"sst": 0.25, "para": 0.0, "sts": 1.0}.items():
        losses = training_loss(model, TASKS[name], tiny_batch(name), config)
        expected = weight * losses["task"] + losses["smart"]
        torch.testing.assert_close(losses["total"], expected)


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({"task_weights": {"cfimdb": 1.0}}, ["--task_weights cfimdb=1", "--tasks"]),
        ({"task_weights": {"nothing": 1.0}}, ["--task_weights", "no task 'nothing'"]),
        ({"task_weights": -1.0}, ["--task_weights -1"]),
        ({"task_weights": float("nan")}, ["--task_weights nan"]),
        ({"task_weights": 0.0}, ["--task_weights 0", "nothing is left"]),
        ({"schedule": "joint", "tasks": ("sst",)}, ["--schedule joint", "--tasks"]),
        ({"gradient_surgery": "pcgrad"}, ["--gradient_surgery pcgrad", "--schedule joint"]),
        ({"gradient_surgery": "cagrad"}, ["--gradient_surgery cagrad", "pcgrad"]),
        ({"schedule": "anealed"}, ["--schedule anealed", "did you mean annealed"]),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(settings, flags):
    """Guards against a mixing flag that is silently without effect."""
    with pytest.raises(UserError) as caught:
        TrainConfig(**settings)
    said = str(caught.value)
    assert all(flag in said for flag in flags) and "\n" not in said
