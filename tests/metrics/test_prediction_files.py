"""Predictions in the order of the file, and prediction files byte by byte."""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from built_in_tasks import BUILT_IN, HEADERS
from datasets import TokenizedDataset
from evaluation import outputs, write_predictions
from support.errors import UserError
from tasks import TASKS


def dataset_of(task: str, rows: list[list[int]]) -> TokenizedDataset:
    lengths = np.array([len(row) for row in rows])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = [f"id{i}" for i in range(len(rows))]
    return TokenizedDataset(TASKS[task], ids, None, np.concatenate(rows).astype(np.int32), starts, lengths, 0)


@pytest.mark.parametrize("batch_size", [3, 100])
@pytest.mark.parametrize("task", BUILT_IN)
def test_predictions_are_in_file_order(task, batch_size):
    """Guards against predictions left in the order of the batches: each row would get another row's score."""
    lengths = np.random.default_rng(0).permutation(20) % 9 + 1
    rows = [[1000 + i] * int(length) for i, length in enumerate(lengths)]
    width = TASKS[task].num_outputs

    def logits(batch):
        assert not torch.is_grad_enabled()
        mask = 1 if batch.attention_mask is None else batch.attention_mask
        totals = (batch.input_ids * mask).sum(1)
        if width > 1:
            return F.one_hot(totals % width, width).float()
        return (totals % 7 - 3.5)[:, None]

    found = outputs(logits, dataset_of(task, rows), batch_size, torch.device("cpu"))
    predictions = TASKS[task].predict(found).numpy()
    totals = np.array([sum(row) for row in rows])
    by_hand = {"para": totals % 7 > 3, "sts": totals % 7 - 3.5}.get(task, totals % width)
    assert predictions.shape == (20,) and np.array_equal(predictions, by_hand)


def test_no_rows_are_no_logits():
    """Guards against an error at the end of a run, for a process without batches."""
    none = np.zeros(0, np.int64)
    empty = TokenizedDataset(TASKS["sst"], [], None, none.astype(np.int32), np.zeros(1, np.int64), none, 0)
    assert outputs(lambda batch: batch.input_ids, empty, 8, torch.device("cpu")).shape == (0, 5)


@pytest.mark.parametrize(
    ("task", "logits", "values"),
    [
        ("sst", [[0, 0, 0, 2, 1], [1, 0, 0, 0, 0], [-1, -2, -3, -4, 0]], ["3", "0", "4"]),
        ("cfimdb", [[0, 1], [1, 0], [-1, 2]], ["1", "0", "1"]),
        ("para", [[2], [-2], [0.001]], ["1.0", "0.0", "1.0"]),
        ("sts", [[3.8], [-0.25], [5]], ["3.8", "-0.25", "5.0"]),
    ],
)
def test_prediction_file_byte_by_byte(tmp_path, task, logits, values):
    """Guards against a file that the course's grader cannot read because of its spaces, types or spelling."""
    path = tmp_path / "new" / "folder" / "out.csv"
    predictions = TASKS[task].predict(torch.tensor(logits, dtype=torch.float32)).numpy()
    write_predictions(path, TASKS[task].prediction_column, ["a1", "b2", "ü3"], predictions)
    rows = "".join(f"{id} , {value} \n" for id, value in zip(("a1", "b2", "ü3"), values, strict=True))
    assert path.read_bytes() == f"id \t {HEADERS[task]} \n{rows}".encode()
    assert os.listdir(path.parent) == ["out.csv"]


@pytest.mark.parametrize("ids", [["a"], ["a", "b", "c"]])
def test_another_number_of_ids_is_an_error(tmp_path, ids):
    """Guards against predictions dropped, or filed under the wrong rows, without a word."""
    with pytest.raises(ValueError, match="shorter|longer"):
        write_predictions(tmp_path / "out.csv", "X", ids, np.arange(2))
    assert os.listdir(tmp_path) == []


def test_nothing_is_half_written(tmp_path, monkeypatch):
    """Guards against half a file taken for a whole one, and against a traceback where the path belongs."""

    def full_disk(*paths):
        raise OSError(28, "No space left on device")

    path = tmp_path / "out.csv"
    path.write_text("an older file")
    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(UserError, match="out.csv: cannot be written .No space left on device"):
        write_predictions(path, "X", ["a"], np.arange(1))
    assert path.read_text() == "an older file" and os.listdir(tmp_path) == ["out.csv"]
