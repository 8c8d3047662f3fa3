"""The records of the built-in tasks: labels, losses, divergences, probabilities, files, metrics by hand.

The tests go by tables of their own, so another task in tasks.TASKS changes nothing here.
"""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers import warnings_of
from tasks import TASKS, accuracy, class_label, macro_f1, pearson, spearman

ACCEPTED = {
    "sst": {"0": 0, "4": 4, "3.0": 3, "very negative": 0, "Neutral": 2, " VERY  positive ": 4},
    "cfimdb": {"0": 0, "1": 1, "negative": 0, "POSITIVE": 1},
    "para": {"0.0": 0, "1.0": 1, "1": 1, "not a paraphrase": 0, "Paraphrase": 1},
    "sts": {"0": 0, "3.8": 3.8, "5.0": 5, "4.999": 4.999},
}
REFUSED = {
    "sst": ["5", "-1", "2.5", "good"],
    "cfimdb": ["2", "-1", "0.5"],
    "para": ["2.0", "-1.0", "0.5"],
    "sts": ["5.001", "-0.001", "paraphrase"],
}
NO_NUMBERS = ("nan", "inf", "", "1,0")
LOG3 = math.log(3)  # sigmoid, and softmax beside a 0, give 3/4
LOSSES = {  # logits, labels, loss by hand
    "sst": ([[0.0] * 5, [0, 0, math.log(4), 0, 0]], [3.0, 2.0], (math.log(5) + math.log(2)) / 2),
    "cfimdb": ([[0.0, LOG3], [0.0, LOG3]], [1.0, 0.0], -(math.log(3 / 4) + math.log(1 / 4)) / 2),
    "para": ([[LOG3], [LOG3], [0.0]], [1.0, 0.0, 1.0], -math.log(3 / 4 * 1 / 4 * 1 / 2) / 3),
    "sts": ([[3.0], [1.0], [2.5]], [3.8, 0.0, 2.5], (0.64 + 1 + 0) / 3),
}
# Outputs of two rows, other outputs, the divergence. The second row's outputs agree and add 0.
# KL(P‖Q) + KL(Q‖P) is the sum over classes of (p - q) log(p / q). KL one way only would be another number.
LOG4 = math.log(4)  # softmax(0, log 4, 0, 0, 0) gives 1/8, 1/2, 1/8, 1/8, 1/8
DIVERGENCES = {
    "sst": ([[0, LOG4, 0, 0, 0], [1, 2, 3, 4, 5]], [[0, 0, 0, 0, 0], [1, 2, 3, 4, 5]], 0.3 * LOG4 / 2),
    "cfimdb": ([[0, LOG3], [1, 2]], [[0, 0], [1, 2]], 0.25 * LOG3 / 2),
    "para": ([[LOG3], [1]], [[0], [1]], 0.25 * LOG3 / 2),
    "sts": ([[3], [1]], [[1], [1]], 2**2 / 2),
}
# header, beginning of the file names, metrics of which the first counts in the dev mean
FILES = {
    "sst": ("Predicted_Sentiment", "ids-sst", ["accuracy", "macro_f1"]),
    "cfimdb": ("Predicted_Sentiment", "ids-cfimdb", ["accuracy", "macro_f1"]),
    "para": ("Predicted_Is_Paraphrase", "quora", ["accuracy", "macro_f1"]),
    "sts": ("Predicted_Similiary", "sts", ["pearson", "spearman"]),  # spelled as the course spells it
}
BUILT_IN = list(FILES)


@pytest.mark.parametrize("task", BUILT_IN)
def test_labels(task):
    """Guards against `1.0` refused where an integer is meant, 3.8 cut to 3, names numbered in another order
    than the model's outputs, and a label out of range, which ends in an index error or trains nonsense."""
    read_label = TASKS[task].read_label
    for text, label in ACCEPTED[task].items():
        found = read_label(text)
        assert type(found) is float and found == label, text
    for text in (*REFUSED[task], *NO_NUMBERS):
        with pytest.raises(ValueError, match="is not one of 0 |out of range or not a number"):
            pytest.fail(f"{text!r} was read as {read_label(text)}")


def test_a_new_task_reads_its_names_by_its_record_alone():
    """Guards against names that are written down in a second place, and a message that nobody can read."""
    names = tuple(f"intent {i}" for i in range(77))
    many = replace(TASKS["sst"], parse_label=class_label(77), label_names=names)
    assert many.read_label("Intent 76") == 76.0
    with pytest.raises(
        ValueError, match=r"sentiment 'intent 77' is not one of 0 \(intent 0\), .*…$"
    ) as error:
        many.read_label("intent 77")
    assert len(str(error.value)) < 250


