"""Speed next to the packages that a user could choose instead. Prints a table of ratios and writes JSON.

    python -m benchmarks --data_dir path/to/data
    python -m benchmarks --data_dir path/to/data --only plain adamw

All rows take about ten minutes on two cores. `benchmarks/README.md` and the docstrings of `rows.py` say what
each row measures.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict

import torch
import transformers

from benchmarks.command_line import call_each, parser_of, write_results
from benchmarks.measure import Measurement
from benchmarks.rows import ROWS, Setting
from support.devices import choose_precision, keep_freed_memory
from support.screen import table


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
    parser = parser_of("benchmarks", __doc__, "results.json", data=True, only=ROWS)
    said = "share of the steps; with less than 1 the ratios are inaccurate (default: 1)"
    parser.add_argument("--scale", type=float, default=1.0, help=said)
    said = "rows in a training step (default: %(default)s)"
    parser.add_argument("--batch_size", type=int, default=Setting.batch_size, help=said)
    options = parser.parse_args(arguments)
    precision = choose_precision(torch.device("cpu"), None)
    print(f"precision: {precision.name}, {precision.reason}", file=sys.stderr, flush=True)
    setting = Setting(options.data_dir, options.scale, options.batch_size, precision.name)
    keep_freed_memory()  # as the main program does
    measured, seconds = call_each(options.only, ROWS, lambda name: ROWS[name](setting))
    found = {
        "transformers": transformers.__version__,
        "precision": precision.name,
        "precision_reason": precision.reason,
        "scale": options.scale,
        "seconds": seconds,
        "rows": [asdict(m) | {"met": m.goal.met(m.ratio)} for m in measured],
    }
    write_results(options.output, "benchmarks", arguments, found)
    print(f"{as_table(measured)}\n{sum(seconds.values()):.0f} s; written to {options.output}")


if __name__ == "__main__":
    main()
