"""Tests of benchmarks/: both sides compute the same,
and samples and ratios are what they claim. No test depends on measured times."""

import json
import os

import numpy as np
import pytest
import torch

import evaluation
from benchmarks import growth, peers, rows
from benchmarks.__main__ import main
from benchmarks.measure import GROUPS, Goal, compare, evenly, separate_processes, take_turns
from datasets import collate, read_examples
from helpers import SAMPLE


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
    """Guards against a sample, or a part of it, with too many short batches:
    it would favour the side that pads least."""
    lengths = np.arange(240) + 1
    batches = [np.array([row]) for row in np.random.default_rng(0).permutation(240)]
    sample = np.concatenate(evenly(batches, lengths, 12 * GROUPS))
    assert len(set(sample.tolist())) == 12 * GROUPS
    assert abs(sample.mean() - 119.5) < 3
    assert all(abs(part.mean() - 119.5) < 10 for part in np.split(sample, GROUPS))


def test_ratios_are_of_sums():
    """Guards against a mean of ratios, in which a short round counts as much as a long one,
    and against a ratio upside down, with which a missed goal is met."""
    seconds = np.array([[1.0, 2.0], [3.0, 4.0]])
    speed = compare("", "rows/s", Goal("speed", 1.5), seconds, 6)
    assert (speed.ours, speed.peer, speed.ratio) == (3.0, 2.0, 1.5)
    assert (speed.low, speed.high) == pytest.approx((4 / 3, 2.0))
    assert speed.goal.met(speed.ratio)
    duration = compare("", "s", Goal("time", 0.6), seconds)
    assert (duration.ours, duration.peer, duration.ratio) == (2.0, 3.0, pytest.approx(2 / 3))
    assert not duration.goal.met(duration.ratio)


def test_contenders_take_turns():
    """Guards against measuring one side after the other, when the machine may run at another speed."""
    calls = []
    seconds = take_turns(2, lambda k: calls.append(("a", k)), lambda k: calls.append(("b", k)))
    untimed = [("a", 1), ("b", 1)]
    timed = [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert calls == untimed + timed
    assert seconds.shape == (2, 2)


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


def test_program(tmp_path, capsys):
    """Guards against an entry point that fails on a row.
    All rows but the slowest run, with 2 examples a step in place of 32."""
    output = tmp_path / "results.json"
    names = [name for name in rows.ROWS if name != "start"]
    size = ["--scale", "0.01", "--batch_size", "2"]
    main(["--data_dir", str(SAMPLE), "--only", *names, *size, "--output", str(output)])
    assert "AdamW step, 22.7 M parameters" in capsys.readouterr().out
    measured = json.loads(output.read_text())
    bounds = [2.5] * 4 + [3.0] * 4 + [1.05, 2.75, 3.1, 0.6, 0.6] + [1.2] * 5 + [1.1]
    assert [row["goal"]["bound"] for row in measured["rows"]] == bounds
    assert all(row["ours"] > 0 and row["peer"] > 0 for row in measured["rows"])


@pytest.mark.parametrize("loss", [peers.plain_loss, peers.smart_loss])
def test_the_peer_trains(loss):
    """Guards against a loss without gradients to the weights: it would cost less than a training step."""
    _, peer = rows.new_models()
    dataset = rows.training_data(SAMPLE / "sts-train.csv", "sts")
    loss(peer, dataset.task, collate(dataset, np.arange(2))).backward()
    without = {name for name, parameter in peer.named_parameters() if parameter.grad is None}
    others = [task for task in rows.TASKS if task != "sts"]
    assert without == {f"heads.{task}.{leaf}" for task in others for leaf in ("weight", "bias")}


def test_growth_point(tmp_path):
    """Guards against a file shorter than it says, with which the time would seem to grow slowly."""
    path = tmp_path / "pairs.csv"
    growth.write_pairs(SAMPLE / "quora-train.csv", path, 450)
    assert len(read_examples(path, rows.TASKS["para"])) == 450
    assert growth.measure("pairs", 450, path)["seconds"] > 0
