"""Speed next to the packages that a user could choose instead. Prints a table of ratios and writes JSON.

    python -m benchmarks --data_dir path/to/data
    python -m benchmarks --data_dir path/to/data --only plain adamw

All rows take about ten minutes on two cores. `benchmarks/README.md` and the docstrings of `rows.py` say what
each row measures.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import transformers

from benchmarks.measure import Measurement
from benchmarks.rows import ROWS, Setting
from experiments.runner import machine
from support.devices import choose_precision, keep_freed_memory
from support.files import write_text
from support.screen import table

HERE = Path(__file__).resolve().parent


def as_table(measured: list[Measurement]) -> str:
    """One line for each ratio, with its quartiles over the rounds in brackets."""
    verdicts = {True: "met", False: "missed", None: ""}
    rows = [["what", "measured", "ratio", "", "goal", ""]]
    for m in measured:
        spread = f"({m.low:.2f} to {m.high:.2f})"
        verdict = verdicts[m.goal.met(m.ratio)]
        rows.append([m.what, m.column, f"{m.ratio:.2f}", spread, str(m.goal), verdict])
    return table(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    precision = choose_precision(torch.device("cpu"), None)
    print(f"precision: {precision.name}, {precision.reason}", file=sys.stderr, flush=True)
    setting = Setting(options.data_dir, options.scale, options.batch_size, precision.name)
    measured: list[Measurement] = []
    seconds: dict[str, float] = {}  # by row
    keep_freed_memory()  # as the main program does
    for name in options.only:
        print(f"{name}: {(ROWS[name].__doc__ or '').splitlines()[0]}", file=sys.stderr, flush=True)
        begin = time.perf_counter()
        measured += ROWS[name](setting)
        seconds[name] = round(time.perf_counter() - begin, 1)
    results = {
        "command": shlex.join(["python", "-m", "benchmarks", *arguments]),
        "machine": machine() | {"torch": torch.__version__, "transformers": transformers.__version__},
        "precision": precision.name,
        "precision_reason": precision.reason,
        "scale": options.scale,
        "seconds": seconds,
        "rows": [asdict(m) | {"met": m.goal.met(m.ratio)} for m in measured],
    }
    write_text(options.output, json.dumps(results, indent=2) + "\n")
    print(f"{as_table(measured)}\n{sum(seconds.values()):.0f} s; written to {options.output}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    environment = os.environ.get("SMART_BERT_DATA_DIR")
    parser.add_argument(
        "--data_dir",
        type=Path,
        default=environment,
        required=not environment,
        help="default: $SMART_BERT_DATA_DIR",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=ROWS,
        default=list(ROWS),
        metavar="ROW",
        help=f"rows to measure: {', '.join(ROWS)}",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=HERE / "results.json",
        help="path of the JSON file (default: %(default)s)",
    )
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="share of the steps; with less than 1 the ratios are inaccurate (default: 1)",
    )
    parser.add_argument(
        "--batch_size",
        type=int,
        default=Setting.batch_size,
        help="rows in a training step (default: %(default)s)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
