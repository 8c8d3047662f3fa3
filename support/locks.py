"""A lock on a folder: one process at a time writes there. This module knows no model.

The operating system drops the lock when its process ends, however that happens. Not handled: Windows, and
file systems without locks; there the folder is not protected.
"""

import contextlib
import datetime
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from support.errors import UserError, one_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "run.lock"  # its content says who holds it
log = logging.getLogger("smart_bert")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder within the block; it is made if it is missing, and removed again if it stays empty.

    Raises UserError that says who holds it, or that it cannot be written.
    """
    if fcntl is None:
        yield
        return
    try:
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(folder)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise UserError(f"--output_dir {str(folder)[:200]}: cannot be written ({reason})") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if _is_file(folder / LOCK, descriptor):
                os.unlink(folder / LOCK)
        os.close(descriptor)
        if made:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def _acquire(folder: Path) -> int:
    """Descriptor of the lock file, which this process now holds. Raises UserError if another one does."""
    while True:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 500).decode(errors="replace").strip()
            os.close(descriptor)
            raise UserError(
                f"--output_dir {folder}: in use by {holder or 'another process'}; wait, or name another"
            ) from None
        except OSError as error:
            log.warning("%s: this file system has no locks (%s); start one run at a time", folder, error)
        if _is_file(folder / LOCK, descriptor):
            break
        os.close(descriptor)  # its last holder has just removed it
    since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode())
    return descriptor


def _is_file(path: Path, descriptor: int) -> bool:
    """Whether the open file still has this name."""
    return os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(descriptor))
