"""Where a run computes, and how that place is made the most of: device, compute type, memory, threads. Knows
no model.

Not handled: several devices in one process; that is what several processes are for (`parallel.py`).
"""

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from support import parallel
from support.errors import UserError

COMPUTE_TYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # of --precision, for autocast
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def pick_device(use_gpu: bool) -> torch.device:
    """CUDA (of several processes on a machine each its own device), else Apple's MPS, else the CPU; with
    `use_gpu` CUDA or a UserError."""
    place = int(os.environ.get("LOCAL_RANK", 0))
    if torch.cuda.is_available():
        if place >= torch.cuda.device_count():
            raise UserError(
                "--nproc_per_node: more processes than this machine's"
                f" {torch.cuda.device_count()} CUDA devices"
            )
        torch.cuda.set_device(place)
        return torch.device("cuda", place)
    if use_gpu:
        raise UserError(
            "--use_gpu: this PyTorch finds no CUDA device; leave the flag out to use the best device there is"
        )
    if torch.backends.mps.is_available() and parallel.size() == 1:
        return torch.device("mps")
    keep_freed_memory()
    torch.set_num_threads(
        torch.get_num_threads()
    )  # as `mapper` will leave it: a resumed run must compute alike from the start
    return torch.device("cpu")


def default_precision(device: torch.device) -> str:
    """bf16 on a CUDA device that computes in it, else fp32: on CPUs bf16 is mostly slower."""
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp32"


def keep_freed_memory() -> None:
    """Have glibc keep what is freed: pages fetched anew cost 2 to 4 % of a step on a CPU, and half of one at
    512 tokens a row."""
    with contextlib.suppress(OSError, AttributeError):  # another C library has its own ways
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@contextlib.contextmanager
def mapper(device: torch.device) -> Iterator[Callable]:
    """A `map` for work on the device: on a CPU a thread for each core, 8 at most.

    Whole batches side by side are a tenth to a fifth faster than all cores sharing each operation.
    """
    threads = torch.get_num_threads()
    workers = min(threads, 8) if device.type == "cpu" else 1
    if workers == 1:
        yield map
        return
    torch.set_num_threads(threads // workers)
    try:
        with ThreadPoolExecutor(workers) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)
