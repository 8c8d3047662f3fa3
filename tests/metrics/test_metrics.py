"""Metrics by pencil and paper, on float32: what a model and a label file give."""

import math
import warnings

import numpy as np
import pytest

from helpers import warnings_of
from tasks import accuracy, macro_f1, pearson, spearman


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
