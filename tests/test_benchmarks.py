"""Benchmarks: both sides compute the same, samples and ratios are what they claim. None depends on times."""

import contextlib
import json
import os
import pickle
import sys

import numpy as np
import pytest
import torch

from benchmarks import __main__ as program
from benchmarks import cuda, device_checks, growth, peers, rows
from benchmarks.measure import STRATA, Goal, Measurement, compare, evenly, separate_processes, take_turns
from benchmarks.training import Training
from config import TrainConfig
from datasets import collate, read_examples
from helpers import SAMPLE
from support.devices import PRECISION_VARIABLE
from tiny_bert import tiny_batch, tiny_model


@pytest.fixture(scope="module")
def models():
    ours = rows.new_model().eval()
    return ours, peers.Peer(ours).eval()


@pytest.mark.parametrize("name", ["sst", "para"])
def test_the_peer_is_the_same_model(models, name):
    """Guards against a peer with other weights, another head, a mask it misreads, or whose autocast is off:
    its speed would say nothing about ours."""
    ours, peer = models
    dataset = rows.training_data(rows.Setting(SAMPLE).path(name), name)
    batch = collate(dataset, np.arange(4))
    given = {"input_ids": batch.input_ids, "token_type_ids": batch.token_type_ids}
    with torch.no_grad():
        exact = ours(name, *batch.inputs)
        with peers.autocast("fp32"):
            theirs = peer(name, batch.attention_mask, **given)
        torch.testing.assert_close(theirs, exact, atol=1e-5, rtol=1e-4)
        mine = rows.new_model("bf16").eval()(name, *batch.inputs)
        with peers.autocast("bf16"):
            theirs = peer(name, batch.attention_mask, **given)
    assert theirs.dtype == torch.float32
    for logits in (mine, theirs):
        rounding = (logits - exact).abs().max()
        assert 0 < rounding < 0.02 * exact.abs().max()


@pytest.mark.parametrize("loss", [peers.plain_loss, peers.smart_loss])
def test_the_peer_trains(loss):
    """Guards against a loss without gradients to the weights: it would cost less than a training step."""
    peer = peers.Peer(rows.new_model()).train()
    dataset = rows.training_data(SAMPLE / "sts-train.csv", "sts")
    loss(peer, dataset.task, collate(dataset, np.arange(2))).backward()
    without = {name for name, parameter in peer.named_parameters() if parameter.grad is None}
    others = set(rows.TASKS) - {"sts"}
    assert without == {f"heads.{task}.{leaf}" for task in others for leaf in ("weight", "bias")}


def test_the_measured_step_trains():
    """Guards against a step that leaves out the update, the teacher, or the end of its gradients."""
    ours = Training(tiny_model().train(), TrainConfig(use_smart=True))
    name = "bert.bert_layers.0.out_dense.weight"
    before = ours.model.state_dict()[name].clone()
    losses = ours.step(rows.TASKS["sst"], tiny_batch("sst"))
    assert {"task", "smart", "bregman", "total"} <= losses.keys()
    assert all(parameter.grad is None for parameter in ours.model.parameters())
    moved, kept = (model.state_dict()[name] - before for model in (ours.model, ours.teacher.teacher))
    assert moved.abs().max() > 1e-6
    torch.testing.assert_close(kept, 0.01 * moved, atol=1e-7, rtol=0)


def test_a_sample_of_batches_is_even():
    """Guards against a sample, or a round of it, with too many short batches:
    it would favour the side that pads least."""
    lengths = np.arange(240) + 1
    batches = [np.array([row]) for row in np.random.default_rng(0).permutation(240)]
    orders = [np.concatenate(evenly(batches, lengths, 12 * STRATA, shift)) for shift in range(3)]
    sample = orders[0]
    assert len(set(sample.tolist())) == 12 * STRATA
    assert abs(sample.mean() - 119.5) < 3
    # a round of one task, and a round of all three
    assert all(abs(part.mean() - 119.5) < 15 for part in np.split(sample, 12))
    assert all(abs(part.mean() - 119.5) < 15 for part in np.stack(orders, axis=1))
    assert len(evenly(batches, lengths, 1)) == 1


