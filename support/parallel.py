"""Several processes that train one model together, started by `torchrun`.

Built on `torch.distributed`: gloo between CPUs, nccl between GPUs. Without `torchrun` there is one process,
and every function returns at once. A resumed run may have another number of processes.
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
START = "start several processes by torchrun; for a single one, unset RANK and WORLD_SIZE"
LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # torchrun sets all four


@contextmanager
def process_group() -> Iterator[None]:
    """Connect the processes of `torchrun` within the block. Only rank 0 prints and logs.

    Barrier at exit, so that no rank quits while rank 0 saves: torchrun would end the whole run. Raises
    UserError if the variables of a launcher are incomplete, or if the processes cannot connect.
    """
    if launched_size() == 1:
        yield
        return
    try:
        # numbers and objects on the host go through gloo, which needs no GPU sync
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    except (RuntimeError, TypeError, ValueError) as error:  # of a port: no number, or too large a one
        raise UserError(f"the processes cannot connect ({one_line(error)[:200]}); {START}") from None
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere if rank() else sys.stdout):
        logging.disable(logging.WARNING if rank() else logging.NOTSET)
        try:
            yield
            barrier()
        finally:
            dist.destroy_process_group()


def launched_size() -> int:
    """The number of processes, by the environment variables of a launcher; 1 if there are none.

    Raises UserError that names the variable which is missing or wrong.
    """
    given = {name: value for name in LAUNCHED if (value := os.environ.get(name, "").strip())}
    if given.get("WORLD_SIZE") == "1" or not given.keys() & {"RANK", "WORLD_SIZE"}:
        return 1  # an address alone starts nothing
    for name in LAUNCHED:
        if name not in given:
            found = ", ".join(f"{other}={value}" for other, value in given.items())
            raise UserError(f"the environment has {found[:200]} but no {name}; {START}")
    numbers = {name: int(given[name]) if given[name].isdecimal() else -1 for name in ("RANK", "WORLD_SIZE")}
    if not 0 <= numbers["RANK"] < numbers["WORLD_SIZE"]:
        found = f"RANK={given['RANK'][:50]}, WORLD_SIZE={given['WORLD_SIZE'][:50]}"
        raise UserError(f"the environment has {found}, not a rank below a number of processes; {START}")
    return numbers["WORLD_SIZE"]


def rank() -> int:
    """The number of this process: 0, 1, ..."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def bar_disabled() -> bool | None:
    """`tqdm`'s argument `disable`: rank 0 shows a bar if its stderr is a terminal (None), others never."""
    return True if rank() else None


def barrier() -> None:
    """Wait until every rank has called it."""
    if size() > 1:
        dist.barrier()


def gather(value: Value) -> list[Value]:
    """The values of all ranks, in their order, on every rank."""
    values = [value] * size()
    if size() > 1:
        dist.all_gather_object(values, value)
    return values


def all_reduce_max(*numbers: int) -> list[int]:
    """The maximum of each number over the ranks."""
    if size() == 1:
        return list(numbers)
    maxima = torch.tensor(numbers)
    dist.all_reduce(maxima, dist.ReduceOp.MAX)
    return maxima.tolist()


def all_reduce_mean(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean of each scalar over the ranks, detached. No GPU sync."""
    if size() == 1:
        return {name: loss.detach() for name, loss in losses.items()}
    values = torch.stack([loss.detach().float() for loss in losses.values()]) / size()
    dist.all_reduce(values)
    return dict(zip(losses, values, strict=True))


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient, in place, by its sum over the ranks. No GPU sync.

    All ranks train the same task at the same step, so the same parameters have a gradient on each.
    """
    if size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for work in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
        work.wait()


@contextmanager
def lost_worker_advice(where: str | Path) -> Iterator[None]:
    """Turn a lost connection to another rank into a UserError that says how to resume the run in `where`."""
    try:
        yield
    except RuntimeError as error:
        if size() == 1 or not any(sign in str(error).lower() for sign in ("gloo", "nccl", "connection")):
            raise
        # torchrun sends SIGTERM when another rank has failed; the message must come first
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        message = f"process {rank()} lost another one ({one_line(error)[:80]}); its own message says why"
        advice = f"resume with the same command and --resume --output_dir {where}"
        raise UserError(f"{message}; {advice}") from None
