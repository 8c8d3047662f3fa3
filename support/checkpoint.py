"""Checkpoint folders: tensors (safetensors) and records (JSON). No pickle.

A folder holds `<name>.safetensors` and `<name>.json` files, and `manifest.json` with the SHA-256 of each and
its own; texts for people may lie beside them. It is written completely or not at all, and every checksum is
verified before a file is parsed. This module knows tensors and dicts, no model class.
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
from support.files import parse_json, read_bytes, sync_folder

MANIFEST = "manifest.json"
ENDINGS = ("json", "safetensors")
PREVIOUS = ".previous"  # ending of the folder that holds the checkpoint before the last one, where it is kept
DISCARDED = ".discarded"  # of a folder that is being deleted


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint folder, by file name without its ending.

    texts: for people, by whole file name. They are written and never read, so they may be edited.
    """

    tensors: dict[str, dict[str, Tensor]]
    records: dict[str, dict[str, Any]]
    texts: dict[str, str] = field(default_factory=dict)


def save_checkpoint(folder: str | Path, checkpoint: Checkpoint, keep_previous: bool = False) -> None:
    """Write the folder. It replaces an older one only when every byte of the new one is on disk.

    A crash at any moment leaves the old or the new folder complete. Its name is `folder` or, between two
    renames, `<folder>.old`. With `keep_previous` the old folder stays as `<folder>.previous`, and is that
    name's between the renames, too; a `<folder>.previous` that is there is complete. Raises UserError if it
    cannot be written; the older folder is then unchanged.
    """
    folder = Path(folder).absolute()
    if folder.is_file():
        raise UserError(f"{folder}: a file stands where the checkpoint's folder should be")
    new = folder.with_name(folder.name + ".new")
    old = folder.with_name(folder.name + (PREVIOUS if keep_previous else ".old"))
    discarded = folder.with_name(folder.name + DISCARDED)
    try:
        if old.exists() and not folder.exists():
            os.replace(old, folder)  # an earlier crash came between the two renames
        shutil.rmtree(new, ignore_errors=True)
        _write_folder(new, checkpoint)
        shutil.rmtree(discarded, ignore_errors=True)
        if old.exists():
            os.replace(old, discarded)  # at once: a crash while it is deleted must not leave half of it
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(new, folder)
        except OSError:
            for before, after in ((old, folder), (discarded, old)):
                if before.exists():
                    os.replace(before, after)
            raise
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        reason = getattr(error, "strerror", None) or one_line(error)
        message = f"{folder}: cannot write the checkpoint ({reason}); an earlier one is untouched"
        raise UserError(message) from None
    # The new folder is in place. This protects the rename against a power cut and may fail.
    with contextlib.suppress(OSError):
        sync_folder(folder.parent)
    shutil.rmtree(discarded, ignore_errors=True)
    if not keep_previous:
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
    _write(folder / MANIFEST, json.dumps(digests | {MANIFEST: _digest_of(digests)}, indent=1).encode())
    sync_folder(folder)


def _digest_of(digests: dict[str, Any]) -> str:
    """SHA-256 of the manifest's own content."""
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def place_of(folder: str | Path) -> Path:
    """The folder, or the one that a crash between two renames has left in its place."""
    names = [Path(folder), *(Path(f"{folder}{ending}") for ending in (".old", PREVIOUS))]
    return next((name for name in names if os.path.isdir(name)), Path(folder))


def has_checkpoint(folder: str | Path) -> bool:
    """Whether `load_checkpoint` finds a folder there."""
    return os.path.isdir(place_of(folder))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The SHA-256 of each file of a checkpoint. Raises UserError for a manifest that is damaged, or none."""
    path = folder / MANIFEST
    digests = parse_json(path, read_bytes(path, "not a checkpoint folder"))
    own = digests.pop(MANIFEST, None)  # checkpoints of older versions have none
    if own is not None and own != _digest_of(digests):
        raise UserError(
            f"{path}: damaged, its content is not what its own checksum says; use another checkpoint"
        )
    if not digests:
        raise UserError(f"{path}: lists no files, so this is no checkpoint")
    for file in digests:
        if Path(file).name != file or not file.endswith((".safetensors", ".json")):
            raise UserError(f"{path}: lists {file!r}, which no checkpoint of this project holds")
        if own is None and not os.path.lexists(folder / file):
            raise UserError(
                f"{path}: lists {file!r}, which is not there: the checkpoint is incomplete or damaged"
            )
    return digests


def _verified(folder: Path, file: str, digest: Any) -> bytes:
    """The content of a checkpoint's file. Raises UserError if it is missing or changed."""
    data = read_bytes(folder / file, "the checkpoint is incomplete")
    if hashlib.sha256(data).hexdigest() != digest:
        raise UserError(
            f"{folder / file}: damaged, its checksum is not the one in {MANIFEST}; use another checkpoint"
        )
    return data


def verify_checkpoint(folder: str | Path) -> None:
    """Check every file of a folder. Raises UserError, which names the file that is missing or damaged."""
    place = place_of(folder)
    for file, digest in read_manifest(place).items():
        _verified(place, file, digest)


def load_checkpoint(folder: str | Path, endings: Sequence[str] = ENDINGS) -> Checkpoint:
    """Read a folder, or only its files with the given endings. Checksums are verified before parsing.

    Raises UserError, which names the file, if a file is missing, changed, truncated or of another kind.
    """
    folder = place_of(folder)
    checkpoint = Checkpoint({}, {})
    for file, digest in read_manifest(folder).items():
        stem, _, ending = file.rpartition(".")
        if ending not in endings:
            continue
        data = _verified(folder, file, digest)
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