def test_a_ratio_is_the_median_of_its_rounds():
    """Guards against one slow round that decides, against a mean of ratios within a round, in which a short
    call counts as much as a long one, and against a ratio upside down, with which a missed goal is met."""
    seconds = np.array([[1.0, 2.0], [3.0, 4.0], [2.0, 3.0], [2.0, 7.0], [4.0, 1.0], [4.0, 1.0]])
    speed = compare("", "", "rows/s", Goal("speed", 1.4), seconds, 6, calls=2)
    assert speed.rounds == 3  # their ratios are 6/4, 10/4 and 2/8
    assert (speed.ours, speed.peer, speed.ratio) == (3.0, 2.0, 1.5)
    assert (speed.low, speed.high) == pytest.approx(((1.5 + 0.25) / 2, (1.5 + 2.5) / 2))
    assert speed.goal.met(speed.ratio)
    duration = compare("", "", "s", Goal("time", 0.6), seconds, calls=2)
    assert (duration.ours, duration.peer, duration.ratio) == (2.0, 3.0, pytest.approx(2 / 3))
    assert not duration.goal.met(duration.ratio)


def test_contenders_take_turns():
    """Guards against measuring one side after the other, when the machine may run at another speed, and
    against one side that is always the first to meet a batch."""
    calls = []
    seconds = take_turns(4, lambda k: calls.append(f"a{k}"), lambda k: calls.append(f"b{k}"))
    assert calls == ["a3", "b3"] + ["a0", "b0", "a1", "b1", "a2", "b2", "b3", "a3"]
    assert seconds.shape == (4, 2)


def remembering(path: str):
    """A contender that writes its process id and its argument to the file."""

    def call(k: int) -> None:
        with open(path, "a") as file:
            file.write(f"{os.getpid()} {k}\n")

    return call


def test_contenders_apart(tmp_path):
    """Guards against sides that share a process, calls that are lost,
    and a measurement that hangs when a side has failed."""
    path = tmp_path / "calls"
    with separate_processes((remembering, str(path)), (remembering, str(path))) as contenders:
        take_turns(2, *contenders)
    calls = [line.split() for line in path.read_text().splitlines()]
    assert [k for _, k in calls] == list("110011")
    assert len({process for process, _ in calls} | {str(os.getpid())}) == 3
    nowhere = str(tmp_path / "no" / "such" / "folder")
    with pytest.raises(FileNotFoundError), separate_processes((remembering, nowhere)) as contenders:
        contenders[0](0)


@contextlib.contextmanager
def one_process(*makers):
    """As `separate_processes`, in this process. What makes the contenders must survive the way to another."""
    yield [make(*arguments) for make, *arguments in pickle.loads(pickle.dumps(makers))]


def test_program(tmp_path, capsys, monkeypatch):
    """Guards against an entry point that fails on a row, and against figures without what they depend on.
    Runs with 2 examples a step in place of 32, as on a processor with bf16."""
    monkeypatch.setenv(PRECISION_VARIABLE, "bf16")
    monkeypatch.setattr(rows, "separate_processes", one_process)
    output = tmp_path / "results.json"
    size = ["--scale", "0.01", "--batch_size", "2"]
    program.main(["--data_dir", str(SAMPLE), *size, "--output", str(output)])
    assert "AdamW step, 22.7 M parameters" in capsys.readouterr().out
    results = json.loads(output.read_text())
    goals = {(row["what"], row["column"]): row["goal"]["bound"] for row in results["rows"]}
    assert len(goals) == len(results["rows"]) == 4 * 4 + 2 + 2 + 1
    assert sorted(goal for goal in goals.values() if goal) == [1.2, 1.6, 2.6, 2.9, 4.1, 4.5]
    assert all(row["ours"] > 0 and row["peer"] > 0 for row in results["rows"])
    assert (results["precision"], results["precision_reason"]) == ("bf16", f"as {PRECISION_VARIABLE} says")
    assert {"processor", "torch"} <= results["machine"].keys()


