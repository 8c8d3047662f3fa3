"""Small files: read with a clear error, written completely or not at all."""

import json
import os
from pathlib import Path
from typing import Any

from support.errors import UserError, one_line


def write_text(path: str | Path, text: str) -> None:
    """Replace the file's content in one step. The folder is made if it is missing.

    Raises UserError if the file cannot be written; the old content is then unchanged.
    """
    path = Path(path)
    part = Path(f"{path}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name, a lone surrogate in the text
        if part.is_file():
            part.unlink()
        raise UserError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None


def parse_json(path: str | Path, data: bytes) -> dict[str, Any]:
    """The JSON object in `data`, the content of file `path`. Raises UserError, which names the file."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({one_line(error)})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a JSON {type(value).__name__}, not an object")
    return value


def read_bytes(path: str | Path, otherwise: str = "cannot be read") -> bytes:
    """The file's content. Raises UserError, which names the file and continues with the text `otherwise`."""
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{path}: {otherwise} ({getattr(error, 'strerror', None) or error})") from None
