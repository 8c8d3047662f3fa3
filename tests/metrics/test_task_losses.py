"""The table of tasks: loss and divergence of each record, by numbers worked out with pencil and paper."""

import math

import pytest
import torch

from tasks import TASKS

LOG3 = math.log(3)  # sigmoid(log 3) and softmax(0, log 3) give 3/4
LOG4 = math.log(4)  # softmax(0, log 4, 0, 0, 0) gives 1/8, 1/2, 1/8, 1/8, 1/8

# task: outputs of two rows, their labels, the loss
LOSSES = {
    "sst": ([[0, 0, 0, 0, 0], [0, LOG4, 0, 0, 0]], [3, 1], (math.log(5) + math.log(2)) / 2),
    "para": ([[LOG3], [0]], [0, 1], (math.log(4) + math.log(2)) / 2),
    "sts": ([[3], [1]], [4.5, 1], 1.5**2 / 2),
    "cfimdb": ([[0, LOG3], [0, 0]], [0, 1], (math.log(4) + math.log(2)) / 2),
}
# task: outputs of two rows, other outputs, the divergence. The second row's outputs agree and add 0.
# KL(P‖Q) + KL(Q‖P) is the sum over classes of (p - q) log(p / q). KL one way only would be another number.
DIVERGENCES = {
    "sst": ([[0, LOG4, 0, 0, 0], [1, 2, 3, 4, 5]], [[0, 0, 0, 0, 0], [1, 2, 3, 4, 5]], 0.3 * LOG4 / 2),
    "para": ([[LOG3], [1]], [[0], [1]], 0.25 * LOG3 / 2),
    "sts": ([[3], [1]], [[1], [1]], 2**2 / 2),
    "cfimdb": ([[0, LOG3], [1, 2]], [[0, 0], [1, 2]], 0.25 * LOG3 / 2),
}


@pytest.mark.parametrize("task", TASKS)
def test_the_loss_of_a_record_by_hand(task):
    """Guards against another task's loss, a sum in place of the mean, and labels cut to integers."""
    outputs, labels, expected = LOSSES[task]
    loss = TASKS[task].loss(
        torch.tensor(outputs, dtype=torch.float32), torch.tensor(labels, dtype=torch.float32)
    )
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_the_divergence_of_a_record_by_hand(task, swapped):
    """Guards against a divergence that is not the paper's ℓ_s: KL one way, half a squared error, a sum."""
    *outputs, expected = DIVERGENCES[task]
    a, b = (torch.tensor(values, dtype=torch.float32) for values in (outputs[::-1] if swapped else outputs))
    assert TASKS[task].divergence(a, b).item() == pytest.approx(expected, rel=1e-6)