def test_growth_point(tmp_path):
    """Guards against a file shorter than it says, with which the time would seem to grow slowly."""
    path = tmp_path / "pairs.csv"
    growth.write_pairs(SAMPLE / "quora-train.csv", path, 450)
    assert len(read_examples(path, rows.TASKS["para"])) == 450
    assert growth.measure("pairs", 450, path)["seconds"] > 0


def test_the_list_for_a_gpu_on_this_cpu(tmp_path, capsys, monkeypatch):
    """Guards against a list that the first user with a GPU is the first to run, and against one broken check
    that hides the others. What starts programs or a compiler has tests elsewhere."""

    def broken(setting):
        """Breaks."""
        raise RuntimeError("no such\nkernel image")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "smart_pytorch", None)
    monkeypatch.setitem(cuda.CHECKS, "kills", broken)
    output = tmp_path / "cuda.json"
    names = ["kills", "parity", "replay", "synchronisations", "flops"]
    assert cuda.main(["--only", *names, "--output", str(output)]) == 1
    printed = capsys.readouterr().out
    results = json.loads(output.read_text())
    verdicts = [check["verdict"] for check in results["checks"]]
    assert verdicts[0] == "FAILED" and "RuntimeError: no such kernel image" in printed
    assert verdicts.count("ok") == 1 + 3 + 1 and verdicts.count("not run") == 1
    assert printed.count("FAILED") == 1 and "smart_pytorch is not installed" in printed
    assert max(map(len, printed.splitlines()[:-1])) <= 100
    assert results["small"] and {"processor", "torch"} <= results["machine"].keys()


def test_the_list_for_a_gpu_finds_what_is_wrong(monkeypatch, tmp_path):
    """Guards against checks that pass whatever the device does."""
    setting = device_checks.Setting(torch.device("cpu", 0), tmp_path)
    monkeypatch.setattr(device_checks, "DropoutReplay", lambda function: function)
    assert {check.verdict for check in device_checks.replay(setting)} == {"FAILED"}
    losses = iter([1.0, 1.001])
    monkeypatch.setattr(device_checks, "new_training", lambda *_, **__: None)
    monkeypatch.setattr(device_checks, "take_steps", lambda *_, **__: [torch.tensor(next(losses))])
    assert [check.verdict for check in device_checks.parity(setting)] == ["FAILED"]
    monkeypatch.setattr(device_checks, "take_steps", lambda *_: torch.zeros(1, device="meta").item())
    with pytest.raises(RuntimeError, match="meta"):
        device_checks.synchronisations(setting)


def test_the_page_shows_what_is_committed():
    """Guards against a table that was typed, or that was measured before the code changed for the worse."""
    page = (cuda.HERE / "README.md").read_text(encoding="utf-8")
    results = json.loads((cuda.HERE / "cuda.json").read_text())
    assert results["seconds"].keys() == cuda.CHECKS.keys()
    assert {check["verdict"] for check in results["checks"]} <= {"ok", "not run", "", "met", "missed"}
    assert cuda.as_table([device_checks.Check(**check) for check in results["checks"]]) in page
    points = json.loads((cuda.HERE / "growth.json").read_text())
    assert all(growth.as_table(series, points[series]) in page for series in growth.SERIES)
    measured = []
    files = (json.loads((cuda.HERE / name).read_text()) for name in ("results.json", "lazy.json"))
    for row in (row for results in files for row in results["rows"]):
        goal = Goal(**row.pop("goal"))
        assert row.pop("met") == goal.met(row["ratio"])
        measured.append(Measurement(**row, goal=goal))
    assert program.as_table(measured) in page
