"""Where a run computes: device, compute type, memory and threads. Knows no model.

Not handled: several devices in one process. Several processes do that (`parallel.py`).
"""

import contextlib
import ctypes
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, SupportsFloat

import torch

from support import parallel
from support.errors import UserError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# --precision -> the type that autocast computes in
COMPUTE_TYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISION_VARIABLE = "SMART_BERT_PRECISION"
# of a CPU: with one of them a matrix product in bf16 takes half the time of fp32, without them longer
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")
# constants of glibc's malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4

log = logging.getLogger("smart_bert")


def pick_device(use_gpu: bool) -> torch.device:
    """The device to compute on: CUDA if there is one, else Apple's MPS, else the CPU.

    Each rank takes a CUDA device of its own. Raises UserError if `use_gpu` is set and there is no CUDA
    device, and if there are more ranks than CUDA devices.
    """
    given = os.environ.get("LOCAL_RANK", "0")
    if not given.isdecimal():
        raise UserError(f"LOCAL_RANK is {given!r:.50}, not a number; start several processes by torchrun")
    local_rank = int(given)
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if local_rank >= count:
            raise UserError(f"--nproc_per_node: more processes than this machine's {count} CUDA devices")
        torch.cuda.set_device(local_rank)
        # --precision fp32 is fp32: no TF32, which keeps three digits
        torch.set_float32_matmul_precision("highest")
        # cuDNN's attention makes a plan for each shape, and batches differ in length; flash and
        # memory-efficient attention take any length
        torch.backends.cuda.enable_cudnn_sdp(False)
        return torch.device("cuda", local_rank)
    if use_gpu:
        raise UserError("--use_gpu: this PyTorch finds no CUDA device; leave the flag out to use another one")
    if torch.backends.mps.is_available() and parallel.size() == 1:
        return torch.device("mps")
    keep_freed_memory()
    # `mapper` calls set_num_threads, too, which can change results: a resumed run must compute as the first
    # did from its first step
    torch.set_num_threads(torch.get_num_threads())
    return torch.device("cpu")


def make_deterministic() -> None:
    """Use kernels that give the same bits in every run; an operation without one raises an error.

    To be called before anything is computed: cuBLAS reads its variable when it starts.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
    # filling new memory finds bugs and costs time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


class Elapsed:
    """The seconds between two events in a GPU's queue. `float` syncs the GPU."""

    def __init__(self, device: torch.device) -> None:
        event = torch.get_device_module(device).Event
        self.begin = event(enable_timing=True)
        self.end = event(enable_timing=True)
        self.begin.record()

    def __call__(self) -> "Elapsed":
        self.end.record()
        return self

    def __float__(self) -> float:
        self.end.synchronize()
        return float(self.begin.elapsed_time(self.end)) / 1000


def start_watch(device: torch.device) -> Callable[[], SupportsFloat]:
    """Start timing the device's work. A call of the result gives the seconds so far.

    The host runs ahead of a GPU, so events in the GPU's queue are timed there, without a sync.
    """
    begin = time.perf_counter()
    return (lambda: time.perf_counter() - begin) if device.type in ("cpu", "meta") else Elapsed(device)


class Precision(NamedTuple):
    """A compute type by its name in COMPUTE_TYPES, and the reason why it was chosen."""

    name: str
    reason: str


def choose_precision(device: torch.device, asked: str | None, resumed: bool = False) -> Precision:
    """The compute type of a run on this device. This is the only place that decides it.

    asked: the one that the user, or with `resumed` the checkpoint, names; None for the default: bf16 where
    the device computes faster in it, else fp32. The environment variable SMART_BERT_PRECISION sets another
    default, for tests.
    """
    found = ""  # the instructions for products in bf16
    reason = f"bf16 was not tried on {device.type}"
    if device.type == "cuda":
        found = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else ""
        reason = "this CUDA device lacks bf16"
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        found = next((name for name in BF16_INSTRUCTIONS if capabilities.get(name)), "")
        reason = f"this CPU has neither {' nor '.join(BF16_INSTRUCTIONS)}"
    if found:
        reason = f"this {'CUDA device' if device.type == 'cuda' else 'CPU'} has {found}"
    if asked == "bf16" and not found:
        log.warning("bf16 is slow here: %s; --precision fp32 is faster for a new run", reason)
    name = "bf16" if found else "fp32"
    if asked:
        name = asked
        reason = "as the run was started" if resumed else "as --precision says"
    elif PRECISION_VARIABLE in os.environ:
        name = os.environ[PRECISION_VARIABLE]
        reason = f"as {PRECISION_VARIABLE} says"
    return Precision(name, f"{reason}, TF32 off" if (device.type, name) == ("cuda", "fp32") else reason)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the process.

    New pages from the system cost 2 to 4 % of a step on a CPU, and half of a step at 512 tokens a row.
    """
    with contextlib.suppress(OSError, AttributeError):  # the C library is not glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def peak_memory(device: torch.device) -> dict[str, float]:
    """Peak memory of this process in GiB: of the machine, and of a CUDA device."""
    peaks = {}
    if resource:
        unit = 1 if sys.platform == "darwin" else 1024  # bytes
        peaks["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device.type == "cuda":
        peaks["peak_gpu_memory_gib"] = torch.cuda.max_memory_allocated(device)
    return {name: round(count / 2**30, 3) for name, count in peaks.items()}


@contextlib.contextmanager
def mapper(device: torch.device) -> Iterator[Callable[..., Any]]:
    """A function like `map` for work on batches. On a CPU each core, up to 8, works on a batch of its own.

    That is 10 to 20 % faster than all cores on the same batch.
    """
    threads = torch.get_num_threads()
    count = min(threads, 8)
    if device.type != "cpu" or count == 1:
        yield map
        return
    torch.set_num_threads(threads // count)
    pool = ThreadPoolExecutor(count)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C drops the batches that wait
        torch.set_num_threads(threads)
