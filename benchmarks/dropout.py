"""What the dropout of support/dropout.py saves of a training step. Prints a table in Markdown.

    python -m benchmarks.dropout --data_dir path/to/data

Steps with our dropout and with torch's take turns in one process, on the same batches of sst, para and sts.
Nothing else should run meanwhile; about three minutes on two cores.
"""

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch.nn.functional as F

import bert
import support.dropout
from benchmarks.measure import take_turns
from benchmarks.rows import Setting, mixed_batches, new_learner, new_models, our_step
from config import TrainConfig
from support.devices import COMPUTE_TYPES, keep_freed_memory

CONFIGS = {"plain": {}, "SMART + Bregman": {"use_smart": True}}
PRECISIONS = ("fp32", "bf16")


@contextlib.contextmanager
def torchs_dropout() -> Iterator[None]:
    """Within, dropout is torch's."""
    with (
        mock.patch.object(support.dropout, "dropout", F.dropout),
        mock.patch.object(bert, "dropout", F.dropout),
    ):
        yield


def measure(setting: Setting, precision: str, settings: dict[str, Any], count: int) -> np.ndarray:
    """Seconds (steps, 2): with our dropout and with torch's."""
    model = new_models()[0]
    model.compute_type = COMPUTE_TYPES[precision]
    learner = new_learner(model, TrainConfig(precision=precision, **settings))
    batches = mixed_batches(setting, setting.count(count))

    def with_torchs(k: int) -> None:
        with torchs_dropout():
            our_step(learner, *batches[k])

    return take_turns(len(batches), lambda k: our_step(learner, *batches[k]), with_torchs)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dropout", description=__doc__)
    environment = os.environ.get("SMART_BERT_DATA_DIR")
    parser.add_argument("--data_dir", type=Path, default=environment, required=not environment)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps")
    options = parser.parse_args()
    setting = Setting(options.data_dir, options.scale)
    keep_freed_memory()  # as the main program does
    print("| step | precision | saved |\n|---|---|---|", flush=True)
    for name, settings in CONFIGS.items():
        for precision in PRECISIONS:
            ours, torchs = measure(setting, precision, settings, 10).sum(0)
            print(f"| {name} | {precision} | {1 - ours / torchs:.1%} |", flush=True)


if __name__ == "__main__":
    main()
