"""Small files: read with a clear error, written completely or not at all."""

import contextlib
import json
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from support.errors import UserError, one_line

PART = ".part"  # ending of a file that is being written


def stdout_or_pipe(path: str | Path) -> int | str | Path | None:
    """What to open where `path` is no file: a descriptor for /dev/stdout, the path itself for a named pipe.

    None for a file.
    """
    name = str(path)
    if name in ("/dev/stdout", "/dev/stderr"):
        return ("/dev/stdout", "/dev/stderr").index(name) + 1
    piped = os.path.exists(name) and stat.S_ISFIFO(os.stat(name).st_mode)
    return path if piped or name == os.devnull else None


def check_writable(path: str | Path, flag: str) -> None:
    """Find out whether `write_text` will be able to write there, without leaving a trace.

    Raises UserError that names the flag.
    """
    problem = ""
    try:
        if stdout_or_pipe(path) is not None:
            return
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            problem = "a folder, device or socket stands there"
        folder = next(parent for parent in target.parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):  # it has no name, or loses it at once
            Path(f"{target}{PART}").exists()  # an error if the name is too long
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        problem = f"cannot be written ({getattr(error, 'strerror', None) or error})"
    if problem:
        raise UserError(f"{flag} {path!s:.200}: {problem}; name another file")


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file to write to, which takes the place of `path` when the block ends; after an error nothing does.

    Its folder is made if missing. A symbolic link stays, and the file that it leads to is replaced. A pipe or
    /dev/stdout is written to directly. mode: "wb", or "w" for UTF-8. Raises UserError if the file cannot be
    written; the old content is then unchanged.
    """
    encoding = None if "b" in mode else "utf-8"
    stream = stdout_or_pipe(path)
    if stream is not None:
        sys.stdout.flush()
        with open(os.dup(stream) if isinstance(stream, int) else stream, mode, encoding=encoding) as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    part = Path(f"{target}{PART}")
    if target.exists() and not target.is_file():
        raise UserError(f"{path}: no regular file stands there; it is left as it is")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open(mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
        sync_folder(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
        raise


def write_text(path: str | Path, text: str) -> None:
    """Replace the file's content in one step, and wait until it is on disk; see `atomic_write`."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """`write_text` for content that is no text."""
    with atomic_write(path) as file:
        file.write(data)


def sync_folder(folder: Path) -> None:
    """Wait until new and renamed names in a folder are on disk. Does nothing on Windows."""
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
