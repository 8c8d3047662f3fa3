"""Several processes that train one model together, started by `torchrun`.

Built on `torch.distributed`: gloo between CPUs, nccl between GPUs. This module knows tensors, no model.
Without `torchrun` there is one process, and every function returns at once.
Not handled: a number of processes that changes during a run.
"""

import logging
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from support.errors import UserError, one_line

Value = TypeVar("Value")


@contextmanager
def process_group() -> Iterator[None]:
    """Inside the block, the processes of `torchrun` are connected. Only process 0 prints and logs.

    They leave it together: one that ended while process 0 was writing could end the whole run.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    # Numbers and objects on the host go through gloo on every machine, so the host never waits for a GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere if rank() else sys.stdout):
        logging.disable(logging.WARNING if rank() else logging.NOTSET)
        try:
            yield
            wait_for_all()
        finally:
            dist.destroy_process_group()


def rank() -> int:
    """The number of this process: 0, 1, ..."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def bar_disabled() -> bool | None:
    """The value for `tqdm`'s argument `disable`. Process 0 shows a bar if its stderr is a terminal."""
    return True if rank() else None


def wait_for_all() -> None:
    """Returns when every process has called it."""
    if size() > 1:
        dist.barrier()


def gather(value: Value) -> list[Value]:
    """The values of all processes, in the order of their numbers. Every process gets the list."""
    values = [value] * size()
    if size() > 1:
        dist.all_gather_object(values, value)
    return values


def largest(*numbers: int) -> list[int]:
    """The maximum of each number over the processes."""
    if size() == 1:
        return list(numbers)
    agreed = torch.tensor(numbers)
    dist.all_reduce(agreed, dist.ReduceOp.MAX)
    return agreed.tolist()


def mean(losses: dict[str, Tensor], weight: float) -> dict[str, Tensor]:
    """Mean over the processes of each scalar times the process's `weight`, detached. No host sync."""
    if size() == 1:
        return {name: loss.detach() for name, loss in losses.items()}
    values = torch.stack([loss.detach().float() for loss in losses.values()]) * (weight / size())
    dist.all_reduce(values)
    return dict(zip(losses, values, strict=True))


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Replaces each gradient, in place, by its sum over the processes. No host sync.

    A parameter without a gradient is left out: the processes train the same task at the same step, so in all
    of them the heads of the other tasks have none.
    """
    if size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    # all on their way before the first is waited for
    for work in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
        work.wait()


@contextmanager
def lost_worker_advice(where: str | Path) -> Iterator[None]:
    """Turns a lost connection to a worker into a UserError that says how to resume the run in `where`."""
    try:
        yield
    except RuntimeError as error:
        if size() == 1 or not any(sign in str(error).lower() for sign in ("gloo", "nccl", "connection")):
            raise
        # torchrun stops this process when another worker has failed. The message must come first.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        message = f"process {rank()} lost another one ({one_line(error)[:80]}); its own message says why"
        advice = f"resume with the same command and --resume --output_dir {where}"
        raise UserError(f"{message}; {advice}") from None
