"""The memory that a run is said to need, beside the true peak of its training step, on this CPU.

    python -m benchmarks.memory

Every line is a process of its own with the settings of the main program: MiniLM, 32 rows, two steps. The
true peak is the largest resident memory, minus the resident memory before the model was made. Prints a table
and writes JSON. Linux only: /proc has the peak. Exit status 1 where a price is off by more than 25 %.
"""

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from support.files import write_text
from support.screen import table

HERE = Path(__file__).resolve().parent
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "SMART": {"use_smart": True, "bregman_weight": 0.0},
    "SMART + Bregman": {"use_smart": True},
}
TOKENS = (64, 128, 256)
PRECISIONS = ("fp32", "bf16")
ROWS = 32
STEPS = 2  # the second one has everything in memory
MOST_OFF = 0.25


def measure(kind: str, tokens: int, precision: str) -> dict[str, int]:
    """Price and true peak, in bytes, of a training step in this process."""
    import numpy as np
    import torch

    from base_bert import BertConfig
    from benchmarks.growth import resident
    from bert import BertModel
    from config import TrainConfig
    from datasets import Batch
    from multitask_classifier import MultitaskBERT, TrainingLoss
    from mysmartloss import BregmanProximal
    from support.devices import keep_freed_memory
    from tasks import TASKS
    from training import Learner, memory_price

    keep_freed_memory()
    settings: dict[str, Any] = KINDS[kind]
    config = TrainConfig(tasks=("sst",), precision=precision, batch_size=ROWS, **settings)

    def train(bert: BertModel, tokens: int) -> int:
        """Take the steps; returns the price."""
        model = MultitaskBERT(bert, precision=precision, tasks=["sst"]).train()
        bregman = BregmanProximal(model) if "bregman" in config.weights("sst") else None
        learner = Learner(TrainingLoss(model, config, bregman), config)
        ids = torch.randint(1, bert.config.vocab_size, (ROWS, tokens))
        mask = torch.arange(tokens) < tokens - torch.arange(ROWS)[:, None] % 8
        batch = Batch(np.arange(ROWS), ids, None, mask, torch.arange(ROWS) % 5.0, ROWS * tokens)
        for step in range(STEPS):
            learner.step(TASKS["sst"], batch, 1e-5, 0.9, measure=step == 0)
        return memory_price(model, config, (ROWS, tokens), (ROWS, tokens)).total

    # first a tiny model, so that the libraries have loaded what they need
    train(BertModel(BertConfig(99, 16, 1, 2, 16)), 16)
    before = resident("VmRSS")
    priced = train(BertModel.from_pretrained(), tokens)
    return {"priced": priced, "peak": round(1024**2 * (resident("VmHWM") - before))}


def measure_in_new_process(kind: str, tokens: int, precision: str) -> dict[str, int]:
    """`measure` in a new process."""
    command = [sys.executable, "-m", "benchmarks.memory", "--point", kind, str(tokens), precision]
    done = subprocess.run(command, cwd=HERE.parent, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


def as_table(points: list[dict[str, Any]]) -> str:
    """One line for each point, sizes in MB."""
    rows = [["step", "precision", "tokens", "priced, MB", "peak, MB", "priced / peak"]]
    for point in points:
        sizes = [f"{point[name] / 1e6:,.0f}" for name in ("priced", "peak")]
        rows.append([point["step"], point["precision"], str(point["tokens"]), *sizes, f"{ratio(point):.2f}"])
    return table(rows)


def ratio(point: dict[str, Any]) -> float:
    """Price over peak."""
    return float(point["priced"]) / float(point["peak"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=HERE / "memory.json",
        help="path of the JSON file (default: %(default)s)",
    )
    parser.add_argument("--point", nargs=3, metavar=("STEP", "TOKENS", "PRECISION"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.point:
        kind, tokens, precision = options.point
        print(json.dumps(measure(kind, int(tokens), precision)))
        return 0
    points: list[dict[str, Any]] = []
    for kind, precision, size in itertools.product(KINDS, PRECISIONS, TOKENS):
        found = measure_in_new_process(kind, size, precision)
        points.append({"step": kind, "precision": precision, "tokens": size, **found})
        print(as_table(points[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    results = {"machine": machine(), "rows": ROWS, "steps": STEPS, "points": points}
    write_text(options.output, json.dumps(results, indent=2) + "\n")
    print(f"{as_table(points)}\nwritten to {options.output}")
    return int(any(abs(ratio(point) - 1) > MOST_OFF for point in points))


if __name__ == "__main__":
    sys.exit(main())
