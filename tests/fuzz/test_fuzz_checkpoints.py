"""Any saved model is used, or refused in one line; hypothesis makes up the damage."""

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import safetensors.torch
import torch
from hypothesis import strategies as st

from checkpoint import MANIFEST
from fuzzing import assert_said_in_one_line, call, fuzz, sizes

GARBAGE = [None, True, -1, 0, 10**30, float("nan"), "", "x", "\ud800", [], {}, ["sst"], {"a": 1}]
TENSOR_GARBAGE = [
    lambda tensor: tensor.to(torch.int8),
    lambda tensor: tensor.to(torch.float32) * float("nan"),
    lambda tensor: tensor[None],
    lambda tensor: tensor.flatten()[:0],
]


def with_garbage(draw, value):
    """A copy of the JSON value, in which one part anywhere inside is replaced or deleted."""
    if not isinstance(value, (dict, list)) or not value or draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from(GARBAGE))
    copy = value.copy()
    key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    if draw(st.integers(0, 3)):
        copy[key] = with_garbage(draw, value[key])
    else:
        del copy[key]
    return copy


def with_other_tensors(draw, tensors: dict) -> dict:
    """The tensors with one of them removed, renamed or turned into something else."""
    name = draw(st.sampled_from(sorted(tensors)))
    tensors = dict(tensors)
    tensor = tensors.pop(name)
    kind = draw(st.sampled_from(["removed", "renamed", "changed", "changed"]))
    if kind == "renamed":
        tensors["other"] = tensor
    if kind == "changed":
        tensors[name] = draw(st.sampled_from(TENSOR_GARBAGE))(tensor)
    return tensors


def spoil(draw, folder: Path) -> bool:
    """Damage the checkpoint folder, and mostly give the damaged file a right checksum, as if saved that way.

    Returns whether the checksum is wrong.
    """
    digests = json.loads((folder / MANIFEST).read_text())
    file = draw(st.sampled_from(sorted(digests)))
    data = (folder / file).read_bytes()
    if draw(st.integers(0, 4)) == 0:
        place = draw(st.integers(0, len(data) - 1))
        middle = draw(st.binary(max_size=4))
        new = data[:place] + middle + data[place + draw(st.sampled_from([0, 1, len(data)])) :]
    elif file.endswith(".json"):
        new = json.dumps(with_garbage(draw, json.loads(data))).encode()
    else:
        new = safetensors.torch.save(with_other_tensors(draw, safetensors.torch.load(data)))
    (folder / file).write_bytes(new)
    if draw(st.integers(0, 4)) == 0:
        return new != data
    (folder / MANIFEST).write_text(json.dumps(digests | {file: hashlib.sha256(new).hexdigest()}))
    return False


@sizes("checkpoints")
def test_any_model_is_used_or_refused(count, workshop, tmp_path, offline):
    """Guards against a saved model that ends in a traceback, or is used though damaged."""
    best = tmp_path / "run" / "best"
    outcomes = Counter()
    places = ["--data_dir", workshop / "data", "--output_dir", tmp_path / "out"]

    @fuzz(count, data=st.data())
    def check(data):
        shutil.rmtree(best, ignore_errors=True)
        shutil.copytree(workshop / "run" / "best", best)
        damaged = spoil(data.draw, best)
        status, error = call(["--option=evaluate", "--checkpoint", best.parent, *places])
        assert_said_in_one_line(status, error)
        assert not damaged or (status == 2 and str(best) in error)
        outcomes[status] += 1

    assert outcomes[2] > count // 10 and outcomes[0], outcomes
