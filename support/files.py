"""Small files: read with a clear error, written completely or not at all."""

import json
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

from support.errors import UserError, one_line

PART = ".part"  # ending of a file that is being written


def stream_of(path: str | Path) -> int | str | Path | None:
    """What to open where a text goes to a reader and not into a file: a descriptor of this process for
    /dev/stdout and its like, the path itself for a named pipe; None for a file."""
    name = str(path)
    if name in ("/dev/stdout", "/dev/stderr"):
        return ("/dev/stdout", "/dev/stderr").index(name) + 1
    if os.path.dirname(name) == "/dev/fd" and os.path.basename(name).isdecimal():
        return int(os.path.basename(name))
    piped = os.path.exists(name) and stat.S_ISFIFO(os.stat(name).st_mode)
    return path if piped or name == os.devnull else None


def check_writable(path: str | Path, flag: str) -> None:
    """Find out whether `write_text` will be able to write there, without leaving a trace.

    Raises UserError that names the flag: for a folder, a socket or a device, a folder that can't be written,
    and a name that is too long.
    """
    try:
        if stream_of(path) is not None:
            return
        target = Path(os.path.realpath(path))
        if os.path.lexists(target) and not stat.S_ISREG(os.stat(target).st_mode):
            kind = "folder" if target.is_dir() else "device or socket"
            raise UserError(f"{flag} {path}: a {kind} stands there; name a file")
        folder = next(parent for parent in target.parents if parent.exists())
        longest = max(len(os.fsencode(part)) for part in target.parts) + len(PART)
        if hasattr(os, "pathconf") and longest > os.pathconf(folder, "PC_NAME_MAX"):
            raise UserError(f"{flag} {str(path)[:60]}...: the name is too long; name a shorter one")
        with tempfile.TemporaryFile(dir=folder):  # it has no name, or loses it at once
            pass
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{flag} {str(path)[:200]}: cannot be written there ({reason}); name another"
        ) from None


def write_text(path: str | Path, text: str) -> None:
    """Replace the file's content in one step, and wait until it is on disk. The folder is made if missing.

    A symbolic link stays, and the file that it leads to is replaced. A pipe or /dev/stdout gets the text in
    one write. Raises UserError if the file cannot be written; the old content is then unchanged.
    """
    try:
        data = text.encode()
    except ValueError as error:  # a lone surrogate
        raise UserError(f"{path}: cannot be written ({error})") from None
    write_bytes(path, data)


def write_bytes(path: str | Path, data: bytes) -> None:
    """`write_text` for content that is no text."""
    part = Path(f"{path}{PART}")
    try:
        stream = stream_of(path)
        if stream is not None:
            sys.stdout.flush()
            with open(os.dup(stream) if isinstance(stream, int) else stream, "wb") as reader:
                reader.write(data)
            return
        target = Path(os.path.realpath(path))
        part = Path(f"{target}{PART}")
        if os.path.lexists(target) and not stat.S_ISREG(os.stat(target).st_mode):
            raise UserError(f"{path}: no regular file stands there; it is left as it is")
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
        sync_folder(target.parent)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, UserError):
            raise
        if part.is_file():
            part.unlink()
        raise UserError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None


def sync_folder(folder: Path) -> None:
    """Wait until new and renamed names in a folder are on disk. Does nothing where folders cannot be opened
    (Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def parse_json(path: str | Path, data: bytes) -> dict[str, Any]:
    """The JSON object in `data`, the content of file `path`. Raises UserError, which names the file."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({one_line(error)})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a JSON {type(value).__name__}, not an object")
    return value


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError, which names the file."""
    return parse_json(path, read_bytes(path))


def read_bytes(path: str | Path, otherwise: str = "cannot be read") -> bytes:
    """The file's content. Raises UserError, which names the file and continues with the text `otherwise`."""
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{path}: {otherwise} ({getattr(error, 'strerror', None) or error})") from None
