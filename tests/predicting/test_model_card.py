"""The model card of a saved model: what it says, and what may happen to it."""

import json

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import ModelCard

from checkpoint import MANIFEST
from model_card import model_card
from multitask_classifier import load_model

DEV = {"sst": {"accuracy": 0.5, "macro_f1": 0.25}, "sts": {"pearson": 0.75, "spearman": 0.125}}
DEV["para"] = {"accuracy": 0.3, "macro_f1": 0.2, "trained": False}


def record(data: str = "somewhere/private", **settings) -> dict:
    config = {"model_name_or_path": "minilm", "use_smart": True, "seed": 11, "epochs": 3, "files": {}}
    config |= {"max_train_samples": None, "max_eval_samples": None} | settings
    return {"config": config, "trained_tasks": ["sst", "sts"], "data": data, "dev": DEV}


def test_the_header_has_tasks_metrics_and_their_data():
    """Guards against a card whose scores the hub does not show, or shows for other data."""
    card = ModelCard(model_card(record(files={"sts_dev": "secret/mine.csv"})))
    results = {(r.dataset_type, r.metric_name): r for r in card.data.eval_results}
    assert {key: result.metric_value for key, result in results.items()} == {
        ("sst", "accuracy"): 0.5,
        ("sst", "macro_f1"): 0.25,
        ("sts", "pearson"): 0.75,
        ("sts", "spearman"): 0.125,
    }
    first, last = results["sst", "accuracy"], results["sts", "pearson"]
    assert (first.task_type, first.dataset_name) == ("text-classification", "ids-sst-dev.csv")
    assert (last.task_type, last.dataset_name) == ("sentence-similarity", "mine.csv")
    assert card.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert "secret" not in card.content and "private" not in card.content and "0.750" in card.text


@pytest.mark.parametrize(
    ("encoder", "base", "licence"),
    [
        ("bert-base-uncased", "google-bert/bert-base-uncased", "apache-2.0"),
        ("/home/me/bert", None, "unknown"),
        ("encoder", None, "unknown"),  # a folder in the test below
    ],
)
def test_the_licence_is_the_encoders_or_unknown(tmp_path, monkeypatch, encoder, base, licence):
    """Guards against a licence that nobody gave, and a path of this machine in a card for everyone."""
    (tmp_path / "encoder").mkdir()
    monkeypatch.chdir(tmp_path)
    card = ModelCard(model_card(record(model_name_or_path=encoder)))
    assert (card.data.base_model, card.data.license) == (base, licence)
    assert base or encoder not in card.content.replace("The encoder", "").replace("the encoder", "")
    assert "licence you must look up" in card.text or licence != "unknown"


def test_what_the_scores_do_not_say():
    """Guards against flattering scores without the reason beside them."""
    text = model_card(record())
    assert "best scores on dev, which chose the weights" in text and "one seed (11)" in text
    assert "sample" not in text and "Quora" not in text and "At most" not in text
    para = record("sample", max_train_samples=16, max_eval_samples=8) | {"trained_tasks": ["para"]}
    text = model_card(para)
    for words in ("too small to learn", "Quora", "At most 16 training rows", "At most 8 dev rows"):
        assert words in text
    assert "Quora" not in model_card(para | {"config": para["config"] | {"model_name_or_path": "a/b"}})


def test_a_saved_model_has_a_card_with_its_scores(sample_run):
    """Guards against a card of other scores, and a card that cannot be edited without damage to the model."""
    best = sample_run / "best"
    card = ModelCard.load(best / "README.md")
    scores = json.loads((sample_run / "results.json").read_text())["dev"]
    shown = {(r.dataset_type, r.metric_name): r.metric_value for r in card.data.eval_results}
    assert shown == {
        (task, metric): round(value, 4) for task, row in scores.items() for metric, value in row.items()
    }
    assert "README.md" not in json.loads((best / MANIFEST).read_text())


def test_the_tokenizer_and_the_pipeline_that_we_advertise(sample_run):
    """Guards against a folder that can be shared but not opened, and answers from a new, random head, from
    other ids, and from texts longer than the encoder has positions for: all of them look like answers."""
    best = sample_run / "best"
    model, tokenizer, _ = load_model(best)
    theirs = transformers.AutoTokenizer.from_pretrained(best)
    text = "Apple US é " * 233 + "it"  # 700 words
    ids = theirs(text, truncation=True)["input_ids"]
    assert ids == tokenizer.encode(text).ids and len(ids) == theirs.model_max_length == model.max_length
    assert json.loads((best / "tokenizer_config.json").read_text())["tokenizer_class"] == "BertTokenizer"
    assert "tokenizer_config.json" in json.loads((best / MANIFEST).read_text())
    tag = ModelCard.load(best / "README.md").data.pipeline_tag
    answer = transformers.pipeline(tag, model=str(best), truncation=True)(text)
    with torch.no_grad():
        expected = model.eval().bert(torch.tensor([ids]))["last_hidden_state"]
    np.testing.assert_allclose(answer, expected.numpy(), atol=1e-5)
