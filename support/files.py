"""Small files: read with a clear error, written completely or not at all."""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from support.errors import UserError, one_line

PART = ".part"  # ending of a file that is being written


def is_stream(path: str | Path) -> bool:
    """Whether the path is /dev/stdout, a named pipe or another device, which no file may replace."""
    special = os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)
    return special or str(path) == "/dev/stdout"


def check_writable(path: str | Path, flag: str) -> None:
    """Raises UserError that names the flag if `write_text` could not write there. Leaves no trace."""
    try:
        if is_stream(path):
            return
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise OSError("it is a folder")
        folder = next(parent for parent in target.parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):  # it has no name, or loses it at once
            pass
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{flag} {path!s:.200}: cannot be written ({one_line(error)})") from None


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file to write to. It takes the place of `path` when the block ends; after an error nothing does.

    Its folder is made if missing. A symbolic link stays, and the file that it leads to is replaced. A stream
    is written to directly. mode: "wb", or "w" for UTF-8. Raises UserError if the file cannot be written; the
    old content is then unchanged.
    """
    encoding = None if "b" in mode else "utf-8"
    if is_stream(path):
        sys.stdout.flush()
        with open(os.dup(1) if str(path) == "/dev/stdout" else path, mode, encoding=encoding) as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    part = Path(f"{target}{PART}")
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
            raise UserError(f"{path}: cannot be written ({one_line(error)})") from None
        raise


def write_text(path: str | Path, text: str) -> None:
    """Replace the file's content in one step, and wait until it is on disk; see `atomic_write`."""
    with atomic_write(path) as file:
        file.write(text.encode(errors="backslashreplace"))


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
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{path}: {otherwise} ({one_line(error)})") from None
    refuse_lfs_pointer(path, data)
    return data


def refuse_lfs_pointer(path: str | Path, data: bytes) -> None:
    """Raises UserError if the file's first bytes say that its content was left on a server by git-lfs."""
    if data.startswith(b"version https://git-lfs.github.com/spec/"):
        mend = "fetch it with `git lfs pull` in its folder"
        raise UserError(f"{path}: a git-lfs pointer, not the file itself; {mend}")
