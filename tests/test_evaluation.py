"""Metrics against scipy, scikit-learn and pencil; prediction files byte by byte; the table of tasks."""

import logging
import math
import os
import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import torch.nn.functional as F

from datasets import TokenizedDataset
from evaluation import (
    accuracy,
    macro_f1,
    outputs,
    pearson,
    score,
    spearman,
    write_predictions,
)
from support.errors import UserError
from tasks import TASKS

CPU = torch.device("cpu")


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def dataset_of(task: str, rows: list[list[int]]) -> TokenizedDataset:
    lengths = np.array([len(row) for row in rows])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = [f"id{i}" for i in range(len(rows))]
    return TokenizedDataset(TASKS[task], ids, None, np.concatenate(rows).astype(np.int32), starts, lengths, 0)


# ------------------------------------------------------------------------------------------ metrics


@pytest.mark.parametrize(
    ("metric", "predictions", "labels", "expected"),
    [
        (accuracy, [0, 1, 2, 3], [0, 1, 2, 4], 0.75),
        (accuracy, [1.0, 0.0], [1, 0], 1.0),
        (accuracy, [1], [0], 0.0),
        (macro_f1, [0, 1, 1, 1], [0, 0, 1, 2], (2 / 3 + 1 / 2 + 0) / 3),
        (macro_f1, [0.0, 0.0, 0.0], [0.0, 0.0, 1.0], (4 / 5 + 0) / 2),
        (macro_f1, [0, 3], [0, 0], (2 / 3 + 0) / 2),
        (pearson, [1, 2, 3], [1, 2, 4], 3 / math.sqrt(28 / 3)),
        (pearson, [1, 2, 3], [30, 20, 10], -1.0),
        (spearman, [1, 2, 3], [1, 10, 1000], 1.0),
        (spearman, [1, 2, 2, 4], [1, 3, 2, 4], 4.5 / math.sqrt(4.5 * 5)),
    ],
)
def test_metrics_by_hand(metric, predictions, labels, expected):
    """Guards against swapped arguments, a weighted in place of a plain mean, and ranks that ignore ties."""
    assert metric(np.array(predictions), np.array(labels)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("metric", "reference"),
    [
        (accuracy, lambda predictions, labels: sklearn.metrics.accuracy_score(labels, predictions)),
        (
            macro_f1,
            lambda predictions, labels: sklearn.metrics.f1_score(labels, predictions, average="macro"),
        ),
        (pearson, lambda predictions, labels: scipy.stats.pearsonr(predictions, labels)[0]),
        (pearson, lambda predictions, labels: np.corrcoef(predictions, labels)[0, 1]),
        (spearman, lambda predictions, labels: scipy.stats.spearmanr(predictions, labels)[0]),
    ],
)
def test_metrics_are_those_of_scipy_and_sklearn(metric, reference, seed):
    """Guards against home-made statistics; float32 with ties, as a model and a label file give them."""
    predictions, labels = np.random.default_rng(seed).integers(0, 5, (2, 60)).astype(np.float32)
    value = metric(predictions, labels)
    assert type(value) is float and value == pytest.approx(reference(predictions, labels), abs=1e-7)


@pytest.mark.parametrize("metric", [pearson, spearman])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_correlation_with_a_number_that_is_none(caplog, metric, bad):
    """Guards against NaN in the results, which no epoch can beat or be beaten by."""
    assert metric(np.array([bad, 1.0, 2.0]), np.array([1.0, 2.0, 3.0])) == 0.0
    assert "not finite" in warnings_of(caplog)[0]


def test_accuracy_does_not_broadcast():
    """Guards against (B,) compared with (B,1), which is a (B,B) table."""
    with pytest.raises(ValueError, match="shapes"):
        accuracy(np.zeros(3), np.zeros((3, 1)))


