"""Checkpoint folders: what is saved comes back, and a crash while saving leaves one whole checkpoint."""

import os
import shutil
from pathlib import Path

import pytest
import torch

import checkpoint
from checkpoint import MANIFEST, Checkpoint, load_checkpoint, save_checkpoint
from saved_checkpoints import FILES, NEW, OLD, bits, same, saved
from support.errors import UserError

# --------------------------------------------------------------------------------------- round trip

TENSORS = {
    "fp32": torch.tensor([[1.5, -0.0, 0.0], [float("nan"), float("-inf"), 1e-45]]),
    "fp64": torch.tensor([0.1], dtype=torch.float64),
    "fp16": torch.tensor([1.5, 65504], dtype=torch.float16),
    "bf16": torch.tensor([1.5, 3e38], dtype=torch.bfloat16),
    "int64": torch.tensor([2**62, -1]),
    "uint8": torch.get_rng_state(),
    "bool": torch.tensor([True, False]),
    "0-dim": torch.tensor(3.25),
    "no elements": torch.zeros(0, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "strided": torch.arange(10)[::3],
    "broadcast": torch.tensor([1.0]).expand(4),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "dots.and ünïcode": torch.ones(1),
}


def test_tensors_and_records_come_back(tmp_path):
    """Guards against a resumed run that differs because a type was rounded, strides were read as values, a
    scalar became a vector, or a record was rounded or reordered."""
    record = {"b": [1, 2.5, None, True, "ü\n\u2028🎬"], "a": {"seed": 2**63 - 1, "third": 1 / 3}, "": {}}
    content = Checkpoint({"model": TENSORS, "v1.2": {}}, {"run": record, "model": {}})
    loaded = load_checkpoint(saved(tmp_path / "c", content))
    assert {name: bits(tensor) for name, tensor in loaded.tensors["model"].items()} == {
        name: bits(tensor) for name, tensor in TENSORS.items()
    }
    assert same(loaded, content) and list(loaded.records["run"]) == ["b", "a", ""]


def test_a_new_checkpoint_replaces_all_of_the_old(tmp_path):
    """Guards against files of an older checkpoint read as part of the new one, and folders left behind."""
    folder = saved(tmp_path / "deep" / "er" / "c")
    only = Checkpoint({}, {"run": {"step": 3}})
    save_checkpoint(folder, only)
    assert same(load_checkpoint(folder), only)
    assert sorted(os.listdir(folder)) == [MANIFEST, "run.json"] and os.listdir(folder.parent) == ["c"]


# ------------------------------------------------------------------------------------------ crashes

POINTS = {
    "write": (checkpoint, "_write"),
    "fsync": (os, "fsync"),
    "rename": (os, "replace"),
    "delete": (shutil, "rmtree"),
}


def save_with_fault(monkeypatch, point: str, n: int, error: BaseException, folder, previous=False) -> int:
    """Save NEW with `error` raised in the n-th call of a function, a deletion half done.

    Returns the number of calls."""
    module, name = POINTS[point]
    real = getattr(module, name)
    calls = []

    def faulty(*args, **kwargs):
        calls.append(args)
        if len(calls) == n:
            if point == "delete" and os.path.isdir(args[0]):
                next(Path(args[0]).iterdir()).unlink()
            raise error
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, faulty)
        if n == 0:
            save_checkpoint(folder, NEW, previous)
        else:
            with pytest.raises(UserError if isinstance(error, OSError) else type(error)):
                save_checkpoint(folder, NEW, previous)
    return len(calls)


@pytest.mark.parametrize("previous", [False, True])
@pytest.mark.parametrize("point", POINTS)
def test_a_crash_leaves_the_old_or_the_new_checkpoint(tmp_path, monkeypatch, point, previous):
    """Guards against a moment in which neither is whole, or `last.previous` is half deleted: one crash would
    cost a run of days. A second crash must not delete the only whole copy, which the first has renamed."""
    for _ in range(2):
        save_checkpoint(tmp_path / "0" / "c", OLD, previous)
    calls = save_with_fault(monkeypatch, point, 0, KeyboardInterrupt(), tmp_path / "0" / "c", previous)
    assert calls >= 2
    survivors = []
    for n in range(1, calls + 1):
        folder = tmp_path / str(n) / "c"
        for _ in range(2):
            save_checkpoint(folder, OLD, previous)
        save_with_fault(monkeypatch, point, n, KeyboardInterrupt(), folder, previous)
        survivors.append(load_checkpoint(folder).records["run"]["step"])
        assert same(load_checkpoint(folder), OLD if survivors[-1] == 1 else NEW), n
        save_with_fault(monkeypatch, point, n, KeyboardInterrupt(), folder, previous)
        assert same(load_checkpoint(folder), OLD) or same(load_checkpoint(folder), NEW), n
        if folder.with_name("c.previous").exists():
            load_checkpoint(folder.with_name("c.previous"))
        save_checkpoint(folder, NEW, previous)  # the next save cleans up
        assert same(load_checkpoint(folder), NEW), n
        assert sorted(os.listdir(folder.parent)) == ["c", "c.previous"][: 1 + previous], n
    assert survivors == sorted(survivors), "once the new one is there, the old one must not come back"


@pytest.mark.parametrize("point", ["write", "fsync", "rename"])
def test_a_full_disk_is_a_user_error_and_keeps_the_old_checkpoint(tmp_path, monkeypatch, point):
    """Guards against a traceback at the end of a run, and against a good checkpoint lost to a failed one."""
    full = OSError(28, "No space left on device")
    calls = save_with_fault(monkeypatch, point, 0, full, saved(tmp_path / "0"))
    for n in range(1, calls + 1):
        folder = saved(tmp_path / str(n) / "c")
        save_with_fault(monkeypatch, point, n, full, folder)
        # the last fsync is the parent folder's, when the new checkpoint is in its place
        assert same(load_checkpoint(folder), NEW if point == "fsync" and n == calls else OLD), n
        assert not folder.with_name("c.new").exists(), n


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    """Guards against a traceback for a mistyped --output_dir."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as error:
        save_checkpoint(tmp_path / "file" / "c", NEW)
    assert str(error.value).startswith(f"{tmp_path / 'file' / 'c'}: cannot write the checkpoint (")


def test_files_are_synced_before_the_rename(tmp_path, monkeypatch):
    """Guards against a rename that reaches the disk before the data:
    after a power cut the checkpoint would have its name and no content."""
    events = []
    fsync = os.fsync
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("rename"), replace(*paths)))
    save_checkpoint(tmp_path / "c", NEW)
    assert events.index("rename") >= len(FILES) + (os.name == "posix")
