"""Which task is trained in which step."""

from config import TrainConfig
from datasets import Loader, tokenize
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
    epoch = [name for name, _ in plan.steps[:5]]
    assert epoch == ["sts"] * 3 + ["sst"] * 2 and [name for name, _ in plan.steps[5:]] == epoch
    assert plan.steps[5] == ("sts", 3) and plan.warmup == 1