@pytest.mark.parametrize("metric", [pearson, spearman])
@pytest.mark.parametrize(
    ("predictions", "labels", "constant"),
    [
        ([2.5, 2.5, 2.5], [1.0, 2.0, 3.0], "predictions"),
        ([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], "labels"),
        ([1.0, 1.0], [2.0, 2.0], "predictions"),
        ([1.0], [2.0], "predictions"),
        ([0.1] * 7, [0, 1, 2, 3, 4, 5, 5], "predictions"),
    ],
)
def test_undefined_correlation_is_0_with_a_warning(caplog, metric, predictions, labels, constant):
    """Guards against NaN in a score: no comparison with it is ever true, so no epoch would be the best."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # ours is the only one
        assert metric(np.float32(predictions), np.float32(labels)) == 0.0
    assert len(warnings_of(caplog)) == 1 and f"the {constant} are constant" in caplog.text


@pytest.mark.parametrize("metric", [pearson, spearman])
def test_defined_correlation_does_not_warn(caplog, metric):
    """Guards against a warning that is always there, and so never read."""
    metric(np.float32([1, 2, 3]), np.float32([1, 3, 2]))
    assert warnings_of(caplog) == []


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("sst", {"accuracy": 2 / 3, "macro_f1": (1 + 1 + 0 + 0) / 4}),
        ("cfimdb", {"accuracy": 2 / 3, "macro_f1": (1 + 1 + 0 + 0) / 4}),
        ("para", {"accuracy": 2 / 3, "macro_f1": (1 + 1 + 0 + 0) / 4}),
        ("sts", {"pearson": 3 / math.sqrt(28 / 3), "spearman": 1.0}),
    ],
)
def test_score_names_the_main_metric_first(task, expected):
    """Guards against model selection by the wrong metric: the first counts in the dev mean."""
    scores = score(TASKS[task], np.float32([1, 2, 3]), np.float32([1, 2, 4]))
    assert list(scores) == list(expected) and TASKS[task].main_metric == next(iter(expected))
    assert scores == pytest.approx(expected)


# -------------------------------------------------------------------------------------- predictions


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
@pytest.mark.parametrize("task", TASKS)
def test_predictions_are_in_file_order(task, batch_size):
    """Guards against predictions left in the order of the batches, where every row would get another row's
    score."""
    lengths = np.random.default_rng(0).permutation(20) % 9 + 1
    rows = [[1000 + i] * int(length) for i, length in enumerate(lengths)]
    width = TASKS[task].num_outputs

    def logits(batch):
        assert not torch.is_grad_enabled()
        totals = (
            batch.input_ids.sum(1)
            if batch.attention_mask is None
            else (batch.input_ids * batch.attention_mask).sum(1)
        )
        if width > 1:
            return F.one_hot(totals % width, width).float()
        return (totals % 7 - 3.5)[:, None]

    predictions = TASKS[task].predict(outputs(logits, dataset_of(task, rows), batch_size, CPU)).numpy()
    totals = np.array([sum(row) for row in rows])
    by_hand = {"para": totals % 7 > 3, "sts": totals % 7 - 3.5}.get(task, totals % width)
    assert predictions.shape == (20,) and np.array_equal(predictions, by_hand)


HEADERS = {
    "sst": "Predicted_Sentiment",
    "cfimdb": "Predicted_Sentiment",
    "para": "Predicted_Is_Paraphrase",
    "sts": "Predicted_Similiary",
}


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
    """Guards against a file that the course's grader does not read: its spaces, its types, its spelling."""
    path = tmp_path / "new" / "folder" / "out.csv"
    predictions = TASKS[task].predict(torch.tensor(logits, dtype=torch.float32)).numpy()
    write_predictions(path, TASKS[task].prediction_column, ["a1", "b2", "ü3"], predictions)
    rows = "".join(f"{id} , {value} \n" for id, value in zip(("a1", "b2", "ü3"), values, strict=True))
    assert path.read_bytes() == f"id \t {HEADERS[task]} \n{rows}".encode()
    assert os.listdir(path.parent) == ["out.csv"]


def test_prediction_file_replaces_an_older_one(tmp_path):
    """Guards against lines of an older, longer file left at the end."""
    path = tmp_path / "out.csv"
    write_predictions(path, "X", ["a", "b", "c"], np.arange(3))
    write_predictions(path, "X", ["d"], np.arange(1))
    assert path.read_bytes() == b"id \t X \nd , 0 \n"


@pytest.mark.parametrize("ids", [["a"], ["a", "b", "c"], []])
def test_another_number_of_ids_is_an_error(tmp_path, ids):
    """Guards against predictions dropped, or filed under the wrong rows, without a word."""
    with pytest.raises(ValueError, match="shorter|longer"):
        write_predictions(tmp_path / "out.csv", "X", ids, np.arange(2))
    assert os.listdir(tmp_path) == []


def parent_is_a_file(folder, monkeypatch):
    (folder / "out").write_text("a file")
    return folder / "out" / "predictions.csv"


def target_is_a_folder(folder, monkeypatch):
    (folder / "out").mkdir()
    return folder / "out"


def rename_fails(folder, monkeypatch):
    def replace(*paths):
        raise OSError(28, "No space left on device")

    (folder / "out").write_text("an older file")
    monkeypatch.setattr(os, "replace", replace)
    return folder / "out"


@pytest.mark.parametrize(
    "obstacle",
    [parent_is_a_file, target_is_a_folder, rename_fails],
)
def test_nothing_is_half_written(tmp_path, monkeypatch, obstacle):
    """Guards against a torn file taken for a whole one, and against a traceback in place of the path."""
    path = obstacle(tmp_path, monkeypatch)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(UserError) as error:
        write_predictions(path, "X", ["a"], np.arange(1))
    assert str(error.value).startswith(f"{path}: cannot be written (")
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


# -------------------------------------------------------------------------------------------- tasks

