"""Checkpoints: what is saved comes back, and a crash while saving leaves one whole checkpoint."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from saved_checkpoints import FILES, NEW, OLD, bits, same, saved
from support import checkpoint
from support.checkpoint import MANIFEST, Checkpoint, load_checkpoint, save_checkpoint
from support.errors import UserError

# --------------------------------------------------------------------------------------- round trip

TENSORS = {
    "fp32": torch.tensor([[1.5, -0.0, 0.0], [float("nan"), float("-inf"), 1e-45]]),
    "fp64": torch.tensor([0.1], dtype=torch.float64),
    "fp16": torch.tensor([1.5, 65504], dtype=torch.float16),
    "bf16": torch.tensor([1.5, 3e38], dtype=torch.bfloat16),
    "int64": torch.tensor([2**62, -1]),
    "int32": torch.tensor([7], dtype=torch.int32),
    "uint8": torch.get_rng_state(),
    "bool": torch.tensor([True, False]),
    "0-dim": torch.tensor(3.25),
    "0-dim int": torch.tensor(41),
    "no elements": torch.zeros(0, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "strided": torch.arange(10)[::3],
    "broadcast": torch.tensor([1.0]).expand(4),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "dots.and ünïcode": torch.ones(1),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_come_back_bit_equal(tmp_path, name):
    """Guards against a resumed run that differs because a type was rounded,
    strides were read as values, or a scalar became a vector."""
    loaded = load_checkpoint(saved(tmp_path / "c", Checkpoint({"state": {name: TENSORS[name]}}, {})))
    assert bits(loaded.tensors["state"][name]) == bits(TENSORS[name]) and loaded.records == {}
    assert not loaded.tensors["state"][name].requires_grad


def test_records_and_names_come_back(tmp_path):
    """Guards against records rounded, reordered or confused with each other."""
    record = {
        "b": [1, 2.5, None, True, "ü\n\u2028🎬"],
        "a": {"seed": 2**63 - 1, "lr": 1e-4, "third": 1 / 3},
        "": {},
    }
    content = Checkpoint(
        {"model": TENSORS, "teacher.ema": {"w": torch.ones(2)}, "empty": {}},
        {"run": record, "model": {}, "v1.2": {"x": 1}},
    )
    loaded = load_checkpoint(saved(tmp_path / "c", content))
    assert same(loaded, content) and list(loaded.records["run"]) == ["b", "a", ""]


def test_a_new_checkpoint_replaces_all_of_the_old(tmp_path):
    """Guards against files of an older checkpoint read as part of the new one,
    and against folders left behind."""
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


def save_with_fault(
    monkeypatch, point: str, n: int, error: BaseException, after: bool, folder: Path, tolerated: bool = False
) -> int:
    """Save NEW with `error` raised before (or after) the n-th call of a function.

    Returns the number of calls."""
    module, name = POINTS[point]
    real = getattr(module, name)
    calls = []

    def faulty(*args, **kwargs):
        calls.append(args)
        if len(calls) == n and not after:
            raise error
        result = real(*args, **kwargs)
        if len(calls) == n:
            raise error
        return result

    with monkeypatch.context() as patch:
        patch.setattr(module, name, faulty)
        if n == 0 or tolerated:
            save_checkpoint(folder, NEW)
        else:
            with pytest.raises(UserError if isinstance(error, OSError) else type(error)):
                save_checkpoint(folder, NEW)
    return len(calls)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("point", POINTS)
def test_a_crash_leaves_the_old_or_the_new_checkpoint(tmp_path, monkeypatch, point, after):
    """Guards against a moment in which neither is whole, when one power cut costs a run of days."""
    calls = save_with_fault(monkeypatch, point, 0, KeyboardInterrupt(), after, saved(tmp_path / "0"))
    assert calls >= 2
    survivors = []
    for n in range(1, calls + 1):
        folder = saved(tmp_path / str(n) / "c")
        save_with_fault(monkeypatch, point, n, KeyboardInterrupt(), after, folder)
        survivor = load_checkpoint(folder)
        survivors.append(survivor.records["run"]["step"])
        assert same(survivor, OLD if survivors[-1] == 1 else NEW), n
        save_checkpoint(folder, NEW)  # the next save cleans up
        assert same(load_checkpoint(folder), NEW) and os.listdir(folder.parent) == ["c"], n
    assert survivors == sorted(survivors), "once the new one is there, the old one must not come back"


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_in_the_first_save_leaves_none_or_all(tmp_path, monkeypatch, point):
    """Guards against half a checkpoint where there was none."""
    calls = save_with_fault(monkeypatch, point, 0, KeyboardInterrupt(), False, tmp_path / "0")
    for n in range(1, calls + 1):
        folder = tmp_path / str(n)
        save_with_fault(monkeypatch, point, n, KeyboardInterrupt(), False, folder)
        if folder.exists():
            assert same(load_checkpoint(folder), NEW), n
        else:
            with pytest.raises(UserError, match="not a checkpoint folder"):
                load_checkpoint(folder)


def crashed_between_renames(monkeypatch, folder: Path) -> Path:
    save_with_fault(monkeypatch, "rename", 2, KeyboardInterrupt(), False, saved(folder))
    assert not folder.exists() and same(load_checkpoint(folder), OLD)
    return folder


@pytest.mark.parametrize("point", POINTS)
def test_two_crashes_in_a_row(tmp_path, monkeypatch, point):
    """Guards against a second save that deletes the only whole copy,
    which the first crash left under another name."""
    folder = crashed_between_renames(monkeypatch, tmp_path / "0")
    calls = save_with_fault(monkeypatch, point, 0, KeyboardInterrupt(), False, folder)
    for n in range(1, calls + 1):
        folder = crashed_between_renames(monkeypatch, tmp_path / str(n))
        save_with_fault(monkeypatch, point, n, KeyboardInterrupt(), False, folder)
        survivor = load_checkpoint(folder)
        assert same(survivor, OLD) or same(survivor, NEW), n


def test_a_crash_while_the_oldest_is_deleted_leaves_two_whole_checkpoints(tmp_path, monkeypatch):
    """Guards against a half-deleted `last.previous`, to which a run would fall back from a damaged `last`.
    A chain of kills found it: the older one lost four of its files, and then a byte of the newer one flipped.
    """
    folder = tmp_path / "last"
    for content in (OLD, OLD):
        save_checkpoint(folder, content, keep_previous=True)
    delete = shutil.rmtree

    def crash(path, **settings):
        if Path(path).exists():
            next(Path(path).iterdir()).unlink()
            raise KeyboardInterrupt
        delete(path, **settings)

    monkeypatch.setattr(shutil, "rmtree", crash)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(folder, NEW, keep_previous=True)
    monkeypatch.undo()
    assert same(load_checkpoint(folder), NEW)
    assert same(load_checkpoint(tmp_path / "last.previous"), OLD)
    save_checkpoint(folder, NEW, keep_previous=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "last.previous"]


@pytest.mark.parametrize("point", ["write", "fsync", "rename"])
def test_a_full_disk_is_a_user_error_and_keeps_the_old_checkpoint(tmp_path, monkeypatch, point):
    """Guards against a traceback at the end of a run, and against a good checkpoint lost to a failed one."""
    full = OSError(28, "No space left on device")
    calls = save_with_fault(monkeypatch, point, 0, full, False, saved(tmp_path / "0"))
    for n in range(1, calls + 1):
        folder = saved(tmp_path / str(n) / "c")
        # The last fsync is the parent folder's, when the new checkpoint is in its place: no harm.
        is_last_fsync = point == "fsync" and n == calls
        save_with_fault(monkeypatch, point, n, full, False, folder, tolerated=is_last_fsync)
        assert same(load_checkpoint(folder), NEW if is_last_fsync else OLD), n
        assert not folder.with_name("c.new").exists(), n


def test_a_failed_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    """Guards against an earlier checkpoint that is said to be untouched but lies under another name."""
    folder = saved(tmp_path / "last")
    real = os.replace
    calls = []

    def second_fails(*paths):
        calls.append(paths)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        return real(*paths)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(UserError, match="Input/output error"):
        save_checkpoint(folder, OLD)
    assert same(load_checkpoint(folder), OLD) and sorted(path.name for path in tmp_path.iterdir()) == ["last"]


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
    assert events[-1] == ("fsync" if os.name == "posix" else "rename")
