"""Metrics against scipy, scikit-learn and pencil."""

import math
import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from helpers import warnings_of
from tasks import TASKS, accuracy, macro_f1, pearson, score, spearman


@pytest.mark.parametrize(
    ("metric", "predictions", "labels", "expected"),
    [
        (accuracy, [0, 1, 2, 3], [0, 1, 2, 4], 0.75),
        (macro_f1, [0, 1, 1, 1], [0, 0, 1, 2], (2 / 3 + 1 / 2 + 0) / 3),
        (macro_f1, [0.0, 0.0, 0.0], [0.0, 0.0, 1.0], (4 / 5 + 0) / 2),
        (pearson, [1, 2, 3], [1, 2, 4], 3 / math.sqrt(28 / 3)),
        (pearson, [1, 2, 3], [30, 20, 10], -1.0),
        (spearman, [1, 2, 3], [1, 10, 1000], 1.0),
        (spearman, [1, 2, 2, 4], [1, 3, 2, 4], 4.5 / math.sqrt(4.5 * 5)),
    ],
)
def test_metrics_by_hand(metric, predictions, labels, expected):
    """Guards against swapped arguments, a weighted in place of a plain mean, and ranks that ignore ties."""
    assert metric(np.array(predictions), np.array(labels)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("metric", "reference"),
    [
        (accuracy, lambda predictions, labels: sklearn.metrics.accuracy_score(labels, predictions)),
        (
            macro_f1,
            lambda predictions, labels: sklearn.metrics.f1_score(labels, predictions, average="macro"),
        ),
        (pearson, lambda predictions, labels: scipy.stats.pearsonr(predictions, labels)[0]),
        (spearman, lambda predictions, labels: scipy.stats.spearmanr(predictions, labels)[0]),
    ],
)
def test_metrics_are_those_of_scipy_and_sklearn(metric, reference):
    """Guards against home-made statistics, on float32 with ties: what a model and a label file give."""
    predictions, labels = np.random.default_rng(0).integers(0, 5, (2, 60)).astype(np.float32)
    value = metric(predictions, labels)
    assert type(value) is float and value == pytest.approx(reference(predictions, labels), abs=1e-7)


def test_accuracy_does_not_broadcast():
    """Guards against (B,) compared with (B,1), which gives a (B,B) table."""
    with pytest.raises(ValueError, match="shapes"):
        accuracy(np.zeros(3), np.zeros((3, 1)))


@pytest.mark.parametrize("metric", [pearson, spearman])
@pytest.mark.parametrize(
    ("predictions", "labels", "said"),
    [
        ([2.5, 2.5, 2.5], [1.0, 2.0, 3.0], "the predictions are constant"),
        ([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], "the labels are constant"),
        ([0.1] * 7, [0, 1, 2, 3, 4, 5, 5], "the predictions are constant"),
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
