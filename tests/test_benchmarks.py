"""Tests of benchmarks/: both sides compute the same,
and samples and ratios are what they claim. No test depends on measured times."""

import dataclasses
import json
import os
import sys

import numpy as np
import pytest
import torch

import evaluation
from benchmarks import cuda, device_checks, growth, peers, rows
from benchmarks.__main__ import main
from benchmarks.figures import DEFAULTS, EQUAL, FIGURES, NEITHER
from benchmarks.measure import STRATA, Goal, compare, evenly, separate_processes, take_turns
from benchmarks.shares import REST, shares_of
from datasets import collate, read_examples
from helpers import SAMPLE
from support.devices import PRECISION_VARIABLE, choose_precision


@pytest.fixture(scope="module")
def models():
    ours, peer = rows.new_models()
    return ours.eval(), peer.eval()


@pytest.mark.parametrize("name", ["sst", "para"])
def test_the_peer_is_the_same_model(models, name):
    """Guards against a peer with other weights, another head or a mask it misreads:
    its speed would say nothing about ours."""
    ours, peer = models
    dataset = rows.training_data(SAMPLE / f"{'ids-sst' if name == 'sst' else 'quora'}-train.csv", name)
    batch = collate(dataset, np.arange(4))
    given = {"input_ids": batch.input_ids, "token_type_ids": batch.token_type_ids}
    with torch.no_grad():
        logits = peer(name, batch.attention_mask, **given)
        torch.testing.assert_close(logits, ours(name, *batch.inputs), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["sst", "para"])
def test_the_peer_is_the_same_model_in_bf16(name):
    """Guards against a peer whose autocast is off, or that computes another function under it: nothing would
    be equal in the column of equal precision."""
    ours, peer = (model.eval() for model in rows.new_models())
    dataset = rows.training_data(rows.Setting(SAMPLE).path(name, "train"), name)
    batch = collate(dataset, np.arange(4))
    given = {"input_ids": batch.input_ids, "token_type_ids": batch.token_type_ids}
    narrow = rows.new_models("bf16")[0].eval()
    with torch.no_grad():
        exact = ours(name, *batch.inputs)
        mine = narrow(name, *batch.inputs)
        with peers.autocast("bf16"):
            theirs = peer(name, batch.attention_mask, **given)
    assert theirs.dtype == torch.float32
    for logits in (mine, theirs):
        rounding = (logits - exact).abs().max()
        assert 0 < rounding < 0.02 * exact.abs().max()
    with peers.autocast("fp32"), torch.no_grad():
        torch.testing.assert_close(peer(name, batch.attention_mask, **given), exact, atol=1e-5, rtol=1e-4)


def test_the_peer_reads_the_same_tokens():
    """Guards against a peer that cuts, skips or joins texts differently: it would have more or less to do."""
    path = rows.Setting(SAMPLE).path("para", "train")
    task = rows.TASKS["para"]
    ours = rows.training_data(path, "para")
    theirs, labels = peers.read_and_tokenize(path, task, peers.load_tokenizer(), rows.MAX_LENGTH)
    assert np.array_equal(np.concatenate(theirs["input_ids"]), ours.tokens)
    assert labels == ours.labels.tolist()


def test_the_peer_predicts_the_same(models):
    """Guards against predictions left in the order of length, not of the file."""
    ours, peer = models
    task = rows.TASKS["sst"]
    tokenizer = rows.load_tokenizer()
    examples = read_examples(SAMPLE / task.filename("test"), task, labelled=False)[:8]
    theirs = peers.predict(peer, peers.load_tokenizer(), task, examples, 3, rows.MAX_LENGTH)
    dataset = rows.tokenize(examples, task, tokenizer, rows.MAX_LENGTH)
    mine = evaluation.predict(ours, dataset, rows.PLAIN.batch_size)
    assert np.array_equal(theirs, mine)


@pytest.mark.parametrize("name", ["sst", "para"])
def test_sentence_transformers_has_the_same_to_do(models, name):
    """Guards against other tokens, other weights or only a part of the rows:
    its speed would say nothing about ours."""
    ours, _ = models
    task = rows.TASKS[name]
    examples = read_examples(SAMPLE / task.filename("test"), task, labelled=False)[:5]
    given = torch.as_tensor(peers.sentence_transformers_predict(task)(examples))
    dataset = rows.tokenize(examples, task, rows.load_tokenizer(), rows.MAX_LENGTH)
    batch = collate(dataset, np.arange(5))
    with torch.no_grad():
        hidden = ours.bert(*batch.inputs)["last_hidden_state"]
    if name == "para":
        assert given.shape == (5,) and torch.isfinite(given).all()  # its head is its own
    else:
        real = batch.attention_mask[:, :, None].float()
        expected = torch.nn.functional.normalize((hidden * real).sum(1))
        torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-4)


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
    assert compare("", "", "s", Goal("time"), seconds[:1], calls=2).rounds == 1


