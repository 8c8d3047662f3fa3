"""Timing of contenders side by side, and the comparison of their times. Knows clocks and numbers, no model.

A machine's speed changes by tens of per cent within minutes. So our code and the peer take turns, step by
step, and only the ratio of their times is compared with a goal: the median over rounds.
Not handled: confidence intervals. The quartiles of the ratio over the rounds show its accuracy.
"""

import contextlib
import math
import multiprocessing.connection
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


class SeparateProcess:
    """A contender in a separate process. There it has the allocator and the threads that a user's script has.

    The process calls make(*arguments) and gets a function of k. A call of this object makes the process call
    that function and waits for its end. The contender is ready after the first `wait`.
    """

    def __init__(self, make: Callable[..., Callable[[int], object]], *arguments: object):
        context = multiprocessing.get_context("forkserver")  # a fork would not have this process's threads
        context.set_forkserver_preload(["benchmarks.rows", "transformers.models.bert.modeling_bert"])
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, make, arguments), daemon=True)
        self._process.start()
        far.close()

    def wait(self) -> None:
        """Wait for the end of the last call.

        Raises RuntimeError if the process has ended. The process has then printed the reason.
        """
        try:
            self._pipe.recv()
        except EOFError:
            raise RuntimeError("a contender's process has ended") from None

    def __call__(self, k: int) -> None:
        self._pipe.send(k)
        self.wait()

    def end(self) -> None:
        """End the process; kill it after 10 seconds."""
        with contextlib.suppress(OSError):  # the process has ended already
            self._pipe.send(None)
        self._process.join(10)
        self._process.kill()


def _serve(
    pipe: multiprocessing.connection.Connection,
    make: Callable[..., Callable[[int], object]],
    arguments: tuple[object, ...],
) -> None:
    """The separate process: make the contender, then call it with every k from the pipe until None comes."""
    contender = make(*arguments)
    pipe.send("ready")
    while (k := pipe.recv()) is not None:
        contender(k)
        pipe.send("done")


@contextlib.contextmanager
def separate_processes(*makers: tuple[Any, ...]) -> Iterator[list[SeparateProcess]]:
    """Inside the block there is a contender in a separate process for each (make, *arguments)."""
    contenders = [SeparateProcess(*maker) for maker in makers]
    try:
        for contender in contenders:
            contender.wait()
        yield contenders
    finally:
        for contender in contenders:
            contender.end()


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
    what: str,
    column: str,
    unit: str,
    goal: Goal,
    seconds: np.ndarray,
    work: float | np.ndarray = 1.0,
    calls: int = 1,
) -> Measurement:
    """The measurement from the seconds (all calls, 2) of ours and of the peer.

    work: the work of each call, a number or an array that broadcasts to (all calls, 2).
    calls: how many calls make a round. A round's ratio is a ratio of sums, so a slow call counts by its time,
    as in a real run.
    """
    work_done = np.broadcast_to(work, seconds.shape)
    rounds = np.array_split(np.arange(len(seconds)), max(1, len(seconds) // calls))
    done = np.array([work_done[rows].sum(0) for rows in rounds])  # (rounds, 2)
    taken = np.array([seconds[rows].sum(0) for rows in rounds])  # (rounds, 2)
    figures = done / taken if goal.compares == "speed" else taken / done
    ours, peer = np.median(figures, axis=0)
    low, ratio, high = np.quantile(figures[:, 0] / figures[:, 1], (0.25, 0.5, 0.75))
    return Measurement(
        what=what,
        column=column,
        unit=unit,
        ours=float(ours),
        peer=float(peer),
        ratio=float(ratio),
        low=float(low),
        high=float(high),
        rounds=len(rounds),
        goal=goal,
    )


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
