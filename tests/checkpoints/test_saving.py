"""Checkpoint folders: what is saved comes back, a crash leaves one whole, damage is refused in one line."""

import hashlib
import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import checkpoint
from checkpoint import MANIFEST, Checkpoint, load_checkpoint, save_checkpoint
from support.errors import UserError

OLD = Checkpoint(
    {"model": {"w": torch.arange(6.0)}, "heads": {"b": torch.tensor(1.5)}},
    {"run": {"step": 1}, "config": {"a": [1, "ü"]}},
)
NEW = Checkpoint(
    {"model": {"w": -torch.arange(6.0)}, "heads": {"b": torch.tensor(2.5)}},
    {"run": {"step": 2}, "config": {"a": None}},
)
FILES = ["config.json", "heads.safetensors", MANIFEST, "model.safetensors", "run.json"]
TENSORS = {
    "fp32": torch.tensor([[1.5, -0.0, 0.0], [float("nan"), float("-inf"), 1e-45]]),
    "bf16": torch.tensor([1.5, 3e38], dtype=torch.bfloat16),
    "int64": torch.tensor([2**62, -1]),
    "uint8": torch.get_rng_state(),
    "0-dim": torch.tensor(3.25),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "broadcast": torch.tensor([1.0]).expand(4),
    "parameter": torch.nn.Parameter(torch.ones(2)),
}


def bits(tensor: torch.Tensor) -> tuple:
    """All there is to a tensor: type, shape, and its bytes (so that NaN equals NaN, and 0 is not -0)."""
    return tensor.dtype, tensor.shape, bytes(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())


def same(a: Checkpoint, b: Checkpoint) -> bool:
    packed = [
        {name: {key: bits(tensor) for key, tensor in group.items()} for name, group in c.tensors.items()}
        for c in (a, b)
    ]
    return packed[0] == packed[1] and a.records == b.records


def test_tensors_and_records_come_back_and_replace_the_old(tmp_path):
    """Guards against a resumed run that differs because a type was rounded, strides were read as values, a
    scalar became a vector, or a record was rounded or reordered; against files of an older checkpoint read as
    part of the new one, and folders left behind."""
    record = {"b": [1, 2.5, None, True, "ü\n\u2028🎬"], "a": {"seed": 2**63 - 1, "third": 1 / 3}, "": {}}
    content = Checkpoint({"model": TENSORS, "v1.2": {}}, {"run": record}, {"README.md": "ü"})
    folder = tmp_path / "deep" / "er" / "c"
    save_checkpoint(folder, OLD)
    save_checkpoint(folder, content)
    loaded = load_checkpoint(folder)
    assert same(loaded, content) and list(loaded.records["run"]) == ["b", "a", ""]
    names = [MANIFEST, "README.md", "model.safetensors", "run.json", "v1.2.safetensors"]
    assert sorted(os.listdir(folder)) == sorted(names) and os.listdir(folder.parent) == ["c"]


FILE_CALLS = [(checkpoint, "_sync_file"), (os, "fsync"), (os, "replace"), (shutil, "rmtree")]


def save_with_fault(folder: Path, monkeypatch, n: int, error: BaseException, previous: bool) -> bool:
    """Save NEW with `error` raised in the n-th file call, a deletion half done. False if there are fewer."""
    calls = []

    def faulty(real):
        def call(*args, **kwargs):
            calls.append(real)
            if len(calls) != n:
                return real(*args, **kwargs)
            if real is rmtree and os.path.isdir(args[0]):
                next(Path(args[0]).iterdir()).unlink()
            if real is rmtree and isinstance(error, OSError):
                return None  # as with ignore_errors
            raise error

        return call

    rmtree = shutil.rmtree
    with monkeypatch.context() as patch:
        for module, name in FILE_CALLS:
            patch.setattr(module, name, faulty(getattr(module, name)))
        try:
            save_checkpoint(folder, NEW, previous)
        except (UserError, KeyboardInterrupt) as raised:
            assert isinstance(raised, UserError) == isinstance(error, OSError)
    return len(calls) >= n


@pytest.mark.parametrize(
    ("error", "previous"),
    [(KeyboardInterrupt(), False), (KeyboardInterrupt(), True), (OSError(28, "No space left"), True)],
)
def test_a_crash_leaves_the_old_or_the_new_checkpoint(tmp_path, monkeypatch, error, previous):
    """Guards against a moment in which neither is whole, or `last.previous` is half deleted: one crash would
    cost a run of days. A second crash must not delete the only whole copy, which the first has renamed."""
    for n in itertools.count(1):
        folder = tmp_path / str(n) / "c"
        for _ in range(2):
            save_checkpoint(folder, OLD, previous)
        if not save_with_fault(folder, monkeypatch, n, error, previous):
            break
        assert same(load_checkpoint(folder), OLD) or same(load_checkpoint(folder), NEW), n
        save_with_fault(folder, monkeypatch, n, error, previous)
        assert same(load_checkpoint(folder), OLD) or same(load_checkpoint(folder), NEW), n
        save_checkpoint(folder, NEW, previous)  # the next save cleans up
        assert same(load_checkpoint(folder), NEW), n
        assert sorted(os.listdir(folder.parent)) == ["c", "c.previous"][: 1 + previous], n
    assert n > 10


def test_files_are_synced_before_the_rename(tmp_path, monkeypatch):
    """Guards against a rename that reaches the disk before the data: after a power cut the checkpoint would
    have its name and no content."""
    events = []
    fsync = os.fsync
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("rename"), replace(*paths)))
    save_checkpoint(tmp_path / "c", NEW)
    assert events.index("rename") >= len(FILES) + (os.name == "posix")


def refuses(folder: Path, file: str, word: str) -> None:
    with pytest.raises(UserError, match=word) as error:
        load_checkpoint(folder)
    assert str(error.value).startswith(f"{folder / file}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("file", FILES)
def test_damage_is_noticed_and_its_file_named(tmp_path, file):
    """Guards against weights that load but are not those that were saved."""
    folder = tmp_path / "c"
    save_checkpoint(folder, OLD)
    data = (folder / file).read_bytes()
    for place in range(0, len(data), 7):
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
    (folder / file).unlink()
    refuses(folder, file, "not a checkpoint folder" if file == MANIFEST else "incomplete")


@pytest.mark.parametrize("place", ["none", "file", "empty"])
def test_a_place_without_a_checkpoint_is_said(tmp_path, place):
    """Guards against a traceback for a mistyped --checkpoint or --output_dir."""
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / place, MANIFEST, "not a checkpoint folder")
    if place == "file":
        with pytest.raises(UserError, match="cannot write the checkpoint"):
            save_checkpoint(tmp_path / "file" / "c", NEW)


def test_a_pickle_is_no_checkpoint(tmp_path):
    """Guards against a stranger's checkpoint that runs code because its checksum and its name fit."""
    save_checkpoint(tmp_path / "c", OLD)
    file = tmp_path / "c" / "model.safetensors"
    torch.save({"w": torch.ones(2)}, file)
    digests = json.loads((tmp_path / "c" / MANIFEST).read_text())
    digests[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    (tmp_path / "c" / MANIFEST).write_text(json.dumps(digests))
    refuses(tmp_path / "c", file.name, "not a safetensors file")
