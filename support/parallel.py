"""Several processes that train one model together, as `torchrun` starts them: who they are and what they tell
each other.

Built on `torch.distributed`: gloo between CPUs, nccl between GPUs. Knows tensors and modules, no model class;
without `torchrun` there is
one process, and everything here does nothing. Not handled: a number of processes that changes during a run.
"""

import logging
import os
import signal
import sys
from contextlib import contextmanager, redirect_stdout

import torch
import torch.distributed as dist
from torch import Tensor, nn

from support.errors import UserError, first_line


@contextmanager
def process_group():
    """Within, the processes that `torchrun` started know each other."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    # numbers and objects on the host always go through gloo: the host must not wait for a GPU to learn them
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere if rank() else sys.stdout):
        logging.disable(logging.WARNING if rank() else logging.NOTSET)  # process 0 speaks for all
        try:
            yield
        finally:
            dist.destroy_process_group()


def rank() -> int:
    """Which of the processes this is: 0, 1, ..."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def bar_disabled() -> bool | None:
    """What `tqdm` takes as `disable`: one process shows progress, where its stderr is a terminal."""
    return True if rank() else None


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if size() > 1:
        dist.barrier()


def gather(value) -> list:
    """What each process gave, in their order; everyone gets it."""
    values = [value] * size()
    if size() > 1:
        dist.all_gather_object(values, value)
    return values


def largest(*numbers: int) -> list[int]:
    """Each number's maximum over the processes."""
    if size() == 1:
        return list(numbers)
    agreed = torch.tensor(numbers)
    dist.all_reduce(agreed, dist.ReduceOp.MAX)
    return agreed.tolist()


def mean(losses: dict[str, Tensor], weight: float) -> dict[str, Tensor]:
    """Mean over the processes of each scalar times the process' `weight`, detached; no GPU is waited for."""
    if size() == 1:
        return {name: loss.detach() for name, loss in losses.items()}
    values = torch.stack([loss.detach().float() for loss in losses.values()]) * (weight / size())
    dist.all_reduce(values)
    return dict(zip(losses, values, strict=True))


def synchronised(loss: nn.Module) -> nn.Module:
    """The module, whose forward must be the whole loss, so that its backward leaves the mean of all
    processes' gradients in each.

    Inner gradients with respect to anything but parameters are each process' own. Heads of other tasks are
    left without a gradient.
    """
    if size() == 1:
        return loss
    return nn.parallel.DistributedDataParallel(loss, find_unused_parameters=True)


@contextmanager
def lost_worker_advice(where: str):
    """Turns the failure to reach another process into a UserError that says how to go on with the run in
    `where`."""
    try:
        yield
    except RuntimeError as error:
        if size() == 1 or not any(sign in str(error).lower() for sign in ("gloo", "nccl", "connection")):
            raise
        signal.signal(
            signal.SIGTERM, signal.SIG_IGN
        )  # torchrun ends us now, and would do so before this has been said
        message = f"process {rank()} lost another one ({first_line(error)[:80]}); its own message says why"
        raise UserError(f"{message}; go on by the same command with --resume --output_dir {where}") from None