@pytest.mark.parametrize("task", BUILT_IN)
def test_losses_and_divergences_by_hand(task):
    """Guards against another task's loss, (B,) broadcast over (B,1), a sum for the mean, labels cut to
    integers, a loss in bf16, which has three digits, and a divergence that is not the paper's ℓ_s: KL one
    way, half a squared error, a sum."""
    logits, labels, expected = LOSSES[task]
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 0.02)):
        loss = TASKS[task].loss(torch.tensor(logits, dtype=dtype), torch.tensor(labels))
        assert loss.ndim == 0 and loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected, rel=tolerance)
    *outputs, expected = DIVERGENCES[task]
    a, b = (torch.tensor(values, dtype=torch.float32) for values in outputs)
    assert TASKS[task].divergence(a, b).item() == pytest.approx(expected, rel=1e-6)
    assert TASKS[task].divergence(b, a).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("task", "logits", "expected"),
    [
        ("sst", [[0, LOG4, 0, 0, 0], [0, 0, 0, 0, 0]], [[0.125, 0.5, 0.125, 0.125, 0.125], [0.2] * 5]),
        ("cfimdb", [[0, LOG3], [5, 5]], [[1 / 4, 3 / 4], [1 / 2, 1 / 2]]),
        ("para", [[LOG3], [-LOG3], [0]], [[1 / 4, 3 / 4], [3 / 4, 1 / 4], [1 / 2, 1 / 2]]),
    ],
)
def test_probabilities_by_hand(task, logits, expected):
    """Guards against probabilities of the other label, and against shares of the batch: a confident answer
    that is wrong."""
    found = TASKS[task].probabilities(torch.tensor(logits, dtype=torch.float32))
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("task", BUILT_IN)
def test_names_files_and_metrics(task):
    """Guards against a renamed file or header, which only the course's grader would notice, and against
    model selection by the wrong metric."""
    record = TASKS[task]
    header, stem, metrics = FILES[task]
    assert (record.name, record.prediction_column, list(record.metrics)) == (task, header, metrics)
    files = [record.filename(split) for split in ("train", "dev", "test")]
    assert files == [f"{stem}-train.csv", f"{stem}-dev.csv", f"{stem}-test-student.csv"]


@pytest.mark.parametrize(
    ("metric", "predictions", "labels", "expected"),
    [
        (accuracy, [0, 1, 2, 3], [0, 1, 2, 4], 0.75),
        (macro_f1, [0, 1, 1, 1], [0, 0, 1, 2], (2 / 3 + 1 / 2 + 0) / 3),
        (macro_f1, [0, 0, 0], [0, 0, 1], (4 / 5 + 0) / 2),
        (pearson, [1, 2, 3], [1, 2, 4], 3 / math.sqrt(28 / 3)),
        (pearson, [1, 2, 3], [30, 20, 10], -1.0),
        (spearman, [1, 2, 3], [1, 10, 1000], 1.0),
        (spearman, [1, 2, 2, 4], [1, 3, 2, 4], 4.5 / math.sqrt(4.5 * 5)),
    ],
)
def test_metrics_by_hand(metric, predictions, labels, expected):
    """Guards against swapped arguments, a weighted in place of a plain mean, and ranks that ignore ties."""
    value = metric(np.float32(predictions), np.float32(labels))
    assert type(value) is float and value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", [pearson, spearman])
@pytest.mark.parametrize(
    ("predictions", "labels", "said"),
    [
        ([2.1, 2.1, 2.1], [1.0, 2.0, 3.0], "the predictions are constant"),
        ([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], "the labels are constant"),
        ([np.nan, 1.0, 2.0], [1.0, 2.0, 3.0], "not finite"),
    ],
)
def test_undefined_correlation_is_0_with_a_warning(caplog, metric, predictions, labels, said):
    """Guards against NaN in a score: no comparison with NaN is true, so no epoch would be the best."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scipy's and numpy's; ours goes to the log
        assert metric(np.float32(predictions), np.float32(labels)) == 0.0
    (warned,) = warnings_of(caplog)
    assert said in warned


def test_the_threshold_of_the_untrained_cosine_by_hand():
    """Guards against a baseline that is no baseline: a threshold from dev, or the worst one.

    With (.5 + .7) / 2 seven of the eight training rows are right, with any other threshold fewer.
    """
    train = np.array([0.9, 0.5, 0.7, 0.2, 0.4, 0.95, 0.45, 0.8])
    labels = np.array([1, 0, 1, 0, 1, 1, 0, 1])
    dev = np.array([0.59, 0.61, 0.3, 0.95], dtype=np.float32)
    assert TASKS["para"].from_cosines(train, labels, dev).tolist() == [0, 1, 0, 1]
