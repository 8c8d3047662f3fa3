"""Flags and files that the programs of this folder have in common."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.runner import machine
from support.files import write_text

HERE = Path(__file__).resolve().parent


def parser_of(name: str, description: str | None, output: str, data: bool) -> argparse.ArgumentParser:
    """A parser with --output and, with `data`, --data_dir. output: name of the file in this folder."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, default=HERE / output, help="path of the JSON file (default: %(default)s)"
    )
    if data:
        folder = os.environ.get("SMART_BERT_DATA_DIR")
        said = "default: $SMART_BERT_DATA_DIR"
        parser.add_argument("--data_dir", type=Path, default=folder, required=not folder, help=said)
    return parser


def add_only(parser: argparse.ArgumentParser, functions: Mapping[str, Callable[..., Any]]) -> None:
    """The flag --only: which of the functions are called."""
    parser.add_argument(
        "--only",
        nargs="+",
        choices=functions,
        default=list(functions),
        metavar="NAME",
        help=f"any of {', '.join(functions)}",
    )


def announce(name: str, function: Callable[..., Any]) -> None:
    """Say on stderr what begins: the first line of the function's docstring."""
    print(f"{name}: {(function.__doc__ or '').splitlines()[0]}", file=sys.stderr, flush=True)


def write_results(path: Path, name: str, arguments: Sequence[str], found: dict[str, Any]) -> None:
    """Write what was found as JSON, with the command and the machine."""
    results = {
        "command": shlex.join(["python", "-m", name, *arguments]),
        "machine": machine() | {"torch": torch.__version__},
    }
    write_text(path, json.dumps(results | found, indent=2, ensure_ascii=False) + "\n")