@pytest.mark.parametrize(
    ("instructions", "goals", "columns"),
    [
        ({"avx512_bf16": True}, {DEFAULTS: 4.1, EQUAL: 2.6}, {DEFAULTS: "fp32", EQUAL: "bf16"}),
        ({}, {DEFAULTS: 2.5, EQUAL: None}, {DEFAULTS: "fp32"}),
    ],
)
def test_the_goals_are_those_of_the_processor(instructions, goals, columns, monkeypatch):
    """Guards against goals for bf16 on a processor that has none, or low ones on a processor that has it, and
    against measuring twice what is the same."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    monkeypatch.delenv(PRECISION_VARIABLE, raising=False)
    setting = rows.Setting(SAMPLE, precision=choose_precision(torch.device("cpu"), None).name)
    assert setting.columns == columns
    figure = FIGURES["plain training: all three"]
    assert {column: figure.goal(column, setting.precision).bound for column in goals} == goals
    assert FIGURES["AdamW step, 22.7 M parameters"].goal(NEITHER, setting.precision).bound == 1.2
    without = FIGURES["SMART step / the same in fp32"].goal(EQUAL, setting.precision)
    assert without.met(0.1) is None and str(without) == ""


def test_shares_are_of_the_whole_step():
    """Guards against operations that no kind knows, and time that is counted twice."""
    x = torch.randn(400, 400)
    found = shares_of("products", 2, lambda k: x @ x @ x)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.shares["matrix products"] > 0.5 > found.shares[REST] > 0
    assert str(found).startswith("products: matrix products ")


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


def test_contenders_apart(tmp_path, capfd):
    """Guards against sides that share a process, calls that are lost,
    and a measurement that hangs when a side has failed."""
    path = tmp_path / "calls"
    with separate_processes((remembering, str(path)), (remembering, str(path))) as contenders:
        take_turns(2, *contenders)
    calls = [line.split() for line in path.read_text().splitlines()]
    assert [k for _, k in calls] == list("110011")
    assert len({process for process, _ in calls} | {str(os.getpid())}) == 3
    nowhere = str(tmp_path / "no" / "such" / "folder")
    with (
        pytest.raises(RuntimeError, match="has ended"),
        separate_processes((remembering, nowhere)) as contenders,
    ):
        contenders[0](0)
    assert "FileNotFoundError" in capfd.readouterr().err


def test_program(tmp_path, capsys, monkeypatch):
    """Guards against an entry point that fails on a row, and against figures without what they depend on.
    All rows but the slowest run, with 2 examples a step in place of 32, as on a processor with bf16."""
    monkeypatch.setenv(PRECISION_VARIABLE, "bf16")
    output = tmp_path / "results.json"
    names = [name for name in rows.ROWS if name != "start"]
    size = ["--scale", "0.01", "--batch_size", "2"]
    main(["--data_dir", str(SAMPLE), "--only", *names, *size, "--output", str(output)])
    printed = capsys.readouterr().out
    assert (
        "AdamW step, 22.7 M parameters" in printed and "\nshares of a SMART step in bf16: matrix " in printed
    )
    results = json.loads(output.read_text())
    bounds = {(row["what"], row["column"]): row["goal"]["bound"] for row in results["rows"]}
    assert {what for what, _ in bounds} == FIGURES.keys() - {"start to first step, SST"}
    assert len(bounds) == len(results["rows"]) == 4 * 4 + 6 + 1 + 4 * 2 + 2
    goals = [bound for bound in bounds.values() if bound is not None]
    assert sorted(goals) == sorted(
        [4.1, 2.6, 4.5, 2.9, 1.05, 1.6, 1.6, 2.8, 3.1, 0.58, 0.58] + [1.8, 1.1] * 2 + [1.2, 1.1]
    )
    assert all(row["ours"] > 0 and row["peer"] > 0 for row in results["rows"])
    assert sum(results["shares"][0]["shares"].values()) == pytest.approx(1)
    assert results["command"].startswith("python -m benchmarks --data_dir ")
    assert (results["precision"], results["precision_reason"]) == ("bf16", f"as {PRECISION_VARIABLE} says")
    assert {"processor", "bf16_instructions", "torch", "threads"} <= results["machine"].keys()


@pytest.mark.parametrize("loss", [peers.plain_loss, peers.smart_loss])
def test_the_peer_trains(loss):
    """Guards against a loss without gradients to the weights: it would cost less than a training step."""
    _, peer = rows.new_models()
    dataset = rows.training_data(SAMPLE / "sts-train.csv", "sts")
    loss(peer, dataset.task, collate(dataset, np.arange(2))).backward()
    without = {name for name, parameter in peer.named_parameters() if parameter.grad is None}
    others = [task for task in rows.TASKS if task != "sts"]
    assert without == {f"heads.{task}.{leaf}" for task in others for leaf in ("weight", "bias")}


def test_the_list_for_a_gpu_on_this_cpu(tmp_path, capsys, monkeypatch):
    """Guards against a list that the first user with a GPU is the first to run, and against one broken check
    that hides the others. What starts programs or a compiler has tests elsewhere."""

    def broken(setting):
        """Breaks."""
        raise RuntimeError("no such\nkernel image")

    monkeypatch.setitem(cuda.CHECKS, "memory", broken)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = tmp_path / "cuda.json"
    assert cuda.main(["--only", "memory", "parity", "synchronisations", "--output", str(output)]) == 1
    printed = capsys.readouterr().out
    assert "RuntimeError: no such kernel image" in printed and max(map(len, printed.splitlines()[:5])) <= 100
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "smart_pytorch", None)
    names = ["parity", "replay", "memory", "synchronisations", "flops"]
    assert cuda.main(["--only", *names, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    results = json.loads(output.read_text())
    verdicts = [check["verdict"] for check in results["checks"]]
    assert verdicts.count("ok") == 1 + 3 + 1 and verdicts.count("not run") == 3 + 1
    assert "FAILED" not in printed and "missed" not in printed and "smart_pytorch is not installed" in printed
    assert results["small"] and {"processor", "torch"} <= results["machine"].keys()


@pytest.mark.parametrize("wrong", ["parity", "replay", "synchronisations"])
def test_the_list_for_a_gpu_finds_what_is_wrong(wrong, monkeypatch, tmp_path):
    """Guards against checks that pass whatever the device does."""
    setting = device_checks.Setting(torch.device("cpu"), tmp_path)
    if wrong == "parity":
        runs = iter([[torch.tensor(1.0)], [torch.tensor(1.001)]])
        monkeypatch.setattr(device_checks, "take_steps", lambda *_, **__: next(runs))
        monkeypatch.setattr(device_checks, "new_learner", lambda *_, **__: None)
        setting = dataclasses.replace(setting, device=torch.device("cpu", 0))
    elif wrong == "replay":
        monkeypatch.setattr(device_checks, "DropoutReplay", lambda function: function)
    else:
        monkeypatch.setattr(device_checks, "take_steps", lambda *_: torch.zeros(1, device="meta").item())
    if wrong == "synchronisations":
        with pytest.raises(RuntimeError, match="meta"):
            device_checks.synchronisations(setting)
    else:
        found = cuda.CHECKS[wrong](setting)
        assert {check.verdict for check in found} == {"FAILED"}


def test_the_committed_list_is_without_a_failure():
    """Guards against a table that was typed, or measured before the code changed for the worse."""
    results = json.loads((cuda.HERE / "cuda.json").read_text())
    assert results["seconds"].keys() == cuda.CHECKS.keys()
    assert {check["verdict"] for check in results["checks"]} <= {"ok", "not run", "", "met", "missed"}
    shown = cuda.as_table([device_checks.Check(**check) for check in results["checks"]])
    assert shown in (cuda.HERE / "README.md").read_text(encoding="utf-8")


def test_growth_point(tmp_path):
    """Guards against a file shorter than it says, with which the time would seem to grow slowly."""
    path = tmp_path / "pairs.csv"
    growth.write_pairs(SAMPLE / "quora-train.csv", path, 450)
    assert len(read_examples(path, rows.TASKS["para"])) == 450
    assert growth.measure("pairs", 450, path)["seconds"] > 0
