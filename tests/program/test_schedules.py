"""Which task is trained in which step."""

import pytest

from config import TrainConfig
from datasets import Loader, one_after_another, tokenize
from helpers import sample_examples
from tasks import TASKS
from training import plan_steps


def loaders_of(tokenizer, sizes: dict[str, int]) -> dict[str, Loader]:
    examples = {name: sample_examples(name, count=size) for name, size in sizes.items()}
    return {
        name: Loader(tokenize(rows, TASKS[name], tokenizer, 64), 8, (0,)) for name, rows in examples.items()
    }


def test_plan_interleaves_and_numbers_each_tasks_batches(tokenizer):
    """Guards against a task that repeats or skips batches when tasks alternate."""
    loaders = loaders_of(tokenizer, {"sst": 16, "para": 80, "sts": 24})
    plan = plan_steps(TrainConfig(epochs=2), loaders)
    assert plan.per_epoch == 9  # the median task, sts, has 3 batches
    first, second = ([(name, k) for name in ("sst", "para", "sts")] for k in (0, 1))
    assert plan.steps[:7] == [*first, *second, ("sst", 2)]
    assert len(plan.steps) == 18 and plan.steps[-1] == ("sts", 5) and plan.warmup == 2


def test_plan_in_sequence(tokenizer):
    """Guards against `--schedule sequential` changing the tasks' order or their share of the steps."""
    loaders = loaders_of(tokenizer, {"sts": 24, "sst": 16})
    settings = {"schedule": "sequential", "steps_per_epoch": 5, "epochs": 2, "warmup_steps": 1}
    plan = plan_steps(TrainConfig(tasks=("sts", "sst"), **settings), loaders)
    epochs = [[name for name, _ in plan.steps[:5]], [name for name, _ in plan.steps[5:]]]
    assert epochs == [["sts"] * 3 + ["sst"] * 2, ["sts"] * 2 + ["sst"] * 3]
    assert plan.steps[5] == ("sts", 3) and plan.warmup == 1


@pytest.mark.parametrize(("per_epoch", "tasks"), [(7, 3), (5, 2), (9, 3), (4, 4), (11, 4), (3, 3)])
def test_shares_in_sequence_are_equal_over_the_epochs(per_epoch, tasks):
    """Guards against a first task that gets more steps than the others in every epoch (18, 12, 12 of 42)."""
    epochs = 2 * tasks
    order = [one_after_another(step, per_epoch, tasks) for step in range(epochs * per_epoch)]
    assert [order.count(task) for task in range(tasks)] == [2 * per_epoch] * tasks
    for epoch in range(epochs):
        block = order[epoch * per_epoch : (epoch + 1) * per_epoch]
        counts = [block.count(task) for task in range(tasks)]
        assert block == sorted(block) and max(counts) - min(counts) <= 1
