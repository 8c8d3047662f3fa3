"""Tests of benchmarks/: both sides compute the same, samples and ratios are what they claim. No test looks at
what a clock said."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluation
from benchmarks import growth, peers, rows
from benchmarks.__main__ import main
from benchmarks.measure import GROUPS, Goal, apart, compare, evenly, take_turns
from datasets import collate, read_examples

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "sample"


@pytest.fixture(scope="module")
def models():
    ours, peer = rows.new_models()
    return ours.eval(), peer.eval()


@pytest.mark.parametrize("name", ["sst", "para"])
def test_the_peer_is_the_same_model(models, name):
    """Were the peer given other weights, another head or a mask it misreads, its speed would say nothing
    about ours."""
    ours, peer = models
    dataset = rows.training_data(SAMPLE / f"{'ids-sst' if name == 'sst' else 'quora'}-train.csv", name)
    batch = collate(dataset, np.arange(4))
    with torch.no_grad():
        logits = peer(
            name, batch.attention_mask, input_ids=batch.input_ids, token_type_ids=batch.token_type_ids
        )
        torch.testing.assert_close(logits, ours(name, *batch.inputs), atol=1e-5, rtol=1e-4)


def test_the_peer_reads_the_same_tokens():
    """A peer that cut, skipped or joined texts in another way would have more or less to do."""
    setting, task = rows.Setting(SAMPLE), rows.TASKS["para"]
    ours = rows.training_data(setting.path("para", "train"), "para")
    theirs, labels = peers.read_and_tokenize(
        setting.path("para", "train"), task, peers.load_tokenizer(), rows.MAX_LENGTH
    )
    assert np.array_equal(np.concatenate(theirs["input_ids"]), ours.tokens)
    assert labels == ours.labels.tolist()


def test_the_peer_predicts_the_same(models):
    """Predictions left in the order of length would not be predictions of the file."""
    ours, peer = models
    task, tokenizer = rows.TASKS["sst"], rows.load_tokenizer()
    examples = read_examples(SAMPLE / task.filename("test"), task, labelled=False)[:8]
    theirs = peers.predict(peer, peers.load_tokenizer(), task, examples, 3, rows.MAX_LENGTH)
    mine = evaluation.predict(
        ours, rows.tokenize(examples, task, tokenizer, rows.MAX_LENGTH), rows.PLAIN.batch_size
    )
    assert np.array_equal(theirs, mine)


@pytest.mark.parametrize("name", ["sst", "para"])
def test_sentence_transformers_has_the_same_to_do(models, name):
    """Were it given other tokens, other weights or a part of the rows, its speed would say nothing about
    ours."""
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
        torch.testing.assert_close(
            given, torch.nn.functional.normalize((hidden * real).sum(1)), atol=1e-5, rtol=1e-4
        )


def test_a_sample_of_batches_is_even():
    """A sample with more than its share of short batches would flatter whoever pads least; so would a part of
    it."""
    lengths = np.arange(240) + 1
    batches = [np.array([row]) for row in np.random.default_rng(0).permutation(240)]
    sample = np.concatenate(evenly(batches, lengths, 12 * GROUPS))
    assert len(set(sample.tolist())) == 12 * GROUPS
    assert abs(sample.mean() - 119.5) < 3
    assert all(abs(part.mean() - 119.5) < 10 for part in np.split(sample, GROUPS))


def test_ratios_are_of_sums():
    """A mean of ratios would let a short round count as much as a long one; a ratio upside down would turn
    missed into met."""
    seconds = np.array([[1.0, 2.0], [3.0, 4.0]])
    speed = compare("", "rows/s", Goal("speed", 1.5), seconds, 6)
    assert (speed.ours, speed.peer, speed.ratio) == (3.0, 2.0, 1.5)
    assert (speed.low, speed.high) == pytest.approx((4 / 3, 2.0))
    assert speed.goal.met(speed.ratio)
    duration = compare("", "s", Goal("time", 0.6), seconds)
    assert (duration.ours, duration.peer, duration.ratio) == (2.0, 3.0, pytest.approx(2 / 3))
    assert not duration.goal.met(duration.ratio)


def test_contenders_take_turns():
    """Measured one after the other instead, each would see the machine at another speed."""
    calls = []
    seconds = take_turns(2, lambda k: calls.append(("a", k)), lambda k: calls.append(("b", k)))
    assert calls == [("a", 1), ("b", 1), ("a", 0), ("b", 0), ("a", 1), ("b", 1)]  # first the untimed ones
    assert seconds.shape == (2, 2)


def remembering(path: str):
    """A contender that writes down its process and what it is called with."""

    def call(k: int) -> None:
        with open(path, "a") as file:
            file.write(f"{os.getpid()} {k}\n")

    return call


def test_contenders_apart(tmp_path, capfd):
    """Guards against sides that share a process after all, calls that are lost, and a measurement that hangs
    when a side has failed."""
    path = tmp_path / "calls"
    with apart((remembering, str(path)), (remembering, str(path))) as contenders:
        take_turns(2, *contenders)
    calls = [line.split() for line in path.read_text().splitlines()]
    assert [k for _, k in calls] == list("110011")
    assert len({process for process, _ in calls} | {str(os.getpid())}) == 3
    with (
        pytest.raises(RuntimeError, match="has ended"),
        apart((remembering, str(tmp_path / "no" / "such" / "folder"))) as contenders,
    ):
        contenders[0](0)
    assert "FileNotFoundError" in capfd.readouterr().err


def test_program(tmp_path, capsys):
    """The entry point, on all rows but the slowest, with a step of two rows where a real one has 32."""
    output = tmp_path / "results.json"
    names = [name for name in rows.ROWS if name != "start"]
    main(
        [
            "--data_dir",
            str(SAMPLE),
            "--only",
            *names,
            "--scale",
            "0.01",
            "--batch_size",
            "2",
            "--output",
            str(output),
        ]
    )
    assert "AdamW step, 22.7 M parameters" in capsys.readouterr().out
    measured = json.loads(output.read_text())
    assert [row["goal"]["bound"] for row in measured["rows"]] == [2.5] * 4 + [3.0] * 4 + [
        1.05,
        2.75,
        3.1,
        0.6,
        0.6,
    ] + [1.2] * 5 + [1.1]
    assert all(row["ours"] > 0 and row["peer"] > 0 for row in measured["rows"])


@pytest.mark.parametrize("loss", [peers.plain_loss, peers.smart_loss])
def test_the_peer_trains(loss):
    """A loss cut off from the weights would cost less than a training step."""
    _, peer = rows.new_models()
    dataset = rows.training_data(SAMPLE / "sts-train.csv", "sts")
    loss(peer, dataset.task, collate(dataset, np.arange(2))).backward()
    without = {name for name, parameter in peer.named_parameters() if parameter.grad is None}
    assert without == {
        f"heads.{task}.{leaf}" for task in ("sst", "para", "cfimdb") for leaf in ("weight", "bias")
    }


def test_growth_point(tmp_path):
    """A point whose file is shorter than it says would make growth look mild."""
    path = tmp_path / "pairs.csv"
    growth.write_pairs(SAMPLE / "quora-train.csv", path, 450)
    assert len(read_examples(path, rows.TASKS["para"])) == 450
    assert growth.measure("pairs", 450, path)["seconds"] > 0
