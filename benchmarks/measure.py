"""Timing side by side, and what a comparison says. Knows clocks and numbers, no model.

A machine's speed drifts by tens of per cent within minutes, so ours and the peer take turns, piece by piece,
and only their ratio is
compared with a goal. Not handled: confidence intervals; the spread over parts of the run shows how far a
ratio can be trusted.
"""

import contextlib
import multiprocessing.connection
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

GROUPS = (
    3  # parts of a measurement whose ratios are compared; each is a fair sample of the whole (see `evenly`)
)


@dataclass(frozen=True)
class Goal:
    """What a ratio of ours to the peer's must reach: at least `bound` where speeds are compared, at most
    `bound` where times are."""

    compares: str  # "speed" (work / s) or "time" (s / work)
    bound: float

    def met(self, ratio: float) -> bool:
        return ratio >= self.bound if self.compares == "speed" else ratio <= self.bound

    def __str__(self) -> str:
        return f"{'>=' if self.compares == 'speed' else '<='} {self.bound:g}"


@dataclass(frozen=True)
class Measurement:
    """One line of the table. ours and peer are in `unit`; low and high are the extremes of the ratio over
    `GROUPS` parts of the run."""

    what: str
    unit: str
    ours: float
    peer: float
    ratio: float
    low: float
    high: float
    goal: Goal


class Apart:
    """A contender with a process of its own, and so with the allocator and the threads that a user would have
    it run with.

    make(*arguments), called there, returns what a call of this object then calls there. It is ready when
    `wait` returns.
    """

    def __init__(self, make: Callable[..., Callable[[int], object]], *arguments: object):
        context = multiprocessing.get_context("forkserver")  # a fork of this process would lack its threads
        context.set_forkserver_preload(["benchmarks.rows", "transformers.models.bert.modeling_bert"])
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, make, arguments), daemon=True)
        self._process.start()
        far.close()

    def wait(self) -> None:
        """Until the last call is done. Raises RuntimeError if the process has ended; it has printed why."""
        try:
            self._pipe.recv()
        except EOFError:
            raise RuntimeError("a contender's process has ended") from None

    def __call__(self, k: int) -> None:
        self._pipe.send(k)
        self.wait()

    def end(self) -> None:
        with contextlib.suppress(OSError):  # it has ended by itself
            self._pipe.send(None)
        self._process.join(10)
        self._process.kill()  # if it was still at work


def _serve(
    pipe: multiprocessing.connection.Connection,
    make: Callable[..., Callable[[int], object]],
    arguments: tuple,
) -> None:
    contender = make(*arguments)
    pipe.send("ready")
    while (k := pipe.recv()) is not None:
        contender(k)
        pipe.send("done")


@contextlib.contextmanager
def apart(*makers: tuple) -> Iterator[list[Apart]]:
    """A contender with a process of its own for each (make, *arguments), made at the same time; they end with
    the block."""
    contenders = [Apart(*maker) for maker in makers]
    try:
        for contender in contenders:
            contender.wait()
        yield contenders
    finally:
        for contender in contenders:
            contender.end()


def take_turns(rounds: int, *contenders: Callable[[int], object], warm_up: int = 1) -> np.ndarray:
    """Calls contender(k) for k = 0, 1, ..., one contender after the other in each round -> wall-clock seconds
    (rounds, contenders).

    Each contender is first called with its last `warm_up` k, untimed: threads start and memory is claimed.
    """
    for k in range(rounds - warm_up, rounds):
        for contender in contenders:
            contender(k)
    seconds = np.zeros((rounds, len(contenders)))
    for k in range(rounds):
        for place, contender in enumerate(contenders):
            begin = time.perf_counter()
            contender(k)
            seconds[k, place] = time.perf_counter() - begin
    return seconds


def compare(
    what: str, unit: str, goal: Goal, seconds: np.ndarray, work: float | np.ndarray = 1.0
) -> Measurement:
    """seconds (rounds, 2) of ours and the peer, work that each round did (a number, or an array that
    broadcasts to the same shape).

    Ratios are of sums, not means of ratios: a slow round counts by the time it takes, as in a real run.
    """
    work = np.broadcast_to(work, seconds.shape)

    def ours_and_peer(rows: np.ndarray) -> np.ndarray:
        done, taken = work[rows].sum(0), seconds[rows].sum(0)
        return done / taken if goal.compares == "speed" else taken / done

    rounds = np.arange(len(seconds))
    ours, peer = ours_and_peer(rounds)
    ratios = [np.divide(*ours_and_peer(part)) for part in np.array_split(rounds, min(GROUPS, len(rounds)))]
    return Measurement(
        what, unit, float(ours), float(peer), float(ours / peer), float(min(ratios)), float(max(ratios)), goal
    )


def evenly(batches: list[np.ndarray], lengths: np.ndarray, count: int) -> list[np.ndarray]:
    """`count` of an epoch's batches of row numbers, at even distances in the order of their padded size, so
    that few stand for all.

    Ordered so that each of `GROUPS` parts of the list is such a sample itself. lengths: (rows,), tokens of
    each row.
    """
    by_size = np.argsort([lengths[rows].max() * len(rows) for rows in batches], kind="stable")
    chosen = by_size[((np.arange(count) + 0.5) * len(batches) / count).astype(int)]
    return [batches[i] for part in range(GROUPS) for i in chosen[part::GROUPS]]
