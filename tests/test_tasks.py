"""The heads of a model: which ones it has, how they begin, and models saved before a task was added."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bert import BertModel
from checkpoint import load_checkpoint, save_checkpoint
from datasets import Example, tokenize
from evaluation import model_outputs
from helpers import run_program
from multitask_classifier import MultitaskBERT, load_model
from support.errors import UserError
from tasks import TASKS
from tiny_bert import TINY

FIXTURES = Path(__file__).resolve().parent / "fixtures"
FIFTH = replace(TASKS["cfimdb"], name="fifth", num_outputs=3)


def heads_of(*tasks: str, seed: int = 3, config=TINY):
    return MultitaskBERT(BertModel(config), tasks=tasks, seed=seed).heads


def test_a_heads_first_weights_depend_on_seed_and_name_alone(monkeypatch):
    """Guards against heads that nobody asked for, and a run whose numbers change because a task was added."""
    torch.manual_seed(0)
    alone = heads_of("sts")["sts"]
    monkeypatch.setitem(TASKS, "fifth", FIFTH)
    torch.manual_seed(1)
    among = heads_of("fifth", "sst", "sts")
    assert set(among) == {"fifth", "sst", "sts"}
    assert torch.equal(alone.weight, among["sts"].weight) and torch.equal(alone.bias, among["sts"].bias)
    assert not torch.equal(alone.weight, heads_of("sts", seed=4)["sts"].weight)
    assert not torch.equal(among["sst"].weight[:3], among["fifth"].weight)


def test_a_heads_first_values_are_berts():
    """Guards against torch's default values, with a larger spread, and a regression that starts at 0."""
    config = replace(TINY, hidden_size=600, num_hidden_layers=1)
    heads = heads_of("sst", "sts", config=config)
    assert heads["sst"].weight.std().item() == pytest.approx(config.initializer_range, rel=0.05)
    assert heads["sst"].weight.mean().item() == pytest.approx(0, abs=0.002) and not heads["sst"].bias.any()
    assert heads["sts"].bias.item() == 2.5


def test_a_model_saved_by_older_code_opens_and_gives_its_numbers(monkeypatch):
    """Guards against old models that no longer open, or open with other weights, once a task is added.

    The fixture was saved by the code of commit aca8cb1, which gave every model a head for each task of the
    table; the logits were computed by that code, too.
    """
    monkeypatch.setitem(TASKS, "fifth", FIFTH)
    model, tokenizer, run = load_model(FIXTURES / "old_model")
    assert set(model.heads) == {"sst", "para", "sts", "cfimdb"} and run["trained_tasks"] == ["sst", "para"]
    expected = json.loads((FIXTURES / "old_model_logits.json").read_text())
    for name, logits in expected["logits"].items():
        columns = len(TASKS[name].text_columns)
        examples = [Example("", tuple(texts[:columns]), None) for texts in expected["texts"]]
        got = model_outputs(model, tokenize(examples, TASKS[name], tokenizer, 32), 2)
        torch.testing.assert_close(got, torch.tensor(logits), atol=1e-6, rtol=0)


def with_heads(folder: Path, **changes: torch.Tensor) -> Path:
    """A copy of the old model that lacks a head for sts, and has other tensors in other heads."""
    saved = load_checkpoint(FIXTURES / "old_model")
    heads = saved.tensors["heads"] | {name.replace("_", "."): tensor for name, tensor in changes.items()}
    del heads["sts.weight"], heads["sts.bias"]
    save_checkpoint(folder, replace(saved, tensors=saved.tensors | {"heads": heads}))
    return folder


@pytest.mark.parametrize(
    ("changes", "cause"),
    [({"sst_bias": torch.zeros(4)}, "torch.Size([4])"), ({"nli_bias": torch.zeros(3)}, "nli")],
)
def test_a_load_error_shows_its_cause(tmp_path, changes, cause):
    """Guards against 'not a model saved by this program' for a file that is one, without the reason."""
    with pytest.raises(UserError) as error:
        load_model(with_heads(tmp_path / "model", **changes))
    assert str(error.value).startswith(f"{tmp_path / 'model'}") and cause in str(error.value)


def test_a_task_without_a_head_is_refused(capsys, tmp_path):
    """Guards against a KeyError for a task that the saved model has never heard of."""
    folder = with_heads(tmp_path / "model")
    arguments = ["--option", "evaluate", "--checkpoint", folder, "--eval_tasks", "sst,sts"]
    assert run_program(*arguments, "--output_dir", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--eval_tasks sst,sts" in error and "no head for sts" in error
