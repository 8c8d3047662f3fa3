"""Checkpoint folders: tensors (safetensors) and records (JSON). No pickle.

A folder holds `<name>.safetensors` and `<name>.json` files, and `manifest.json` with the SHA-256 of each;
texts for people may lie beside them. It is written completely or not at all, and every checksum is verified
before a file is parsed. This module knows tensors and dicts, no model class.
Not handled: tensors split over files, remote file systems without rename.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from support.errors import UserError, one_line
from support.files import parse_json, read_bytes

MANIFEST = "manifest.json"
ENDINGS = ("json", "safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint folder, by file name without its ending.

    texts: for people, by whole file name. They are written and never read, so they may be edited.
    """

    tensors: dict[str, dict[str, Tensor]]
    records: dict[str, dict[str, Any]]
    texts: dict[str, str] = field(default_factory=dict)


def save_checkpoint(folder: str | Path, checkpoint: Checkpoint) -> None:
    """Write the folder. It replaces an older one only when every byte of the new one is on disk.

    A crash at any moment leaves the old or the new folder complete. Its name is `folder` or, between two
    renames, `<folder>.old`. Raises UserError if it cannot be written; the older folder is then unchanged.
    """
    folder = Path(folder).absolute()
    if folder.is_file():
        raise UserError(f"{folder}: a file stands where the checkpoint's folder should be")
    new = folder.with_name(folder.name + ".new")
    old = folder.with_name(folder.name + ".old")
    try:
        if old.exists() and not folder.exists():
            os.replace(old, folder)  # an earlier crash came between the two renames
        shutil.rmtree(new, ignore_errors=True)
        _write_folder(new, checkpoint)
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
        reason = getattr(error, "strerror", None) or one_line(error)
        message = f"{folder}: cannot write the checkpoint ({reason}); an earlier one is untouched"
        raise UserError(message) from None
    # The new folder is in place. This protects the rename against a power cut and may fail.
    with contextlib.suppress(OSError):
        _sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _write_folder(folder: Path, checkpoint: Checkpoint) -> None:
    """Make the folder with all files and the manifest, and wait until they are on disk."""
    folder.mkdir(parents=True)
    digests = {}
    for name, tensors in checkpoint.tensors.items():
        file = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        digests[f"{name}.safetensors"] = _write(folder / f"{name}.safetensors", file)
    for name, record in checkpoint.records.items():
        digests[f"{name}.json"] = _write(folder / f"{name}.json", json.dumps(record, indent=1).encode())
    for name, text in checkpoint.texts.items():
        _write(folder / name, text.encode())
    _write(folder / MANIFEST, json.dumps(digests, indent=1).encode())
    _sync_folder(folder)


def has_checkpoint(folder: str | Path) -> bool:
    """Whether `load_checkpoint` finds a folder there."""
    return os.path.isdir(folder) or os.path.isdir(f"{folder}.old")


def load_checkpoint(folder: str | Path, endings: Sequence[str] = ENDINGS) -> Checkpoint:
    """Read a folder, or only its files with the given endings. Checksums are verified before parsing.

    Raises UserError, which names the file, if a file is missing, changed, truncated or of another kind.
    """
    folder = Path(folder if os.path.isdir(folder) or not has_checkpoint(folder) else f"{folder}.old")
    digests = parse_json(folder / MANIFEST, read_bytes(folder / MANIFEST, "not a checkpoint folder"))
    if not digests:
        raise UserError(f"{folder / MANIFEST}: lists no files, so this is no checkpoint")
    checkpoint = Checkpoint({}, {})
    for file, digest in digests.items():
        stem, _, ending = file.rpartition(".")
        if Path(file).name != file or ending not in ENDINGS:
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
            raise UserError(f"{folder / file}: not a safetensors file ({one_line(error)})") from None
    return checkpoint


def _write(path: Path, content: bytes | dict[str, Tensor]) -> str:
    """Write bytes, or tensors as safetensors, and wait until they are on disk. Returns the file's SHA-256."""
    if isinstance(content, dict):
        # `safetensors.torch.save` would copy everything to bytes first, which took most of the time.
        safetensors.torch.save_file(content, path, metadata={"format": "pt"})
    else:
        path.write_bytes(content)
    with open(path, "rb+") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest


def _sync_folder(folder: Path) -> None:
    """Wait until new and renamed names in a folder are on disk. Does nothing where folders cannot be opened
    (Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
