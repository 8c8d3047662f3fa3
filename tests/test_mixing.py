"""Several tasks in a step: losses added, weights of tasks, gradient surgery. Reference: torchjd's PCGrad."""

import numpy as np
import pytest
import torch

from config import TrainConfig
from multitask_classifier import training_loss
from optimizer import combine_by_pcgrad, pcgrad
from tasks import TASKS
from tiny_bert import tiny_batch, tiny_model

NAMES = ("sst", "para", "sts")
PLAIN = {"tasks": NAMES, "schedule": "joint", "hidden_dropout_prob": 0.0, "precision": "fp32"}


@pytest.mark.parametrize(
    ("vectors", "orders", "combined", "conflicts"),
    [
        # g1·g2 = -1, so g1 becomes (1,0) + ½(-1,1) = (½,½) and g2 becomes (-1,1) + (1,0) = (0,1)
        ([[1, 0], [-1, 1]], [[1], [0]], [0.5, 1.5], [1, 1]),
        # tasks that agree are added
        ([[1, 0], [1, 1], [0, 2]], [[1, 2], [2, 0], [0, 1]], [2, 3], [0, 0, 0]),
        # conflicts are shares of the other tasks: g1·g2 < 0 alone; the first two become (½,½) and (0,1)
        ([[1, 0], [-1, 1], [1, 2]], [[1, 2], [2, 0], [0, 1]], [1.5, 3.5], [0.5, 0.5, 0]),
        # a task without a gradient changes nothing, and divides nothing by 0
        ([[0, 0], [-1, 1]], [[1], [0]], [-1, 1], [0, 0]),
    ],
)
def test_pcgrad_by_hand(vectors, orders, combined, conflicts):
    """Guards against a projection on the wrong gradient, one where there is no conflict, and NaN."""
    found, shares = pcgrad(torch.tensor(vectors, dtype=torch.float64), orders)
    assert found.tolist() == combined and shares.tolist() == conflicts


@pytest.mark.parametrize("seed", range(3))
def test_it_is_torchjds(seed, monkeypatch):
    """Guards against projections that use gradients already changed, or an order that the library has not."""
    torchjd = pytest.importorskip("torchjd.aggregation")
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(4, 7, generator=generator, dtype=torch.float64)
    drawn = []
    randperm = torch.randperm

    def listed(n, **settings):
        drawn.append(randperm(n, **settings))
        return drawn[-1]

    monkeypatch.setattr(torch, "randperm", listed)
    expected = torchjd.PCGrad()(matrix)
    orders = [[j for j in order.tolist() if j != i] for i, order in enumerate(drawn)]
    assert [len(order) for order in orders] == [3] * 4, "torchjd draws its order otherwise now"
    torch.testing.assert_close(pcgrad(matrix, orders)[0], expected, rtol=1e-12, atol=1e-12)


def test_the_order_is_drawn_from_the_seed():
    """Guards against one order for every step. Of three tasks that all conflict each order gives its own."""
    params = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(1))]
    vectors = [[1.0, 0.0, 0.2], [-1.0, 0.6, 0.0], [-0.4, -1.0, 0.5]]
    of_tasks = [[torch.tensor(vector), None] for vector in vectors]
    found = {}
    for seed in range(8):
        assert combine_by_pcgrad(params, of_tasks, seed).tolist() == [1.0, 1.0, 1.0]
        orders = [[j for j in range(3) if j != i] for i in range(3)]
        random = np.random.default_rng(seed)
        expected, _ = pcgrad(torch.tensor(vectors), [list(random.permutation(js)) for js in orders])
        torch.testing.assert_close(params[0].grad, expected)
        found[tuple(params[0].grad.tolist())] = seed
    assert len(found) > 2


def test_a_parameter_that_no_task_trains_has_no_gradient():
    """Guards against AdamW decaying a head or a pooler that no batch of the step has used."""
    params = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(1))]
    combine_by_pcgrad(params, [[torch.ones(2), None], [-torch.ones(2), None]], seed=0)
    assert params[0].grad is not None and params[1].grad is None


def test_the_weight_is_on_the_tasks_own_loss():
    """Guards against a weight that scales SMART's terms, too, or that is lost for a task left out."""
    smart = {"use_smart": True, "bregman_weight": 0.0, "smart_epsilon": 1.0, "smart_step_size": 1.0}
    config = TrainConfig(**PLAIN | smart, task_weights={"sst": 0.25, "para": 0.0})
    model = tiny_model().train()
    for name, weight in {"sst": 0.25, "para": 0.0, "sts": 1.0}.items():
        losses = training_loss(model, TASKS[name], tiny_batch(name), config)
        expected = weight * losses["task"] + losses["smart"]
        assert losses["smart"] > 1e-3  # a hundred times the tolerance
        torch.testing.assert_close(losses["total"], expected, rtol=0, atol=1e-5)
