"""Dropout on the CPU at a lower price than torch's. What it computes is `F.dropout`.

Two tricks are used. One 64-bit random number decides over four elements, where torch draws a number for each.
And masks are kept: SMART's passes start from the same state of the random generator to get the same masks, so
these need to be drawn only once. Of a training step on two cores (sst, para and sts, 32 rows a batch) each
trick saves:

    step              precision   64-bit draws   kept masks
    plain             fp32                8 %            -
    plain             bf16               10 %            -
    SMART + Bregman   fp32                9 %          1 %
    SMART + Bregman   bf16               13 %          6 %

`python -m benchmarks.dropout` measures it. On other devices torch's dropout is taken as it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# (state of the generator, shape, type, p) -> (mask, state of the generator after it was drawn)
Kept = dict[tuple[Any, ...], tuple[Tensor, Tensor]]
_kept: ContextVar[Kept | None] = ContextVar("kept_masks", default=None)


@contextmanager
def keep_masks(enabled: bool = True) -> Iterator[None]:
    """Inside the block, a mask whose draw would repeat an earlier draw is that earlier mask.

    No number changes: the state of the generator decides over a mask, and it is moved on as by a draw. The
    masks are freed at the end of the block, or with the graph that needs them. Not `enabled`: every mask is
    drawn, which costs 1 % less where no pass is repeated.
    """
    token = _kept.set({} if enabled else None)
    try:
        yield
    finally:
        _kept.reset(token)


def draw_mask(x: Tensor, p: float) -> Tensor:
    """A new mask in the shape and type of x: 0 with probability p, else 1 / (1 - p).

    p is rounded to a multiple of 1/65536, because 16 bits decide over an element.
    """
    dropped = min(round(p * 65536), 65535)  # of the 65,536 values of 16 bits
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = draws[: x.numel()].view(x.shape) >= dropped - 32768
    return kept.to(x.dtype).mul_(65536 / (65536 - dropped))


def dropout(x: Tensor, p: float) -> Tensor:
    """x with elements set to 0 with probability p, the others scaled by 1 / (1 - p), as `F.dropout`."""
    if x.device.type != "cpu":
        return F.dropout(x, p)
    kept = None if torch.compiler.is_compiling() else _kept.get()
    if kept is None:
        return x * draw_mask(x, p)
    key = (torch.get_rng_state().numpy().tobytes(), x.shape, x.dtype, p)
    if key in kept:
        mask, after = kept[key]
        torch.set_rng_state(after)
    else:
        mask = draw_mask(x, p)
        kept[key] = mask, torch.get_rng_state()
    return x * mask


class Dropout(nn.Dropout):
    """`nn.Dropout` by the function above."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training and self.p else x
