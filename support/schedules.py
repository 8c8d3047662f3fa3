"""Schedules: which tasks each step of an epoch trains. Tasks are numbers here: 0, 1, ...

A new schedule is a function and its name in SCHEDULES. It depends on the epoch's number and the seed alone,
so that a run can resume anywhere.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class RunLength(NamedTuple):
    """What a schedule may look at. rows: of each task's training data, in the order of the tasks."""

    rows: tuple[int, ...]
    epochs: int
    steps_per_epoch: int
    seed: int


# A schedule says of epoch 0, 1, ... which tasks each of its steps trains, by their numbers.
Schedule = Callable[[RunLength, int], list[tuple[int, ...]]]


def round_robin(length: RunLength, epoch: int) -> list[tuple[int, ...]]:
    """One batch of each task in turn."""
    begin = epoch * length.steps_per_epoch
    return [(step % len(length.rows),) for step in range(begin, begin + length.steps_per_epoch)]


def one_after_another(length: RunLength, epoch: int) -> list[tuple[int, ...]]:
    """A block of steps for each task, as many as `round_robin` gives it in that epoch."""
    return sorted(round_robin(length, epoch))


def proportional(length: RunLength, epoch: int, exponent: float = 1.0) -> list[tuple[int, ...]]:
    """Each step draws its task, with a probability in proportion to (rows of the task) ** exponent."""
    shares = np.array(length.rows, dtype=np.float64) ** exponent
    random = np.random.default_rng((length.seed, epoch, *b"schedule"))
    drawn = random.choice(len(shares), length.steps_per_epoch, p=shares / shares.sum())
    return [(int(task),) for task in drawn]


def annealed(length: RunLength, epoch: int) -> list[tuple[int, ...]]:
    """`proportional` with an exponent that falls from 1 in the first epoch to .2 in the last.

    Source: Stickland and Murray 2019 (PALs), section 4.1: α = 1 - .8 (e - 1) / (E - 1).
    """
    return proportional(length, epoch, 1 - 0.8 * epoch / max(1, length.epochs - 1))


def joint(length: RunLength, epoch: int) -> list[tuple[int, ...]]:
    """One batch of every task in each step; their losses are added."""
    return [tuple(range(len(length.rows)))] * length.steps_per_epoch


SCHEDULES: dict[str, Schedule] = {
    "interleaved": round_robin,
    "sequential": one_after_another,
    "proportional": proportional,
    "annealed": annealed,
    "joint": joint,
}
