"""A training step: its losses and cost, clipping, an update that is left out, accumulation."""

import copy
import dataclasses
import json

import pytest
import safetensors.torch
import torch

import multitask_classifier
import mysmartloss
from config import TrainConfig
from datasets import Loader
from dry_run import forward_passes
from helpers import SAMPLE, run_program
from multitask_classifier import training_loss
from mysmartloss import BregmanProximal
from optimizer import AdamW, clip_gradients, lr_factors, step_if_finite
from tasks import TASKS
from tiny_bert import tiny_batch, tiny_encoder, tiny_model

SST = TASKS["sst"]
BATCH = tiny_batch("sst")


def with_gradients(scale: float) -> torch.nn.Module:
    """The tiny model after a backward pass, its gradients times `scale`."""
    model = tiny_model().eval()
    (scale * training_loss(model, SST, BATCH, TrainConfig())["total"]).backward()
    return model


@pytest.mark.parametrize("optimizer_of", [AdamW, torch.optim.SGD])
@pytest.mark.parametrize(("scale", "max_norm"), [(1.0, 0.01), (1.0, 100.0), (1e-7, 1e-7)])
def test_clipping_is_torchs(optimizer_of, scale, max_norm):
    """Guards against clipping that differs from torch's for short gradients, or makes one longer."""
    ours, theirs = with_gradients(scale), with_gradients(scale)
    optimizers = [optimizer_of(model.parameters(), lr=1e-3) for model in (ours, theirs)]
    norm = torch.nn.utils.get_total_norm([p.grad for p in ours.parameters() if p.grad is not None])
    clip_gradients(optimizers[0], norm, max_norm)
    torch.testing.assert_close(torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm), norm)
    for optimizer in optimizers:
        optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_a_step_that_is_not_finite_changes_nothing():
    """Guards against an update, or a step that is counted, where the loss or the norm is inf or NaN."""
    model = with_gradients(1.0)
    before = copy.deepcopy(model.state_dict())
    optimizer = AdamW(model.parameters())
    assert not step_if_finite(optimizer, torch.tensor(False)) and not optimizer.state
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert step_if_finite(optimizer, torch.tensor(True)) and optimizer.state


def test_nothing_is_measured_unless_asked_for():
    """Guards against one more forward pass in every step, for numbers that nobody reads."""
    config = TrainConfig(use_smart=True)
    model = tiny_model()
    parts = {"task", "smart", "bregman", "total"}
    assert set(training_loss(model, SST, BATCH, config, BregmanProximal(model))) == parts


@pytest.mark.parametrize(("precision", "passes"), [("fp32", 1), ("bf16", 2)])
def test_the_rounding_floor_is_taken_at_a_delta_that_rounding_hides(monkeypatch, precision, passes):
    """Guards against a floor measured at δ itself: R_s would always look like rounding."""
    sizes = []
    at = mysmartloss.SMARTLoss.at

    def spy(self, delta, embed, state):
        sizes.append(delta.abs().max().item())
        return at(self, delta, embed, state)

    monkeypatch.setattr(mysmartloss.SMARTLoss, "at", spy)
    config = TrainConfig(
        use_smart=True, bregman_weight=0.0, precision=precision, smart_epsilon=0.01, smart_step_size=0.01
    )
    losses = training_loss(tiny_model(precision=precision), SST, BATCH, config, measure=True)
    assert sizes == pytest.approx([0.01, 1e-5][:passes]) and ("smart_floor" in losses) == (passes == 2)


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({}, 3),
        ({"use_smart": True, "bregman_weight": 0.0, "smart_steps": 0}, 6),
        ({"use_smart": True, "bregman_weight": 0.0, "smart_steps": 3}, 12),
        ({"use_smart": True, "smart_steps": 1}, 9),
        ({"rdrop_weight": 1.0}, 6),
        ({"use_smart": True, "bregman_weight": 0.0, "adversary": "freelb", "smart_steps": 2}, 8),
        ({"contrastive_weight": 1.0}, 6),
    ],
)
def test_the_price_of_a_step_by_hand(settings, passes):
    """Guards against a run whose announced cost is not what it does.

    A backward pass is two forward passes, one where only the input's gradient is wanted. A plain step is
    1 + 2, R_s 1 + 2 and a step of its ascent 1 + 1, the teacher 1, R-Drop's second pass 1 + 2. FreeLB has the
    clean pass, 1, and two passes, each 1 + 2, between them a backward pass to the embeddings, 1. The
    contrastive pass is 1 + 2.
    """
    assert forward_passes(TrainConfig(**settings), "para") == passes


def test_learning_rates_by_hand():
    """Guards against a layer with its neighbour's rate: 3 layers, decay ½, heads 10 times, a new pooler."""
    names = ["bert.word_embedding.weight", "bert.embed_layer_norm.bias", "bert.pooler_dense.bias"]
    names += [f"bert.bert_layers.{i}.out_dense.weight" for i in range(3)] + ["heads.sst.weight"]
    assert list(lr_factors(names, 10.0, 0.5).values()) == [0.125, 0.125, 1.0, 0.25, 0.5, 1.0, 10.0]
    assert lr_factors(names, 10.0, 0.5, new_pooler=True)["bert.pooler_dense.bias"] == 10.0
    assert set(lr_factors(names).values()) == {1.0}


