"""Folders of tensors (safetensors) and records (JSON), written whole or not at all, and never trusted on the
way back. No pickle.

A checkpoint folder holds `<name>.safetensors` and `<name>.json` files, and `manifest.json` with the SHA-256
of each.
Knows tensors and dicts, no model class. Not handled: tensors sharded over files, remote file systems without
rename.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from support.errors import UserError, first_line
from support.files import parse_json, read_bytes

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds, by file name without its ending."""

    tensors: dict[str, dict[str, Tensor]]
    records: dict[str, dict]


def save_checkpoint(folder: str | Path, checkpoint: Checkpoint) -> None:
    """Write the folder, replacing an older one only when every byte of the new one is on disk.

    A crash at any moment leaves the old folder or the new one whole, under `folder` or (between two renames)
    `<folder>.old`.
    Raises UserError if it cannot be written; the older one is then untouched.
    """
    folder = Path(folder).absolute()
    if folder.is_file():
        raise UserError(f"{folder}: a file stands where the checkpoint's folder should be")
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    try:
        if old.exists() and not folder.exists():
            os.replace(old, folder)  # an earlier crash fell between the renames
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        digests = {}
        for name, tensors in checkpoint.tensors.items():
            file = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            digests[f"{name}.safetensors"] = _write(new / f"{name}.safetensors", file)
        for name, record in checkpoint.records.items():
            digests[f"{name}.json"] = _write(new / f"{name}.json", json.dumps(record, indent=1).encode())
        _write(new / MANIFEST, json.dumps(digests, indent=1).encode())
        _sync_folder(new)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(new, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(
            f"{folder}: cannot write the checkpoint ({reason}); an earlier one is untouched"
        ) from None
    with contextlib.suppress(
        OSError
    ):  # the new one is in place; this only makes sure of it against a power cut
        _sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def has_checkpoint(folder: str | Path) -> bool:
    """Whether `load_checkpoint` would find anything there."""
    return os.path.isdir(folder) or os.path.isdir(f"{folder}.old")


def load_checkpoint(folder: str | Path, endings: Sequence[str] = ("json", "safetensors")) -> Checkpoint:
    """Read a folder back, or only its files with these endings, verifying every checksum before anything is
    parsed.

    Raises UserError naming the file that is missing, changed, truncated or not what it should be.
    """
    folder = Path(folder if os.path.isdir(folder) or not has_checkpoint(folder) else f"{folder}.old")
    digests = parse_json(folder / MANIFEST, read_bytes(folder / MANIFEST, "not a checkpoint folder"))
    if not digests:
        raise UserError(f"{folder / MANIFEST}: lists no files, so this is no checkpoint")
    checkpoint = Checkpoint({}, {})
    for file, digest in digests.items():
        stem, _, ending = file.rpartition(".")
        if Path(file).name != file or ending not in ("safetensors", "json"):
            raise UserError(f"{folder / MANIFEST}: lists {file!r}, which no checkpoint of this project holds")
        if ending not in endings:
            continue
        data = read_bytes(folder / file, "the checkpoint is incomplete")
        if hashlib.sha256(data).hexdigest() != digest:
            raise UserError(
                f"{folder / file}: damaged, its checksum is not the one in {MANIFEST}; use another checkpoint"
            )
        if ending == "json":
            checkpoint.records[stem] = parse_json(folder / file, data)
            continue
        try:
            checkpoint.tensors[stem] = safetensors.torch.load(data)
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            raise UserError(f"{folder / file}: not a safetensors file ({first_line(error)})") from None
    return checkpoint


def _write(path: Path, content: bytes | dict[str, Tensor]) -> str:
    """Write and fsync bytes, or tensors as safetensors; returns the file's SHA-256."""
    if isinstance(content, dict):
        safetensors.torch.save_file(
            content, path, metadata={"format": "pt"}
        )  # making the bytes first took most of the time
    else:
        path.write_bytes(content)
    with open(path, "rb+") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest


def _sync_folder(folder: Path) -> None:
    """Make renames and new names in a folder durable, where the system lets folders be opened (Windows
    doesn't)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# ----------------------------------------------------------------------------------- training state
