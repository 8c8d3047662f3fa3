"""Prediction files byte by byte."""

import os

import numpy as np
import pytest
import torch

from datasets import TokenizedDataset
from evaluation import outputs, write_predictions
from support.errors import UserError
from tasks import TASKS


def test_no_rows_are_no_logits():
    """Guards against an error at the end of a run, for a rank without batches."""
    none = np.zeros(0, np.int64)
    empty = TokenizedDataset(TASKS["sst"], [], None, none.astype(np.int32), np.zeros(1, np.int64), none, 0)
    assert outputs(lambda batch: batch.input_ids, empty, 8, torch.device("cpu")).shape == (0, 5)


# "Similiary" is spelled as the course spells it.
@pytest.mark.parametrize(
    ("task", "header", "logits", "values"),
    [
        ("sst", "Predicted_Sentiment", [[0, 1, 0, 0, 0], [-5, -4, -3, -2, -1]], ["1", "4"]),
        ("cfimdb", "Predicted_Sentiment", [[0, 1], [0, -1], [-2, -1]], ["1", "0", "1"]),
        # an even chance is no paraphrase
        ("para", "Predicted_Is_Paraphrase", [[0.1], [-0.1], [0.0], [1e-30]], ["1.0", "0.0", "0.0", "1.0"]),
        ("sts", "Predicted_Similiary", [[3.8], [-0.25], [6.0]], ["3.8", "-0.25", "6.0"]),
    ],
)
def test_prediction_file_byte_by_byte(tmp_path, task, header, logits, values):
    """Guards against a file that the course's grader cannot read because of its spaces, types or spelling,
    a probability's threshold (.5) applied to a logit, and an argmax over the batch."""
    path = tmp_path / "new" / "folder" / "out.csv"
    predictions = TASKS[task].predict(torch.tensor(logits, dtype=torch.float32)).numpy()
    ids = ["a1", "ü2", "x3", "x4"][: len(values)]
    write_predictions(path, TASKS[task].prediction_column, ids, predictions)
    rows = "".join(f"{id} , {value} \n" for id, value in zip(ids, values, strict=True))
    assert path.read_bytes() == f"id \t {header} \n{rows}".encode()
    assert os.listdir(path.parent) == ["out.csv"]


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