def weights_after(folder, *flags) -> dict[str, torch.Tensor]:
    """Of student and teacher after a short run on the sample without dropout."""
    encoder = tiny_encoder(folder / "tiny", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    run = ["--model_name_or_path", encoder, "--data_dir", SAMPLE, "--output_dir", folder / "run", "--lr=1e-3"]
    run += ["--hidden_dropout_prob=0", "--precision=fp32", "--no_report", "--max_train_samples=34"]
    run += ["--max_eval_samples=8"]
    assert run_program(*run, *flags) == 0
    paths = [folder / "run" / "last" / f"{role}.safetensors" for role in ("student", "teacher")]
    return {
        f"{path.stem} {name}": value
        for path in paths
        if path.exists()
        for name, value in safetensors.torch.load_file(path).items()
    }


SMART = ["--use_smart", "--smart_epsilon=.1", "--smart_step_size=.1"]


@pytest.mark.parametrize(
    "terms",
    [
        [*SMART, "--smart_steps=2", "--rdrop_weight=1"],
        ["--schedule=joint", "--gradient_surgery=pcgrad"],
        [*SMART, "--max_tokens=300", "--layer_lr_decay=.8", "--head_lr=1e-2"],
    ],
    ids=["smart", "pcgrad", "max_tokens"],
)
def test_accumulated_batches_are_one_batch(tmp_path, no_course_data, terms):
    """Guards against parts of a batch that count unequally, noise drawn anew for each part, a gradient that
    is averaged twice, and a last batch of fewer rows than parts."""
    found = []
    for parts in (1, 4):
        flags = [f"--batch_size={16 // parts}", f"--gradient_accumulation_steps={parts}", "--epochs=1"]
        tokens = [f"--max_tokens={1200 // parts}"] if "--max_tokens=300" in terms else []
        found.append(weights_after(tmp_path / str(parts), *flags, *terms, *tokens))
    assert found[0].keys() == found[1].keys() and len(found[0]) > 30
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=1e-6, msg=name)


def test_a_head_rate_of_its_own_moves_the_head_alone(tmp_path, no_course_data):
    """Guards against a flag that changes nothing, or the encoder's rate. AdamW's first step is as long as
    the rate."""
    flags = ["--tasks=sst", "--epochs=1", "--steps_per_epoch=1", "--warmup_steps=0", "--weight_decay=0"]
    found = weights_after(tmp_path, *flags, "--head_lr=1e-2", "--layer_lr_decay=.5")
    other = weights_after(tmp_path / "other", *flags, "--head_lr=1e-3", "--layer_lr_decay=.5")
    differing = {name for name in found if not torch.equal(found[name], other[name])}
    assert differing == {"student heads.sst.weight", "student heads.sst.bias"}
    step = (found["student heads.sst.weight"] - other["student heads.sst.weight"]).abs()
    assert step.median().item() == pytest.approx(1e-2 - 1e-3, rel=1e-2)


def logged(folder, kind: str) -> list[dict]:
    """What the run has logged of that kind."""
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == kind]


def test_early_stopping_by_hand(tmp_path, no_course_data, monkeypatch, capsys):
    """Guards against patience that counts scorings before the best, or that resuming forgets, and against a
    run that waits an epoch for its first score, or leaves out the last.

    The means are .5 .7 .6 .7 .6: with a patience of 2 the fourth scoring ends the run, since an equal score
    is no better one; resumed with a patience of 4 it goes on to the fifth, after the last step.
    """
    scores = iter([0.5, 0.7, 0.6, 0.7, 0.6])
    evaluate = multitask_classifier.evaluate

    def given(*arguments):
        return evaluate(*arguments)._replace(selection_mean=next(scores))

    monkeypatch.setattr(multitask_classifier, "evaluate", given)
    flags = ["--tasks=sst", "--epochs=1", "--steps_per_epoch=9", "--eval_steps=2"]
    weights_after(tmp_path, *flags, "--patience=2")
    assert [line["step"] for line in logged(tmp_path, "dev/sst")] == [2, 4, 6, 8]
    assert "early stopping: 2 scorings without a better mean" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "results.json").read_text())["best_step"] == 4
    assert logged(tmp_path, "train/sst")[-1]["step"] == 8, "no step is lost from the log"
    assert run_program("--resume", "--output_dir", tmp_path / "run", "--epochs=2") == 0
    assert "raise --patience to go on" in capsys.readouterr().out
    assert run_program("--resume", "--output_dir", tmp_path / "run", "--patience=4") == 0
    assert [line["step"] for line in logged(tmp_path, "dev/sst")] == [2, 4, 6, 8, 9]


def test_a_batch_with_fewer_rows_by_max_tokens_counts_less(tmp_path, no_course_data, monkeypatch):
    """Guards against --max_tokens whose long rows count more than the short ones: half full, half gradient,
    and the loss in the log is still the mean of the rows."""
    lines = []
    whole = Loader.__getitem__
    for weight in (1.0, 0.5):
        monkeypatch.setattr(
            Loader,
            "__getitem__",
            lambda self, k, w=weight: dataclasses.replace(whole(self, k), batch_weight=w),
        )
        weights_after(tmp_path / str(weight), "--tasks=sst", "--epochs=1", "--steps_per_epoch=1")
        lines += logged(tmp_path / str(weight), "train/sst")
    full, half = lines
    assert half["grad_norm"] == pytest.approx(full["grad_norm"] / 2, rel=1e-5)
    assert half["task"] == pytest.approx(full["task"], rel=1e-6)
