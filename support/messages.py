"""What a run says of itself on the screen, before and between its steps. Knows numbers, no model and no task.

Losses are those of the first 20 steps, as (task, losses by name) for each batch.
"""

import contextlib
import logging
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from support.errors import UserError
from support.screen import duration

log = logging.getLogger("smart_bert")
FLOOR_MARGIN = 3.0  # R_s should be this many times its rounding floor
FirstLosses = Sequence[tuple[str, Mapping[str, Tensor]]]


@contextlib.contextmanager
def out_of_memory_advice(rows: int, tokens: int) -> Iterator[None]:
    """Within, running out of memory is a UserError that says which flag to lower."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator raises a bare one
        if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error):
            raise
        advice = f"--batch_size {rows // 2}" if rows > 1 else f"--max_length {tokens // 2}"
        raise UserError(f"out of memory with {rows} rows of {tokens} tokens; try {advice}") from None


def say_first_step(first_losses: FirstLosses, step: int, seconds: float) -> None:
    """After step 1 say that the run works. seconds: of the step."""
    if step == 1 and first_losses:
        name, losses = first_losses[0]
        loss = float(losses["task" if "task" in losses else "total"])
        tqdm.write(f"the first step worked: {name} loss {loss:.4f}, {duration(seconds)}")


class Forecast(NamedTuple):
    """The seconds that a run will take.

    steps: of each step. every: steps between evaluations on dev; one follows the last step. evaluation: of
    one of them. test: of predicting the test files.
    """

    steps: Sequence[float]
    every: int
    evaluation: float
    test: float

    def say(self, step: int, seconds: float | None = None) -> None:
        """Say after how many steps what the rest will take. seconds: what these steps took in truth."""
        pace = 1.0 if seconds is None else seconds / sum(self.steps[:step])
        evaluations = -(-len(self.steps) // self.every) - step // self.every
        rest = pace * sum(self.steps[step:]) + evaluations * self.evaluation + self.test
        steps = len(self.steps) - step
        left = f"{steps:,} step{'s' * (steps > 1)} and {evaluations} evaluation{'s' * (evaluations > 1)}"
        how = "" if seconds is None else f", at the pace of the first {step} steps"
        tqdm.write(f"time: about {duration(rest)} for {left}{how}")


def say_new_rate(last: float, planned: float, now: float, step: int, total: int) -> None:
    """Say if a resumed run leaves the learning rate that it was on, since it has more epochs than before.

    last: learning rate of the step before. planned: what the run's schedule now has for that step.
    """
    if step < total and not math.isclose(last, planned, rel_tol=1e-6):
        why = f"with more epochs the decay ends at step {total}"
        print(f"--epochs: the learning rate goes from {last:.3g} to {now:.3g} at step {step + 1}: {why}")


def warn_of_first_losses(
    first_losses: FirstLosses, weights: Mapping[str, Mapping[str, float]], precision: str
) -> None:
    """Say what R_s reads from rounding alone, and warn of terms that have no effect.

    weights: of each further term of the loss, by task.
    """
    for task, terms in weights.items():
        steps = [losses for name, losses in first_losses if name == task]
        names = set().union(*steps)
        means = {name: statistics.fmean(float(s[name]) for s in steps if name in s) for name in names}
        for term, weight in terms.items():
            if term in means and abs(weight * means[term]) < 1e-6 * abs(means.get("task", 1.0)):
                found = f"{term} on {task} adds less than a millionth of the task loss"
                log.warning("%s in the first %d batches: so far it has no effect", found, len(steps))
        if "smart_floor" in means:
            floor = f"{precision} alone makes {means['smart_floor']:.2g}"
            tqdm.write(f"{task}: R_s is {means['smart']:.2g}; the rounding of {floor}")
            warn_of_rounding({task: means}, precision)


def warn_of_nothing_learned(
    records: Mapping[str, Mapping[str, float]], constant_losses: Mapping[str, float], step: int
) -> None:
    """A line for each task whose training loss is not below that of always giving the same answer."""
    for name, constant in constant_losses.items():
        if name in records and not records[name]["task"] < constant:
            found = f"{name}: after {step} steps its training loss is {records[name]['task']:.4f}, not below"
            found += f" {constant:.4f}, that of always giving the same answer"
            log.warning("%s: it has learned nothing yet; try another --lr, or more --epochs", found)


def warn_of_rounding(records: Mapping[str, Mapping[str, float]], precision: str) -> None:
    """Warn where R_s, as the records of an interval have it, is less than FLOOR_MARGIN times its floor."""
    for task, record in records.items():
        floor = record.get("smart_floor", 0.0)
        if floor and record["smart"] < FLOOR_MARGIN * floor:
            found = f"R_s on {task} is {record['smart']:.2g}, less than {FLOOR_MARGIN:g} times {floor:.2g}"
            made = f"which the rounding of {precision} alone makes"
            log.warning("%s, %s: --smart_epsilon is too small", found, made)
