"""Speed next to the packages that a user could choose instead. Prints a table of ratios and writes JSON.

    python -m benchmarks --data_dir path/to/data
    python -m benchmarks --data_dir path/to/data --only dense adamw

All rows take about ten minutes on two cores. `benchmarks/README.md` and the docstrings of `rows.py` say what
each row measures.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import transformers

from benchmarks.measure import Measurement
from benchmarks.rows import HERE, ROWS, Setting
from support.devices import keep_freed_memory
from support.files import write_text
from support.screen import table


def as_table(measured: list[Measurement]) -> str:
    """One line for each measurement, with the smallest and largest ratio in brackets."""
    rows = [["what", "unit", "ours", "peer", "ratio", "", "must reach", ""]]
    for m in measured:
        spread = f"({m.low:.2f} to {m.high:.2f})"
        verdict = "met" if m.goal.met(m.ratio) else "missed"
        rows.append(
            [m.what, m.unit, f"{m.ours:.4g}", f"{m.peer:.4g}", f"{m.ratio:.2f}", spread, str(m.goal), verdict]
        )
    return table(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options = parse(arguments)
    setting = Setting(options.data_dir, options.scale, options.batch_size)
    measured: list[Measurement] = []
    seconds: dict[str, float] = {}  # by row
    keep_freed_memory()  # as the main program does
    for name in options.only:
        print(f"{name}: {(ROWS[name].__doc__ or '').splitlines()[0]}", file=sys.stderr, flush=True)
        begin = time.perf_counter()
        measured += ROWS[name](setting)
        seconds[name] = round(time.perf_counter() - begin, 1)
    machine = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    lines = [asdict(m) | {"met": m.goal.met(m.ratio)} for m in measured]
    results = {"machine": machine, "scale": options.scale, "seconds": seconds, "rows": lines}
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