ACCEPTED = {
    "sst": {"0": 0, "4": 4, "3.0": 3},
    "cfimdb": {"0": 0, "1": 1},
    "para": {"0.0": 0, "1.0": 1, "1": 1},
    "sts": {"0": 0, "3.8": 3.8, "5.0": 5, "4.999": 4.999},
}
REFUSED = {
    "sst": ["5", "-1", "2.5", "4.0001"],
    "cfimdb": ["2", "-1", "0.5"],
    "para": ["2.0", "-1.0", "0.5"],
    "sts": ["5.001", "-0.001", "6"],
}


@pytest.mark.parametrize(
    ("task", "text", "label"), [(task, *pair) for task in TASKS for pair in ACCEPTED[task].items()]
)
def test_labels_accepted(task, text, label):
    """Guards against `1.0` refused where an integer is meant, and 3.8 cut to 3."""
    parsed = TASKS[task].parse_label(text)
    assert type(parsed) is float and parsed == label


@pytest.mark.parametrize(
    ("task", "text"),
    [
        (task, text)
        for task in TASKS
        for text in [*REFUSED[task], "nan", "inf", "-inf", "", "two", "1,0", "0x1"]
    ],
)
def test_labels_refused(task, text):
    """Guards against a label outside the range: an index error at best, a loss that means nothing at
    worst."""
    with pytest.raises(ValueError):
        TASKS[task].parse_label(text)


LOG3 = math.log(3)  # sigmoid and two-class softmax give 3/4
LOSSES = {  # logits, labels, loss by hand
    "sst": ([[0.0] * 5, [0, 0, math.log(4), 0, 0]], [3.0, 2.0], (math.log(5) + math.log(2)) / 2),
    "cfimdb": ([[0.0, LOG3], [0.0, LOG3]], [1.0, 0.0], -(math.log(3 / 4) + math.log(1 / 4)) / 2),
    "para": (
        [[LOG3], [LOG3], [0.0]],
        [1.0, 0.0, 1.0],
        -(math.log(3 / 4) + math.log(1 / 4) + math.log(1 / 2)) / 3,
    ),
    "sts": ([[3.0], [1.0], [2.5]], [3.8, 0.0, 2.5], (0.64 + 1 + 0) / 3),
}


@pytest.mark.parametrize("task", TASKS)
def test_losses_by_hand(task):
    """Guards against (B,) broadcast over (B,1), sums in place of means, and labels cut to integers."""
    logits, labels, expected = LOSSES[task]
    assert TASKS[task].loss(torch.tensor(logits), torch.tensor(labels)).item() == pytest.approx(
        expected, rel=1e-6
    )


TORCH_LOSSES = {
    "sst": lambda logits, labels: torch.nn.CrossEntropyLoss()(logits, labels.long()),
    "cfimdb": lambda logits, labels: torch.nn.CrossEntropyLoss()(logits, labels.long()),
    "para": lambda logits, labels: torch.nn.BCELoss()(
        logits[:, 0].double().sigmoid(), labels.double()
    ).float(),
    "sts": lambda logits, labels: torch.nn.MSELoss()(logits[:, 0], labels),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("task", TASKS)
def test_losses_are_those_of_torch_in_fp32(task, dtype):
    """Guards against a loss computed in bfloat16, with three digits."""
    generator = torch.Generator().manual_seed(0)
    outputs = TASKS[task].num_outputs
    logits = torch.randn(9, outputs, generator=generator).to(dtype)
    labels = torch.randint(0, max(outputs, 2), (9,), generator=generator).float()
    loss = TASKS[task].loss(logits, labels)
    assert loss.dtype == torch.float32 and loss.ndim == 0
    torch.testing.assert_close(loss, TORCH_LOSSES[task](logits.float(), labels))


@pytest.mark.parametrize(
    ("task", "logits", "expected"),
    [
        ("sst", [[0, 1, 0, 0, 0], [-5, -4, -3, -2, -1], [9, 1, 1, 1, 1]], [1, 4, 0]),
        ("cfimdb", [[0, 1], [0, -1], [-2, -1]], [1, 0, 1]),
        ("para", [[0.1], [-0.1], [0.6], [-3]], [1, 0, 1, 0]),
        ("sts", [[3.75], [-1.5], [6.0]], [3.75, -1.5, 6.0]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predict_of_hand_made_logits(task, logits, expected, dtype):
    """Guards against the threshold of a probability (.5) put on a logit, and an argmax over the batch."""
    predictions = TASKS[task].predict(torch.tensor(logits, dtype=dtype))
    assert predictions.shape == (len(logits),) and predictions.numpy().tolist() == expected


@pytest.mark.parametrize("task", TASKS)
def test_each_task_has_a_name_a_header_and_its_course_files(task):
    """Guards against a renamed file or header, which only the grader would notice."""
    stem = {"sst": "ids-sst", "cfimdb": "ids-cfimdb", "para": "quora", "sts": "sts"}[task]
    record = TASKS[task]
    assert record.name == task and record.prediction_column == HEADERS[task]
    assert [record.filename(split) for split in ("train", "dev", "test")] == [
        f"{stem}-train.csv",
        f"{stem}-dev.csv",
        f"{stem}-test-student.csv",
    ]
