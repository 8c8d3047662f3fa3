"""Timing of contenders side by side, and the comparison of their times. Knows clocks and numbers, no model.

A machine's speed changes by tens of per cent within minutes. So our code and the peer take turns, step by
step, and only the ratio of their times is compared with a goal: the median over rounds. The quartiles over
the rounds show its accuracy.
"""

import contextlib
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

# A round has a batch of each stratum: short, medium and long rows (see `evenly`).
STRATA = 3


@dataclass(frozen=True)
class Goal:
    """The goal for a ratio, ours / peer: at least `bound` for speeds, at most `bound` for times.

    A bound of None is no goal.
    """

    compares: str  # "speed" (work / s) or "time" (s / work)
    bound: float | None = None

    def met(self, ratio: float) -> bool | None:
        """None if there is no goal."""
        if self.bound is None:
            return None
        return ratio >= self.bound if self.compares == "speed" else ratio <= self.bound

    def __str__(self) -> str:
        return "" if self.bound is None else f"{'>=' if self.compares == 'speed' else '<='} {self.bound:g}"


@dataclass(frozen=True)
class Measurement:
    """One line of the table.

    ours, peer: medians over the rounds, in `unit`. column: the setting that is measured.
    ratio, low, high: median and quartiles of the ratios of the rounds.
    """

    what: str
    column: str
    unit: str
    ours: float
    peer: float
    ratio: float
    low: float
    high: float
    rounds: int
    goal: Goal


_contender: Callable[[int], object]  # of a separate process


def _make(make: Callable[..., Callable[[int], object]], *arguments: object) -> None:
    """Make the contender of this process."""
    global _contender
    _contender = make(*arguments)


def _call(k: int) -> None:
    """Call the contender of this process."""
    _contender(k)


def _call_in(pool: ProcessPoolExecutor, k: int) -> None:
    """Call the contender of that process, and wait for its end."""
    pool.submit(_call, k).result()


@contextlib.contextmanager
def separate_processes(*makers: tuple[Any, ...]) -> Iterator[list[Callable[[int], None]]]:
    """Inside the block there is a contender for each (make, *arguments), in a process of its own.

    There it has the allocator and the threads that a user's script has. A contender raises what its call
    raises.
    """
    context = multiprocessing.get_context("forkserver")  # a fork would not have this process's threads
    context.set_forkserver_preload(["benchmarks.rows", "transformers.models.bert.modeling_bert"])
    with contextlib.ExitStack() as stack:
        pools = [stack.enter_context(ProcessPoolExecutor(1, context)) for _ in makers]
        for made in [pool.submit(_make, *maker) for pool, maker in zip(pools, makers, strict=True)]:
            made.result()
        yield [partial(_call_in, pool) for pool in pools]


def take_turns(rounds: int, *contenders: Callable[[int], object], warm_up: int = 1) -> np.ndarray:
    """Wall-clock seconds (rounds, contenders) of contender(k) for k = 0, 1, ...; in each round all contenders
    are called, one after the other.

    Whoever is the first in a round is 1 to 2 % slower, because the others find the memory for the new shape
    ready. So another one is the first after every STRATA rounds.

    Before that, each contender is called with the last `warm_up` values of k without timing, so that its
    threads are started and its memory is allocated.
    """
    for k in range(max(0, rounds - warm_up), rounds):
        for contender in contenders:
            contender(k)
    seconds = np.zeros((rounds, len(contenders)))
    for k in range(rounds):
        for place in range(len(contenders)):
            column = (place + k // STRATA) % len(contenders)
            begin = time.perf_counter()
            contenders[column](k)
            seconds[k, column] = time.perf_counter() - begin
    return seconds


def compare(
    what: str, column: str, unit: str, goal: Goal, seconds: np.ndarray, work: float = 1.0, calls: int = 1
) -> Measurement:
    """The measurement from the seconds (all calls, 2) of ours and of the peer.

    work: of a call. calls: how many make a round. A round's ratio is a ratio of sums, so a slow call counts
    by its time, as in a real run.
    """
    rounds = np.array_split(seconds, max(1, len(seconds) // calls))
    taken = np.array([calls_of_round.sum(0) for calls_of_round in rounds])  # (rounds, 2)
    done = work * np.array([[len(calls_of_round)] for calls_of_round in rounds])  # (rounds, 1)
    figures = done / taken if goal.compares == "speed" else taken / done
    ours, peer = map(float, np.median(figures, axis=0))
    low, ratio, high = map(float, np.quantile(figures[:, 0] / figures[:, 1], (0.25, 0.5, 0.75)))
    return Measurement(what, column, unit, ours, peer, ratio, low, high, len(rounds), goal)


def evenly(batches: list[np.ndarray], lengths: np.ndarray, count: int, shift: int = 0) -> list[np.ndarray]:
    """A representative sample of `count` of an epoch's batches of row numbers.

    The batches are taken at even distances in the order of their padded size. If `count` is a multiple of
    STRATA, the first STRATA batches are such a sample too, and so are the next ones: one of the short, one of
    the medium and one of the long batches. Which of them comes first depends on `shift`: the k-th batches of
    three tasks with shifts 0, 1 and 2 are of three different strata.
    lengths: (rows,), number of tokens of each row.
    """
    by_size = np.argsort([lengths[rows].max() * len(rows) for rows in batches], kind="stable")
    chosen = by_size[((np.arange(count) + 0.5) * len(batches) / count).astype(int)]
    strata = chosen.reshape(math.gcd(count, STRATA), -1).copy()
    strata[-1] = strata[-1][::-1]  # the shortest of the others goes with the longest of these
    order = [strata[(k + shift) % len(strata), k // len(strata)] for k in range(count)]
    return [batches[i] for i in order]
