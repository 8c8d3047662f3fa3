"""Small files, read with a clear error and written at once or not at all."""

import json
import os
from pathlib import Path

from support.errors import UserError, first_line


def write_text(path: str | Path, text: str) -> None:
    """Replace the file's content, making its folder if need be. Raises UserError if it can't; the old content
    is then untouched."""
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


def parse_json(path: str | Path, data: bytes) -> dict:
    """The JSON object in `data`, the content of `path`. Raises UserError naming the file."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({first_line(error)})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a JSON {type(value).__name__}, not an object")
    return value


def read_bytes(path: str | Path, otherwise: str = "cannot be read") -> bytes:
    """The file's content, or UserError naming it and saying what it means that it can't be read."""
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{path}: {otherwise} ({getattr(error, 'strerror', None) or error})") from None
