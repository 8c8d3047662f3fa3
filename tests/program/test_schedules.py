"""Which task is trained in which step."""

import numpy as np
import pytest

from config import TrainConfig
from datasets import Loader, Plan, plan_steps, tokenize
from helpers import sample_examples
from support.schedules import SCHEDULES, RunLength, annealed, one_after_another, proportional, round_robin
from tasks import TASKS


def loaders_of(tokenizer, sizes: dict[str, int]) -> dict[str, Loader]:
    examples = {name: sample_examples(name, count=size) for name, size in sizes.items()}
    return {
        name: Loader(tokenize(rows, TASKS[name], tokenizer, 64), 8, (0,)) for name, rows in examples.items()
    }


def plan_of(config: TrainConfig, loaders: dict[str, Loader]) -> Plan:
    length = (config.schedule, config.epochs, config.steps_per_epoch, config.seed)
    return plan_steps(loaders, config.tasks, *length)


def test_plan_interleaves_and_numbers_each_tasks_batches(tokenizer):
    """Guards against a task that repeats or skips batches when tasks alternate."""
    loaders = loaders_of(tokenizer, {"sst": 16, "para": 80, "sts": 24})
    plan = plan_of(TrainConfig(epochs=2), loaders)
    assert plan.per_epoch == 9  # the median task, sts, has 3 batches
    first, second = ([((name, k),) for name in ("sst", "para", "sts")] for k in (0, 1))
    assert plan.steps[:7] == [*first, *second, (("sst", 2),)]
    assert len(plan.steps) == 18 and plan.steps[-1] == (("sts", 5),)


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


# ------------------------------------------------------------------------------------------- drawn


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
    """Guards against an exponent that grows, or that never leaves 1. Expected by hand: α = 1 - .8 e/(E-1)."""
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


def test_joint_steps_have_a_batch_of_every_task(tokenizer):
    """Guards against an epoch of `joint` that sees each row three times, or cuts tasks to the shortest."""
    loaders = loaders_of(tokenizer, {"sst": 16, "para": 80, "sts": 24})
    plan = plan_of(TrainConfig(epochs=2, schedule="joint"), loaders)
    assert plan.per_epoch == 3  # batches of sts, the median task
    assert plan.steps == [tuple((name, k) for name in ("sst", "para", "sts")) for k in range(6)]


def test_no_batch_is_left_out_or_repeated(tokenizer):
    """Guards against a task whose batches are numbered by the step."""
    loaders = loaders_of(tokenizer, {"sst": 16, "para": 80, "sts": 24})
    for name in SCHEDULES:
        plan = plan_of(TrainConfig(epochs=3, schedule=name), loaders)
        for task in loaders:
            numbers = [k for parts in plan.steps for other, k in parts if other == task]
            assert numbers == list(range(len(numbers)))
