"""What a person would want to hear of: runs that go through and learn nothing."""

import csv
import math

import pytest
import torch

from helpers import SAMPLE, warnings_of
from run_files import load_data
from tasks import TASKS, constant_loss


@pytest.mark.parametrize(
    ("task", "labels", "loss"),
    [
        ("sst", [0, 0, 1], math.log(3) - 2 / 3 * math.log(2)),
        ("sst", [0, 1, 2, 3, 4], math.log(5)),
        ("para", [0, 0, 0, 1], math.log(4) - 3 / 4 * math.log(3)),
        ("sts", [0, 1, 5], 14 / 3),
    ],
)
def test_the_loss_of_a_constant_prediction_by_hand(task, labels, loss):
    """Guards against a warning that compares with something else: entropy or variance."""
    assert constant_loss(TASKS[task], torch.tensor(labels).float()) == pytest.approx(loss, abs=2e-4)


def own_file(folder, **columns) -> str:
    """sst's training file of the sample with some columns set to one value."""
    with (SAMPLE / "ids-sst-train.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t")
        writer.writeheader()
        writer.writerows(row | columns for row in rows)
    return str(folder / "train.csv")


@pytest.mark.parametrize(
    ("columns", "flags"), [({"sentiment": "3"}, []), ({}, ["--head_lr", "1"])], ids=["labels", "rate"]
)
def test_a_run_that_learns_nothing_says_so(main, tmp_path, caplog, columns, flags):
    """Guards against hours of training on a file, or with a rate, that teaches nothing, without a word."""
    run = ["--tasks", "sst", "--epochs", 1, "--steps_per_epoch", 4, "--data_dir", SAMPLE]
    run += ["--output_dir", tmp_path / "run"]
    assert main(*run, *flags, "--sst_train", own_file(tmp_path, **columns)) == 0
    said = "sst: after 4 steps its training loss is"
    assert len([line for line in caplog.messages if said in line]) == 1


@pytest.mark.parametrize(
    ("text", "split", "said"),
    [
        ("😀", "train", "100 %"),
        ("我喜欢这部电影", "train", "71 %"),  # of the 7, MiniLM's vocabulary has 我 and 部
        ("a b c d 😀", "train", "20 %"),
        ("a b c d e 😀", "train", ""),
        ("😀", "dev", ""),
        ("😀", "unlabelled", "100 %"),
    ],
)
def test_texts_that_the_encoder_cannot_read(tokenizer, tmp_path, caplog, text, split, said):
    """Guards against hours of training on [UNK], as emoji and other scripts are read, without a word."""
    file = tmp_path / "texts.csv"
    file.write_text(f"id\tsentence\tsentiment\n1\t{text}\t3\n2\t{text}\t1\n", encoding="utf-8")
    load_data({("sst", split): file}, TASKS, tokenizer, 64, {})
    words = f"{file}: {said} of the word pieces are [UNK], which the encoder cannot read"
    expected = f"{words}; for example {text!r}"
    assert warnings_of(caplog) == ([expected] if said else [])
