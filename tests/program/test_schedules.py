"""Which task is trained in which step."""

import numpy as np
import pytest

from datasets import Loader, plan_steps, tokenize
from helpers import sample_examples
from support.schedules import SCHEDULES, RunLength, annealed, one_after_another, proportional, round_robin
from tasks import TASKS


@pytest.fixture(scope="module")
def plan(tokenizer):
    """Makes the plan of a run on 2 batches of sst, 10 of para and 3 of sts an epoch."""
    loaders = {
        name: Loader(tokenize(sample_examples(name, count=8 * count), TASKS[name], tokenizer, 64), 8, (0,))
        for name, count in {"sst": 2, "para": 10, "sts": 3}.items()
    }
    return lambda schedule, epochs: plan_steps(loaders, tuple(loaders), schedule, epochs, None, seed=0)


def test_plan_interleaves_and_numbers_each_tasks_batches(plan):
    """Guards against a task that repeats or skips batches when tasks alternate, an epoch of `joint` that sees
    each row three times, or that cuts tasks to the shortest. The median task, sts, has 3 batches."""
    tasks = ("sst", "para", "sts")
    found = plan("interleaved", 2)
    assert found.per_epoch == 9 and len(found.steps) == 18
    assert found.steps[:7] == [((name, k),) for k in range(3) for name in tasks][:7]
    assert found.steps[-1] == (("sts", 5),)
    joint = plan("joint", 2)
    assert joint.per_epoch == 3 and joint.steps == [tuple((name, k) for name in tasks) for k in range(6)]
    for schedule in SCHEDULES:
        steps = plan(schedule, 3).steps
        for task in tasks:
            numbers = [k for parts in steps for name, k in parts if name == task]
            assert numbers == list(range(len(numbers)))


@pytest.mark.parametrize(
    ("schedule", "steps_per_epoch", "num_tasks", "expected"),
    [
        (round_robin, 6, 3, "012012012012"),
        (round_robin, 4, 3, "012012012012"),  # the turn goes on from epoch to epoch
        (round_robin, 5, 1, "00000"),
        (one_after_another, 7, 3, "00011220011122"),
        (one_after_another, 4, 2, "00110011"),
    ],
)
def test_schedules_by_hand(schedule, steps_per_epoch, num_tasks, expected):
    """Guards against a task that gets no step, or a step more than its share."""
    length = RunLength((9,) * num_tasks, 9, steps_per_epoch, seed=0)
    epochs = range(len(expected) // steps_per_epoch)
    picked = [task for epoch in epochs for (task,) in schedule(length, epoch)]
    assert "".join(map(str, picked)) == expected


@pytest.mark.parametrize(("per_epoch", "tasks"), [(7, 3), (11, 4)])
def test_shares_in_sequence_are_equal_over_the_epochs(per_epoch, tasks):
    """Guards against a first task that gets more steps than the others in every epoch (18, 12, 12 of 42)."""
    epochs = 2 * tasks
    length = RunLength((10,) * tasks, epochs, per_epoch, seed=0)
    order = [task for epoch in range(epochs) for (task,) in one_after_another(length, epoch)]
    assert [order.count(task) for task in range(tasks)] == [2 * per_epoch] * tasks


def shares(steps: list[tuple[int, ...]]) -> np.ndarray:
    """Share of the steps that each task has."""
    return np.bincount([task for (task,) in steps]) / len(steps)


def test_proportional_shares_are_those_of_the_rows():
    """Guards against tasks drawn with equal chances, or by their batches. Expected: rows / all rows; a share
    of 20,000 draws is within .02 of its chance, five standard deviations."""
    length = RunLength((6000, 3000, 1000), 1, 20_000, seed=3)
    assert shares(proportional(length, 0)) == pytest.approx([0.6, 0.3, 0.1], abs=0.02)


@pytest.mark.parametrize(("epoch", "exponent"), [(0, 1.0), (1, 0.6), (2, 0.2)])
def test_annealed_shares(epoch, exponent):
    """Guards against an exponent that grows, or never leaves 1. Expected by hand: α = 1 - .8 e/(E-1)."""
    length = RunLength((8000, 1000), 3, 20_000, seed=3)
    expected = 8**exponent / (8**exponent + 1)
    assert shares(annealed(length, epoch))[0] == pytest.approx(expected, abs=0.02)
    if epoch == 0:  # of one epoch, without a division by zero
        one = length._replace(epochs=1)
        assert annealed(one, 0) == proportional(one, 0)


@pytest.mark.parametrize("draw", [proportional, annealed])
def test_an_epoch_depends_on_the_seed_and_its_number_alone(draw):
    """Guards against a resumed run that takes other batches than the interrupted one."""
    length = RunLength((500, 300, 200), 4, 40, seed=5)
    assert draw(length, 2) == draw(length, 2)
    assert draw(length, 2) != draw(length._replace(seed=6), 2) and draw(length, 1) != draw(length, 2)
