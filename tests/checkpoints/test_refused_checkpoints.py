"""Checkpoints that are damaged, hostile or none at all are refused in one line."""

import hashlib
import io
import json
import pickle
from pathlib import Path

import pytest
import torch

from saved_checkpoints import FILES, OLD, saved
from support.checkpoint import MANIFEST, load_checkpoint, save_checkpoint
from support.errors import UserError


def relist(folder: Path, file: str, data: bytes) -> None:
    """Write a file into the folder with its right checksum in the manifest, as an attacker would."""
    (folder / file).write_bytes(data)
    list_files(folder, {file: hashlib.sha256(data).hexdigest()})


def list_files(folder: Path, changed: dict) -> None:
    """Change checksums in the manifest, without one of its own, as older versions wrote it."""
    digests = json.loads((folder / MANIFEST).read_bytes())
    del digests[MANIFEST]
    (folder / MANIFEST).write_text(json.dumps(digests | changed))


def refuses(folder: Path, file: str, word: str | None = None) -> None:
    with pytest.raises(UserError, match=word) as error:
        load_checkpoint(folder)
    assert str(error.value).startswith(f"{folder / file}: ") and "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("file", [file for file in FILES if file != MANIFEST])
def test_every_flipped_byte_and_every_truncation_is_noticed(tmp_path, file):
    """Guards against weights that load but are not those that were saved."""
    folder = saved(tmp_path / "c")
    data = (folder / file).read_bytes()
    for place in range(len(data)):
        (folder / file).write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        refuses(folder, file, "checksum")
        (folder / file).write_bytes(data[:place])
        refuses(folder, file, "checksum")
    (folder / file).write_bytes(data + b"\0")
    refuses(folder, file, "checksum")


def test_every_flipped_byte_of_the_manifest_blames_the_manifest(tmp_path):
    """Guards against a user who throws away good weights because the list of checksums was hit."""
    folder = saved(tmp_path / "c")
    data = (folder / MANIFEST).read_bytes()
    for place in range(len(data)):
        harmed = data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
        (folder / MANIFEST).write_bytes(harmed)
        if b"".join(harmed.split()) != b"".join(data.split()):  # another kind of space is no damage
            refuses(folder, MANIFEST)
        (folder / MANIFEST).write_bytes(data[:place])
        refuses(folder, MANIFEST)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(tmp_path, file):
    """Guards against half a checkpoint taken for a smaller one."""
    folder = saved(tmp_path / "c")
    (folder / file).unlink()
    refuses(folder, file, "not a checkpoint folder" if file == MANIFEST else "incomplete")
    (folder / file).mkdir()
    refuses(folder, file)


@pytest.mark.parametrize("place", ["nowhere", "file", "empty"])
def test_what_is_no_checkpoint_is_refused(tmp_path, place):
    """Guards against a traceback for a mistyped --checkpoint."""
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / place, MANIFEST, "not a checkpoint folder")


@pytest.mark.parametrize(
    "data", [b"", b"{", b"not JSON", b"\xff\xfe", b"[" * 100_000, b"[]", b'"run.json"', b"1", b"null"]
)
@pytest.mark.parametrize("file", [MANIFEST, "run.json"])
def test_json_that_is_none_is_refused(tmp_path, file, data):
    """Guards against the parser's own exceptions, and against a list where the code expects a table."""
    folder = saved(tmp_path / "c")
    if file == MANIFEST:
        (folder / file).write_bytes(data)
    else:
        relist(folder, file, data)
    refuses(folder, file, "JSON")


@pytest.mark.parametrize("digest", ["", "0" * 64, None, 1, ["x"]])
def test_a_manifest_with_a_wrong_checksum_is_refused(tmp_path, digest):
    """Guards against a checksum that is compared only where it looks like one."""
    folder = saved(tmp_path / "c")
    list_files(folder, {"run.json": digest})
    refuses(folder, "run.json", "checksum")


def test_odd_places(tmp_path):
    """Guards against tracebacks for names that no file can have, and against a file replaced by a folder."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="a file stands"):
        save_checkpoint(tmp_path / "file", OLD)
    for name in ("x" * 300, "nul\0byte"):
        with pytest.raises(UserError):
            load_checkpoint(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="lists no files"):
        load_checkpoint(tmp_path / "empty")


# ---------------------------------------------------------------------------------------- strangers


@pytest.mark.parametrize(
    "file",
    ["../evil.json", "../c/run.json", "evil.bin", "evil.pt", "evil", "sub/evil.json", "./run.json", "..", ""],
)
def test_a_manifest_that_lists_other_files_is_refused(tmp_path, file):
    """Guards against a stranger's checkpoint that reads files outside its folder,
    or one in a format that can run code."""
    folder = saved(tmp_path / "c")
    (folder / "sub").mkdir()
    if not (folder / file).is_dir():
        (folder / file).write_bytes(b"{}")  # there, and with the right checksum
    (folder / MANIFEST).write_text(json.dumps({file: hashlib.sha256(b"{}").hexdigest()}))
    refuses(folder, MANIFEST, "lists")


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


NOT_SAFETENSORS = {
    "empty": b"",
    "short": b"\x08\0\0",
    "huge header": b"\xff" * 8 + b"{}",
    "long header": (10**6).to_bytes(8, "little") + b"{}",
    "header that is no JSON": safetensors_file("xx", b""),
    "less data than listed": safetensors_file(
        '{"w":{"dtype":"F32","shape":[1000],"data_offsets":[0,4000]}}', b"\0" * 4
    ),
    "more data than listed": safetensors_file(
        '{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 8
    ),
    "unknown type": safetensors_file('{"w":{"dtype":"X32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
    "type torch lacks": safetensors_file('{"w":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}', b"\0"),
    "torch.save": torch_file(),
}


@pytest.mark.parametrize("data", NOT_SAFETENSORS.values(), ids=NOT_SAFETENSORS)
def test_what_is_no_safetensors_file_is_refused(tmp_path, data):
    """Guards against any exception but UserError, and allocating as much memory as a header claims."""
    folder = saved(tmp_path / "c")
    relist(folder, "model.safetensors", data)
    refuses(folder, "model.safetensors", "not a safetensors file")
