"""Checkpoints: what is saved comes back, a crash leaves one whole checkpoint, and nothing damaged or hostile
gets in."""

import hashlib
import io
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

import resume
from support import checkpoint
from support.checkpoint import MANIFEST, Checkpoint, load_checkpoint, save_checkpoint
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


def bits(tensor: torch.Tensor) -> tuple:
    """All there is to a tensor: type, shape, and its bytes (so that NaN equals NaN, and 0 is not -0)."""
    return tensor.dtype, tensor.shape, bytes(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())


def same(a: Checkpoint, b: Checkpoint) -> bool:
    packed = [
        {name: {key: bits(tensor) for key, tensor in group.items()} for name, group in c.tensors.items()}
        for c in (a, b)
    ]
    return packed[0] == packed[1] and a.records == b.records


def saved(folder: Path, content: Checkpoint = OLD) -> Path:
    save_checkpoint(folder, content)
    return folder


def relist(folder: Path, file: str, data: bytes) -> None:
    """Write a file into the folder with its right checksum in the manifest, as an attacker would."""
    (folder / file).write_bytes(data)
    digests = json.loads((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).write_text(json.dumps({**digests, file: hashlib.sha256(data).hexdigest()}))


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
    """Guards against a resumed run that differs: rounded types, strides read as values, scalars that became
    vectors."""
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
    """Guards against files of an older checkpoint read as part of the new one, and against folders left lying
    about."""
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
    """Save NEW with `error` raised before (or after) the n-th call of a function; returns the number of
    calls."""
    module, name = POINTS[point]
    real, calls = getattr(module, name), []

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
    """Guards against a moment in which neither is whole: a run of days would be lost to one power cut."""
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
    """Guards against a second save that deletes the only whole copy, which the first crash left under another
    name."""
    calls = save_with_fault(
        monkeypatch,
        point,
        0,
        KeyboardInterrupt(),
        False,
        crashed_between_renames(monkeypatch, tmp_path / "0"),
    )
    for n in range(1, calls + 1):
        folder = crashed_between_renames(monkeypatch, tmp_path / str(n))
        save_with_fault(monkeypatch, point, n, KeyboardInterrupt(), False, folder)
        survivor = load_checkpoint(folder)
        assert same(survivor, OLD) or same(survivor, NEW), n


@pytest.mark.parametrize("point", ["write", "fsync", "rename"])
def test_a_full_disk_is_a_user_error_and_keeps_the_old_checkpoint(tmp_path, monkeypatch, point):
    """Guards against a traceback at the end of a run, and against the last good checkpoint lost to the next
    one."""
    full = OSError(28, "No space left on device")
    calls = save_with_fault(monkeypatch, point, 0, full, False, saved(tmp_path / "0"))
    for n in range(1, calls + 1):
        folder = saved(tmp_path / str(n) / "c")
        is_last_fsync = (
            point == "fsync" and n == calls
        )  # of the parent folder, when the new one is in its place: no harm
        save_with_fault(monkeypatch, point, n, full, False, folder, tolerated=is_last_fsync)
        assert same(load_checkpoint(folder), NEW if is_last_fsync else OLD), n
        assert not folder.with_name("c.new").exists(), n


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    """Guards against a traceback for a mistyped --output_dir."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as error:
        save_checkpoint(tmp_path / "file" / "c", NEW)
    assert str(error.value).startswith(f"{tmp_path / 'file' / 'c'}: cannot write the checkpoint (")


def test_files_are_synced_before_the_rename(tmp_path, monkeypatch):
    """Guards against a rename that reaches the disk before the data: whole by name, empty after a power
    cut."""
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("rename"), replace(*paths)))
    save_checkpoint(tmp_path / "c", NEW)
    assert events.index("rename") >= len(FILES) + (os.name == "posix")
    assert events[-1] == ("fsync" if os.name == "posix" else "rename")


# ----------------------------------------------------------------------------------- training state

NOT_THIS_STATE = {
    "a moment is missing": lambda tensors, record: tensors["optimizer"].pop("0.exp_avg"),
    "a moment of one number": lambda tensors, record: tensors["optimizer"].update(
        {"0.exp_avg": torch.ones(1)}
    ),
    "before the first step": lambda tensors, record: tensors["optimizer"].update({"0.step": torch.tensor(0)}),
    "another parameter": lambda tensors, record: tensors["optimizer"].update({"9.step": torch.tensor(1)}),
    "another weight": lambda tensors, record: tensors["model"].update({"weight": torch.ones(1, 1)}),
    "beyond the generator's numbers": lambda tensors, record: record["numpy"].__setitem__(2, 10_000),
    "too few of the generator's numbers": lambda tensors, record: record["numpy"].__setitem__(1, [1, 2]),
}


@pytest.mark.parametrize("change", NOT_THIS_STATE.values(), ids=NOT_THIS_STATE)
def test_a_state_that_does_not_fit_is_not_taken(change):
    """Guards against moments spread over a weight, a step that divides by zero, and numpy reading memory
    beyond its generator."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    cpu = torch.device("cpu")
    tensors, record = resume.training_state({"model": model}, optimizer, cpu)
    record = json.loads(json.dumps(record))
    resume.restore_training_state(
        tensors, record, {"model": model}, torch.optim.AdamW(model.parameters()), cpu
    )
    tensors["model"] = dict(tensors["model"])
    change(tensors, record)
    with pytest.raises((LookupError, RuntimeError, ValueError)):
        resume.restore_training_state(
            tensors, record, {"model": model}, torch.optim.AdamW(model.parameters()), cpu
        )


# ------------------------------------------------------------------------------------------- damage


def refuses(folder: Path, file: str, word: str | None = None) -> None:
    with pytest.raises(UserError, match=word) as error:
        load_checkpoint(folder)
    assert str(error.value).startswith(f"{folder / file}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("file", [file for file in FILES if file != MANIFEST])
def test_every_flipped_byte_and_every_truncation_is_noticed(tmp_path, file):
    """Guards against weights that load, but are not those that were saved."""
    folder = saved(tmp_path / "c")
    data = (folder / file).read_bytes()
    for place in range(len(data)):
        (folder / file).write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        refuses(folder, file, "checksum")
        (folder / file).write_bytes(data[:place])
        refuses(folder, file, "checksum")
    (folder / file).write_bytes(data + b"\0")
    refuses(folder, file, "checksum")


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
    """Guards against an exception of the parser's, or a list where the code expects names."""
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
    digests = json.loads((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).write_text(json.dumps({**digests, "run.json": digest}))
    refuses(folder, "run.json", "checksum")


@pytest.mark.parametrize(
    "file",
    ["../evil.json", "../c/run.json", "evil.bin", "evil.pt", "evil", "sub/evil.json", "./run.json", "..", ""],
)
def test_a_manifest_that_lists_other_files_is_refused(tmp_path, file):
    """Guards against a checkpoint from a stranger that reads files outside its folder, or a format that runs
    code."""
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
    """Guards against a checkpoint from a stranger that runs code: a fitting checksum and name must not help
    it."""
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
    """Guards against any other exception than UserError, and against memory asked for as a header says."""
    folder = saved(tmp_path / "c")
    relist(folder, "model.safetensors", data)
    refuses(folder, "model.safetensors", "not a safetensors file")


def test_a_failed_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    """Guards against a message that says the earlier checkpoint is untouched while it lies under another
    name."""
    folder, real, calls = saved(tmp_path / "last"), os.replace, []

    def second_fails(*paths):
        calls.append(paths)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        return real(*paths)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(UserError, match="Input/output error"):
        save_checkpoint(folder, OLD)
    assert same(load_checkpoint(folder), OLD) and sorted(path.name for path in tmp_path.iterdir()) == ["last"]


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
