"""Checkpoints that are damaged, hostile or none at all are refused in one line."""

import hashlib
import io
import json
import pickle
from pathlib import Path

import pytest
import torch

from checkpoint import MANIFEST, load_checkpoint
from saved_checkpoints import FILES, saved
from support.errors import UserError


def relist(folder: Path, file: str, data: bytes) -> None:
    """Write a file into the folder with its right checksum in the manifest, as an attacker would."""
    (folder / file).write_bytes(data)
    digests = json.loads((folder / MANIFEST).read_bytes())
    digests[file] = hashlib.sha256(data).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(digests))


def refuses(folder: Path, file: str, word: str | None = None) -> None:
    with pytest.raises(UserError, match=word) as error:
        load_checkpoint(folder)
    assert str(error.value).startswith(f"{folder / file}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("file", FILES)
def test_every_flipped_byte_and_every_truncation_is_noticed(tmp_path, file):
    """Guards against weights that load but are not those that were saved."""
    folder = saved(tmp_path / "c")
    data = (folder / file).read_bytes()
    for place in range(len(data)):
        flipped = data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
        for damaged in (flipped, data[:place]):
            (folder / file).write_bytes(damaged)
            if file != MANIFEST:
                refuses(folder, file, "checksum")
                continue
            try:  # it names the manifest, or a file that seems to be damaged or lost
                load_checkpoint(folder)
            except UserError:
                continue
            assert json.loads(damaged) == json.loads(data), "only white space may differ"


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(tmp_path, file):
    """Guards against a checkpoint that is used without one of its files."""
    folder = saved(tmp_path / "c")
    (folder / file).unlink()
    refuses(folder, file, "not a checkpoint folder" if file == MANIFEST else "incomplete")


@pytest.mark.parametrize("place", ["none", "file", "empty", "x" * 300, "nul\0byte"])
def test_a_place_without_a_checkpoint_is_said(tmp_path, place):
    """Guards against a traceback for a mistyped --checkpoint."""
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / place, MANIFEST, "not a checkpoint folder")


@pytest.mark.parametrize("data", [b"", b"not JSON", b"\xff\xfe", b"[" * 100_000, b"[]", b"null"])
@pytest.mark.parametrize("file", [MANIFEST, "run.json"])
def test_json_that_is_none_is_refused(tmp_path, file, data):
    """Guards against the parser's own exceptions, and against a list where the code expects a table."""
    folder = saved(tmp_path / "c")
    relist(folder, file, data) if file != MANIFEST else (folder / file).write_bytes(data)
    refuses(folder, file, "JSON")


def pickle_that_makes(folder: Path) -> bytes:
    """A pickle that calls os.mkdir(folder) when it is loaded, in the protocol that can be written by hand."""
    return f"cos\nmkdir\n(V{folder}\ntR.".encode()


def torch_file() -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(2)}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("file", ["model.safetensors", "run.json"])
def test_a_renamed_pickle_does_not_run(tmp_path, file):
    """Guards against a stranger's checkpoint that runs code because its checksum and its name fit."""
    pickle.loads(pickle_that_makes(tmp_path / "works"))
    assert (tmp_path / "works").exists(), "the attack itself must work"
    folder = saved(tmp_path / "c")
    relist(folder, file, pickle_that_makes(tmp_path / "evil"))
    refuses(folder, file, "not ")
    assert not (tmp_path / "evil").exists()


def safetensors_file(header: str, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header.encode() + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        (10**6).to_bytes(8, "little") + b"{}",  # a header longer than the file
        safetensors_file("xx", b""),
        safetensors_file('{"w":{"dtype":"F32","shape":[1000],"data_offsets":[0,4000]}}', b"\0" * 4),
        safetensors_file('{"w":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}', b"\0"),  # torch lacks F4
        torch_file(),
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path, data):
    """Guards against any exception but UserError, and allocating as much memory as a header claims."""
    folder = saved(tmp_path / "c")
    relist(folder, "model.safetensors", data)
    refuses(folder, "model.safetensors", "not a safetensors file")
