"""What the two tricks of support/dropout.py save of a training step. Prints a table in Markdown.

    python -m benchmarks.dropout --data_dir path/to/data

Steps with and without a trick take turns in one process, on the same batches of sst, para and sts. Nothing
else should run meanwhile; about four minutes on two cores.
"""

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch.nn.functional as F

import bert
import multitask_classifier as program
import support.dropout
from benchmarks.measure import take_turns
from benchmarks.rows import Setting, mixed_batches, new_learner, new_models, our_step
from config import TrainConfig
from support.devices import COMPUTE_TYPES, keep_freed_memory

CONFIGS = {"plain": {}, "SMART + Bregman": {"use_smart": True}}
PRECISIONS = ("fp32", "bf16")


def no_masks_kept() -> contextlib.AbstractContextManager[Any]:
    """Within, every pass draws its masks."""
    return mock.patch.object(program, "keep_masks", lambda enabled: contextlib.nullcontext())


@contextlib.contextmanager
def torchs_dropout() -> Iterator[None]:
    """Within, dropout is torch's, and no mask is kept."""
    with (
        no_masks_kept(),
        mock.patch.object(support.dropout, "dropout", F.dropout),
        mock.patch.object(bert, "dropout", F.dropout),
    ):
        yield


def measure(setting: Setting, precision: str, settings: dict[str, Any], count: int) -> np.ndarray:
    """Seconds (steps, 3): as it is, with masks drawn anew for each pass, and with torch's dropout."""
    model = new_models()[0]
    model.compute_type = COMPUTE_TYPES[precision]
    learner = new_learner(model, TrainConfig(precision=precision, **settings))
    batches = mixed_batches(setting, setting.count(count))

    def within(context: Callable[[], contextlib.AbstractContextManager[Any]]) -> Callable[[int], None]:
        def step(k: int) -> None:
            with context():
                our_step(learner, *batches[k])

        return step

    return take_turns(len(batches), *map(within, (contextlib.nullcontext, no_masks_kept, torchs_dropout)))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dropout", description=__doc__)
    environment = os.environ.get("SMART_BERT_DATA_DIR")
    parser.add_argument("--data_dir", type=Path, default=environment, required=not environment)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps")
    options = parser.parse_args()
    setting = Setting(options.data_dir, options.scale)
    keep_freed_memory()  # as the main program does
    print("| step | precision | 64-bit draws save | kept masks save |\n|---|---|---|---|", flush=True)
    for name, settings in CONFIGS.items():
        for precision in PRECISIONS:
            ours, anew, torchs = measure(setting, precision, settings, 10).sum(0)
            saved = f"{1 - anew / torchs:.1%} | {1 - ours / anew:.1%}"
            print(f"| {name} | {precision} | {saved} |", flush=True)


if __name__ == "__main__":
    main()
