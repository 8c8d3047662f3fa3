"""Models from strangers: what could hang the program or fill its memory is refused in one line.

Hostile checkpoints stand in checkpoints/, damaged weight files in test_base_bert.py.
"""

import json
from pathlib import Path

import pytest
import torch

import base_bert
from base_bert import BertConfig, check_fit, load_tokenizer, parse_tokenizer
from bert import BertModel
from helpers import run_program
from support.errors import UserError
from tiny_bert import TINY, letters_encoder


@pytest.fixture
def folder(tmp_path) -> Path:
    """A good model folder, which a test then harms."""
    return Path(letters_encoder(tmp_path / "encoder"))


def parsed(folder: Path, **parts):
    """The folder's tokenizer with other parts."""
    content = json.loads((folder / "tokenizer.json").read_text()) | parts
    return parse_tokenizer(json.dumps(content), "here/tokenizer.json")


def refusal(folder: Path, **parts) -> str:
    """The one line that refuses the folder's tokenizer with other parts."""
    with pytest.raises(UserError) as caught:
        check_fit(parsed(folder, **parts), TINY, 0, "here")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --------------------------------------------------------------------------------------- tokenizers


def replace(pattern: str, content: str) -> dict:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


@pytest.mark.parametrize(
    ("part", "value", "kind"),
    [
        ("model", {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "BPE"),
        ("model", {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "WordLevel"),
        ("model", {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}, "Unigram"),
        ("model", {"vocab": {"a": 0}}, "None"),
        ("normalizer", replace("(a|a)*b", "a" * 1000), "Replace"),
        # a text grows by the product of the two: this ran for minutes
        (
            "normalizer",
            {"type": "Sequence", "normalizers": [replace(".", "a" * 1000), replace(".", "b" * 1000)]},
            "Replace",
        ),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "Precompiled"),
        (
            "pre_tokenizer",
            {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "(x+x+)+y"}}]},
            "Split",
        ),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True}, "ByteLevel"),
        ("post_processor", {"type": "ByteLevel", "trim_offsets": True}, "ByteLevel"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_parts_that_no_bert_has_are_refused_by_their_type(folder, part, value, kind):
    """Guards against a file whose regular expressions or replacements run for minutes on a short text."""
    said = refusal(folder, **{part: value})
    assert said.startswith("here/tokenizer.json: ") and part in said and kind in said


def test_the_parts_that_berts_have_are_taken(folder):
    """Guards against refusing older models: a sequence of normalizers, or BERT's own processor."""
    sequence = {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Lowercase"}]}
    own = {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]}
    text = "a b"
    expected = load_tokenizer(str(folder)).encode(text).tokens
    for parts in ({"normalizer": sequence}, {"normalizer": None}, {"post_processor": own}):
        assert parsed(folder, **parts).encode(text).tokens == expected


def test_an_empty_vocabulary_is_refused(folder):
    """Guards against a traceback at the first word: nothing stands for an unknown one."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"] | {"vocab": {}}
    assert "no words" in refusal(folder, model=model)


def test_a_template_that_leaves_no_room_is_refused(folder):
    """Guards against a traceback in truncation, and against texts that only keep special tokens."""
    special = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [special] * 300 + [{"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [special] * 300 + [{"Sequence": {"id": id, "type_id": 0}} for id in "AB"],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]}},
    }
    said = refusal(folder, post_processor=template)
    assert "300 special tokens" in said and f"room for {TINY.max_position_embeddings}" in said


def test_words_without_a_limit_are_refused(folder):
    """Guards against WordPiece's cubic time: a word of 16,000 letters took a minute."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    said = refusal(folder, model=model | {"max_input_chars_per_word": 10**7})
    assert "max_input_chars_per_word is 10000000" in said
    assert parsed(folder, model=model | {"max_input_chars_per_word": base_bert.LONGEST_WORD})


@pytest.mark.parametrize("text", ["", "[]", "null", "7", '{"model": []}', '{"model": {"type": "WordPiece"}}'])
def test_what_is_no_tokenizer_is_refused(text):
    """Guards against a traceback out of a stranger's JSON."""
    with pytest.raises(UserError, match=r"^here: "):
        parse_tokenizer(text, "here")


def test_the_program_refuses_a_hostile_tokenizer(folder, tmp_path, capsys):
    """Guards against a check that the main program does not reach: exit status 2, one line, no folder."""
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = replace("(a|a)*b", "a" * 1000)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    out = tmp_path / "run"
    status = run_program("--model_name_or_path", folder, "--epochs", 1, "--output_dir", out)
    complained = capsys.readouterr().err
    assert status == 2 and "'Replace'" in complained and complained.count("\n") == 1
    assert not out.exists()


# ------------------------------------------------------------------------------------------- memory


def bytes_of(config: BertConfig) -> int:
    """Bytes of BERT's weights in fp32, by hand from the shapes in Devlin et al. 2019."""
    hidden, wide = config.hidden_size, config.intermediate_size
    rows = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
    layer = 4 * (hidden**2 + hidden) + 2 * hidden * wide + wide + hidden + 2 * 2 * hidden
    pooler = hidden**2 + hidden
    return 4 * (rows * hidden + 2 * hidden + config.num_hidden_layers * layer + pooler)


def test_the_weights_that_just_fit_are_taken(folder, monkeypatch):
    """Guards against a price that counts layers or the vocabulary wrongly."""
    config = BertModel.from_pretrained(str(folder)).config
    monkeypatch.setattr(base_bert, "free_bytes", lambda device: bytes_of(config))
    BertModel.from_pretrained(str(folder))
    monkeypatch.setattr(base_bert, "free_bytes", lambda device: bytes_of(config) - 1)
    with pytest.raises(UserError, match=r"config\.json: a model of this size needs"):
        BertModel.from_pretrained(str(folder))
    monkeypatch.setattr(base_bert, "free_bytes", lambda device: None)  # the system does not say
    BertModel.from_pretrained(str(folder))


def test_the_model_without_weights_takes_no_memory():
    """Guards against initial values that are computed and then thrown away."""
    model = BertModel.without_weights(TINY)
    assert {parameter.device for parameter in model.parameters()} == {torch.device("meta")}
