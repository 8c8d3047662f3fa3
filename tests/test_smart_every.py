"""Lazy regularisation: `--smart_every N`."""

import dataclasses
import json

import pytest
import torch

from config import UNLABELLED, TrainConfig
from dry_run import forward_passes
from helpers import ROOT
from multitask_classifier import training_loss
from mysmartloss import BregmanProximal
from tasks import TASKS
from tiny_bert import tiny_batch, tiny_model

RUN = """--tasks sst,sts --use_smart --smart_epsilon .1 --smart_step_size .1 --max_train_samples 40
--max_eval_samples 12 --batch_size 4 --epochs 1 --steps_per_epoch 6 --logging_steps 6 --precision fp32
--no_report""".split()  # noqa: SIM905


def test_every_fourth_batch_has_four_times_the_weight():
    """Guards against a weight that is not enlarged, terms of other kinds that are, and texts without labels,
    whose batches have no other loss, that are left with none."""
    file = str(ROOT / "data/sample/ids-sst-test-student.csv")
    settings = {"use_smart": True, "smart_weight": 0.5, "bregman_weight": 2.0, "rdrop_weight": 0.3}
    settings |= {"tasks": ("sst",), "unlabelled_file": file}
    lazy = TrainConfig(smart_every=4, **settings)
    rest = {"rdrop": 0.3}
    found = [lazy.batch_weights("sst", number) for number in range(6)]
    full = {"smart": 2.0, "bregman": 8.0, **rest}
    assert found == [full, rest, rest, rest, full, rest]
    assert lazy.batch_weights(UNLABELLED, 1) == {"smart": 0.5, "bregman": 2.0}
    for number in range(3):
        assert TrainConfig(**settings).batch_weights("sst", number) == lazy.weights("sst")


def test_the_loss_between_is_the_plain_one():
    """Guards against forward passes that are paid for and then multiplied by 0, and against a sum over N
    batches that is not the one of SMART in each."""
    model = tiny_model()
    teacher = BregmanProximal(tiny_model(seed=1))

    def losses(number: int, **settings) -> dict[str, torch.Tensor]:
        torch.manual_seed(5)
        batch = dataclasses.replace(tiny_batch("sst"), number=number)
        return training_loss(model, TASKS["sst"], batch, TrainConfig(use_smart=True, **settings), teacher)

    with_terms = losses(8, smart_every=4)
    without = losses(9, smart_every=4)
    always = losses(9)
    assert set(without) == {"task", "total"} and torch.equal(without["total"], without["task"])
    four = with_terms["total"] + 3 * without["total"]
    torch.testing.assert_close(four, 4 * always["total"], rtol=1e-6, atol=0)
    assert always["total"] > 1.001 * always["task"]  # or all of this would hold without the terms


def test_the_cost_is_one_and_a_half_plain_steps():
    """Guards against a run whose announced cost is that of SMART in each step: 3 + (5 + 1) / 4."""
    assert forward_passes(TrainConfig(use_smart=True, smart_every=4), "sst") == 4.5


def test_a_run_logs_it_and_its_teacher_moves_in_every_step(main, tmp_path, monkeypatch):
    """Guards against a teacher that stands still between, and a log that counts missing values as 0. That a
    resumed run goes on counting: tests/program/test_mixing_runs.py."""
    updates = []
    update = BregmanProximal.update
    monkeypatch.setattr(BregmanProximal, "update", lambda *args: updates.append(1) or update(*args))
    assert main(*RUN, "--smart_every=3", "--output_dir", tmp_path) == 0
    assert len(updates) == 6
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line["kind"] == "train/sst")
    # three batches of sst, the first one with R_s: its value is not divided by three
    assert first["smart"] == pytest.approx(first["ascent_divergence"], rel=1e-5)
