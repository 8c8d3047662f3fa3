"""Weights split over files, as `save_pretrained(max_shard_size=...)` of transformers writes them."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers

from bert import BertModel
from helpers import run_python
from support.errors import UserError
from tiny_bert import SIZES, assert_same, inputs, reference_bert

INDEX = "model.safetensors.index.json"


def sharded(folder: Path, size: str = "12KB") -> transformers.BertModel:
    """A tiny BERT that transformers has saved in the folder, in several files."""
    reference = reference_bert()
    reference.save_pretrained(folder, max_shard_size=size)
    assert len(list(folder.glob("model-*.safetensors"))) >= 2 and (folder / INDEX).is_file()
    return reference


@pytest.mark.parametrize("size", ["12KB", "30KB"])
def test_shards_of_transformers_open(tmp_path, size):
    """Guards against layers left out because they lie in another file."""
    reference = sharded(tmp_path, size)
    assert_same(BertModel.from_pretrained(str(tmp_path)), reference, *inputs())


def test_shards_of_a_pretraining_model_open(tmp_path):
    """Guards against an index whose further tensors, of the pre-training heads, are refused."""
    reference = reference_bert()
    whole = transformers.BertForPreTraining(transformers.BertConfig(**SIZES))
    whole.bert.load_state_dict(reference.state_dict())
    whole.save_pretrained(tmp_path, max_shard_size="12KB")
    assert (tmp_path / INDEX).is_file()
    assert_same(BertModel.from_pretrained(str(tmp_path)), reference, *inputs())


def test_shards_from_the_hub(tmp_path):
    """Guards against shards that are looked for on this machine only."""
    cached = tmp_path / "hub" / "models--someone--split"
    snapshot = cached / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    sharded(snapshot)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    script = """if True:
        import sys, torch
        from bert import BertModel
        names = ("someone/split", sys.argv[1])
        hub, folder = (BertModel.from_pretrained(name).state_dict() for name in names)
        assert all(torch.equal(hub[name], folder[name]) for name in folder)
        print(len(hub))"""
    settings = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    assert int(run_python(script, snapshot, cwd=tmp_path, **settings)) > 10


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        BertModel.from_pretrained(str(folder))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def change_index(folder: Path, change) -> dict:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))
    return index["weight_map"]


@pytest.mark.parametrize(
    "file",
    [
        "../model-00001-of-00002.safetensors",
        "..",
        "sub/model.safetensors",
        "sub\\model.safetensors",
        "model.bin",
        "model.safetensors\n",
        ".safetensors",
        "x" * 300 + ".safetensors",
        "",
        None,
        3,
        ["model.safetensors"],
    ],
)
def test_an_index_that_lists_other_places_is_refused(tmp_path, file):
    """Guards against a stranger's model that reads files outside its folder, or a pickle."""
    (tmp_path / "m").mkdir()
    sharded(tmp_path / "m")
    for outside in (tmp_path / "model-00001-of-00002.safetensors", tmp_path / "m" / "model.bin"):
        safetensors.torch.save_file({"pooler.dense.bias": torch.ones(24)}, outside)
    change_index(tmp_path / "m", lambda listed: listed.update({"pooler.dense.bias": file}))
    message = refusal(tmp_path / "m")
    assert message.startswith(f"{tmp_path / 'm' / INDEX}: lists ") and "pooler.dense.bias" in message


def test_an_absolute_path_is_refused(tmp_path):
    """Guards against the same by a path from the root."""
    (tmp_path / "m").mkdir()
    sharded(tmp_path / "m")
    change_index(
        tmp_path / "m", lambda listed: listed.update({"pooler.dense.bias": str(tmp_path / "x.safetensors")})
    )
    assert "lists " in refusal(tmp_path / "m")


def test_a_missing_shard_is_named(tmp_path):
    """Guards against half a model."""
    sharded(tmp_path)
    shard = min(tmp_path.glob("model-*.safetensors"))
    shard.unlink()
    assert shard.name in refusal(tmp_path) and str(tmp_path) in refusal(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    """Guards against weights that depend on the order in which files are read."""
    sharded(tmp_path)
    first, last = sorted(tmp_path.glob("model-*.safetensors"))[:2]
    doubled = safetensors.torch.load_file(first) | safetensors.torch.load_file(last)
    safetensors.torch.save_file(doubled, first)
    assert first.name in refusal(tmp_path) and "not listed" in refusal(tmp_path)


def test_a_listed_tensor_that_is_in_no_shard_is_refused(tmp_path):
    """Guards against the same for a tensor that only the index knows."""
    sharded(tmp_path)
    shard = min(tmp_path.glob("model-*.safetensors")).name
    change_index(tmp_path, lambda listed: listed.update({"encoder.layer.7.output.dense.bias": shard}))
    assert "missing encoder.layer.7.output.dense.bias" in refusal(tmp_path)


def test_a_tensor_that_the_index_lacks_is_refused(tmp_path):
    """Guards against a layer left at random values."""
    sharded(tmp_path)
    change_index(tmp_path, lambda listed: listed.pop("pooler.dense.bias"))
    assert "not listed pooler.dense.bias" in refusal(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": 1}']
)
def test_what_is_no_index_is_refused(tmp_path, text):
    """Guards against a traceback for a broken download."""
    sharded(tmp_path)
    (tmp_path / INDEX).write_text(text)
    assert str(tmp_path / INDEX) in refusal(tmp_path)


def test_a_damaged_shard_is_named(tmp_path):
    """Guards against a shard that was only downloaded in part."""
    sharded(tmp_path)
    shard = max(tmp_path.glob("model-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert str(shard) in refusal(tmp_path)
