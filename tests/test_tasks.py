"""The heads of a model: which ones it has, how they begin, and models saved before a task was added."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import multitask_classifier
from bert import BertModel
from checkpoint import load_checkpoint, save_checkpoint
from datasets import Example, tokenize
from evaluation import model_outputs
from multitask_classifier import MultitaskBERT, load_model
from support.errors import UserError
from tasks import TASKS
from tiny_bert import TINY

FIXTURES = Path(__file__).resolve().parent / "fixtures"
FIFTH = replace(TASKS["cfimdb"], name="fifth", num_outputs=3)


def test_a_model_has_the_heads_that_it_was_given():
    """Guards against heads of every task in the table: adding a task would change every model."""
    assert set(MultitaskBERT(BertModel(TINY), tasks=("sts", "sst", "sts")).heads) == {"sst", "sts"}
    assert set(MultitaskBERT(BertModel(TINY)).heads) == set(TASKS)


def test_a_heads_first_weights_depend_on_seed_and_name_alone(monkeypatch):
    """Guards against a run whose numbers change because a task was added elsewhere."""
    torch.manual_seed(0)
    alone = MultitaskBERT(BertModel(TINY), tasks=("sts",), seed=3).heads["sts"]
    monkeypatch.setitem(TASKS, "fifth", FIFTH)
    torch.manual_seed(1)
    among = MultitaskBERT(BertModel(TINY), tasks=("fifth", "sst", "sts"), seed=3).heads
    other = MultitaskBERT(BertModel(TINY), tasks=("sts",), seed=4).heads["sts"]
    assert torch.equal(alone.weight, among["sts"].weight) and torch.equal(alone.bias, among["sts"].bias)
    assert not torch.equal(alone.weight, other.weight)
    assert not torch.equal(among["sst"].weight[:3], among["fifth"].weight)


def test_a_heads_first_values_are_berts():
    """Guards against torch's default values, ten times as large, and a regression that starts at 0."""
    config = replace(TINY, hidden_size=3000, num_hidden_layers=1)
    heads = MultitaskBERT(BertModel(config), tasks=("sst", "sts")).heads
    head = heads["sst"]
    assert head.weight.std().item() == pytest.approx(config.initializer_range, rel=0.02)
    assert head.weight.mean().item() == pytest.approx(0, abs=0.001) and not head.bias.any()
    assert heads["sts"].bias.item() == 2.5


@pytest.mark.parametrize("added", [False, True])
def test_a_model_saved_by_older_code_opens_and_gives_its_numbers(monkeypatch, added):
    """Guards against old models that no longer open, or open with other weights, once a task is added.

    The fixture was saved by the code of commit aca8cb1, which gave every model a head for each task of the
    table; the logits were computed by that code, too.
    """
    if added:
        monkeypatch.setitem(TASKS, "fifth", FIFTH)
    model, tokenizer, run = load_model(FIXTURES / "old_model")
    assert set(model.heads) == {"sst", "para", "sts", "cfimdb"} and run["trained_tasks"] == ["sst", "para"]
    expected = json.loads((FIXTURES / "old_model_logits.json").read_text())
    for name, logits in expected["logits"].items():
        columns = len(TASKS[name].text_columns)
        examples = [Example("", tuple(texts[:columns]), None) for texts in expected["texts"]]
        got = model_outputs(model, tokenize(examples, TASKS[name], tokenizer, 32), 2)
        torch.testing.assert_close(got, torch.tensor(logits), atol=1e-6, rtol=0)


def changed(folder: Path, change) -> Path:
    """A copy of the old model with other heads in it."""
    saved = load_checkpoint(FIXTURES / "old_model")
    heads = dict(saved.tensors["heads"])
    change(heads)
    save_checkpoint(folder, replace(saved, tensors=saved.tensors | {"heads": heads}))
    return folder


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda heads: heads.pop("sst.bias"), "sst.bias"),
        (lambda heads: heads.update({"sst.bias": torch.zeros(4)}), "torch.Size([4])"),
        (lambda heads: heads.update({"nli.bias": torch.zeros(3)}), "nli"),
        (lambda heads: [heads.pop(f"para.{part}") for part in ("weight", "bias")], "no head for para"),
    ],
)
def test_a_load_error_shows_its_cause(tmp_path, change, cause):
    """Guards against 'not a model saved by this program' for a file that is one, without the reason."""
    with pytest.raises(UserError) as error:
        load_model(changed(tmp_path / "model", change))
    assert str(error.value).startswith(f"{tmp_path / 'model'}") and cause in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_task_without_a_head_is_refused(capsys, tmp_path):
    """Guards against a KeyError for a task that the saved model has never heard of."""
    folder = changed(
        tmp_path / "model", lambda heads: [heads.pop(f"sts.{part}") for part in ("weight", "bias")]
    )
    arguments = ["--option", "evaluate", "--checkpoint", str(folder), "--eval_tasks", "sst,sts"]
    assert multitask_classifier.main([*arguments, "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--eval_tasks sst,sts" in error and "no head for sts" in error
    assert not (tmp_path / "out").exists()
