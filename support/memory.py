"""What a training step needs of a device's memory, priced from shapes alone, and what the device has free.

    price(Encoder, rows, tokens, ...) ─> Price ─ total ─ beside free_bytes(device)

Knows the shapes of a transformer's layers, no model class. `python -m benchmarks.memory` has the price beside
the true peak. Everything is in bytes. B rows, T tokens, H hidden, N heads, I intermediate.
"""

import os
from pathlib import Path
from typing import NamedTuple

import torch

CGROUPS = Path("/sys/fs/cgroup")
# What an allocator takes for activations, over what it is asked for: blocks of many sizes leave holes.
# Measured on a CPU with glibc, in fp32 and bf16, at 64 to 256 tokens.
HOLES = 1.2


class Encoder(NamedTuple):
    """The shape of an encoder with LayerNorm after each residual sum.

    parameters: all numbers of the model, heads included. trained: those that get a gradient.
    """

    layers: int
    hidden: int
    heads: int
    intermediate: int
    parameters: int
    trained: int

    @property
    def matrices(self) -> int:
        """Numbers in the matrices of one layer."""
        return 4 * self.hidden**2 + 2 * self.hidden * self.intermediate


class Price(NamedTuple):
    """Bytes of a training step on one batch, at its peak."""

    weights: int
    gradients: int
    moments: int  # two for each weight that is trained
    teacher: int
    activations: int  # kept for the backward pass, or those of the evaluation if they are more

    @property
    def total(self) -> int:
        return sum(self)


def kept_by_layer(encoder: Encoder, rows: int, tokens: int, narrow: bool, fused: bool) -> int:
    """Bytes that one layer's forward pass leaves for its backward pass.

    narrow: matrix products in bf16 or fp16, by autocast. fused: a kernel for the whole attention, and dropout
    masks of one byte, as on a GPU; on a CPU the attention's (B,N,T,T) matrices are kept.
    """
    size = 2 if narrow else 4
    mask = 1 if fused else size
    # input, query, key, value, context, the feed-forward part's input: 6 H; two dropout masks
    by_token = encoder.hidden * (6 * size + 2 * mask)
    by_token += encoder.hidden * 2 * 4  # the two LayerNorms' inputs, always fp32
    by_token += encoder.intermediate * 2 * size  # before and after GELU
    if not fused:
        by_token += encoder.heads * tokens * 3 * size  # softmax, its dropout mask, their product
    weights = encoder.matrices * size if narrow else 0  # the rounded copy that this pass has used
    return rows * tokens * by_token + weights


def workspace(encoder: Encoder, rows: int, tokens: int, narrow: bool, fused: bool) -> int:
    """Bytes that are needed for a moment within one layer, in the forward or the backward pass."""
    size = 2 if narrow else 4
    attention = 0 if fused else 3 * encoder.heads * tokens
    return rows * tokens * size * max(attention, 2 * encoder.intermediate + 3 * encoder.hidden)


def price(
    encoder: Encoder,
    batch: tuple[int, int],
    evaluation: tuple[int, int],
    *,
    passes: int,
    teacher: bool,
    narrow: bool,
    fused: bool,
    gradients: int = 1,
) -> Price:
    """The price of training on batches of (rows, tokens), and of evaluating the largest batch of dev.

    passes: how many forward passes wait for the backward pass at the same time. gradients: how many copies of
    the model's gradient are held.
    """
    kept = passes * encoder.layers * kept_by_layer(encoder, *batch, narrow, fused)
    embeddings = 4 * 4 * encoder.hidden * batch[0] * batch[1]  # sum, mask, output, δ
    training = HOLES * (kept + embeddings + workspace(encoder, *batch, narrow, fused))
    # no graph: one layer at a time, with no (B,N,T,T) matrix
    by_layer = kept_by_layer(encoder, *evaluation, narrow, fused=True)
    scoring = HOLES * (by_layer + workspace(encoder, *evaluation, narrow, fused=True))
    return Price(
        weights=4 * encoder.parameters,
        gradients=4 * encoder.trained * gradients,
        moments=8 * encoder.trained,
        teacher=4 * encoder.parameters * teacher,
        activations=round(max(training, scoring)),
    )


def free_bytes(device: torch.device) -> int | None:
    """Free memory of the device for this process; None where the system does not say.

    On a CPU the processes of `torchrun` share what is free.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    found = [*_free_of_machine(), *_free_of_groups(), *_free_of_process()]
    return min(found) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if found else None


def _free_of_machine() -> list[int]:
    """What the kernel of Linux says is available; nothing elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return []
    return [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]


def _free_of_process() -> list[int]:
    """What is left of `ulimit -v`; nothing where there is no such limit."""
    try:
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        used = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):  # Windows, macOS
        return []
    return [] if limit == resource.RLIM_INFINITY else [max(0, limit - used)]


def _free_of_groups() -> list[int]:
    """What is left of the limits of this process's control groups, version 1 or 2; containers have such."""
    names = {2: ("memory.max", "memory.current"), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes")}
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = CGROUPS / controllers
        folder = root / path.lstrip("/")
        for group in [folder, *folder.parents]:
            if not group.is_relative_to(root):
                break
            try:
                limit, used = (int((group / name).read_text()) for name in names[1 if controllers else 2])
                statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no limit, or not visible from within a container
                continue
            # pages of files count as used, but the kernel gives them back
            found.append(limit - used + int(statistics.get("inactive_file", 0)))
    return [max(0, free) for free in found]


def size_text(size: float) -> str:
    """`12 MB`, `1.9 GB`."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
