"""Flags and files that the programs of this folder have in common."""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from experiments.runner import machine
from support.files import write_text

HERE = Path(__file__).resolve().parent
Found = TypeVar("Found")


def parser_of(
    name: str, description: str | None, output: str, data: bool, only: Iterable[str] = ()
) -> argparse.ArgumentParser:
    """A parser with --output. With `data` it has --data_dir, with names in `only` --only.

    output: name of the file in this folder.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    said = "path of the JSON file (default: %(default)s)"
    parser.add_argument("--output", type=Path, default=HERE / output, help=said)
    if data:
        folder = os.environ.get("SMART_BERT_DATA_DIR")
        said = "default: $SMART_BERT_DATA_DIR"
        parser.add_argument("--data_dir", type=Path, default=folder, required=not folder, help=said)
    if names := list(only):
        said = f"any of {', '.join(names)}"
        parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=said)
    return parser


def call_each(
    names: Sequence[str], functions: Mapping[str, Callable[..., Any]], call: Callable[[str], Sequence[Found]]
) -> tuple[list[Found], dict[str, float]]:
    """What call(name) finds for each name, and its seconds by name.

    stderr says what begins: the first line of the function's docstring.
    """
    found: list[Found] = []
    seconds = {}
    for name in names:
        said = (functions[name].__doc__ or "").splitlines()[0]
        print(f"{name}: {said}", file=sys.stderr, flush=True)
        begin = time.perf_counter()
        found += call(name)
        seconds[name] = round(time.perf_counter() - begin, 1)
    return found, seconds


def write_results(path: Path, name: str, arguments: Sequence[str], found: dict[str, Any]) -> None:
    """Write what was found as JSON, with the command and the machine."""
    results = {
        "command": shlex.join(["python", "-m", name, *arguments]),
        "machine": machine() | {"torch": torch.__version__},
    }
    write_text(path, json.dumps(results | found, indent=2, ensure_ascii=False) + "\n")
