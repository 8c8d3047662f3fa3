"""The records of the built-in tasks: labels, losses, divergences, predictions, files, by pencil and paper.

The tests go by tables of their own, so another task in tasks.TASKS changes nothing here.
"""

import math

import pytest
import torch

from built_in_tasks import BUILT_IN, HEADERS, STEMS
from tasks import TASKS

ACCEPTED = {
    "sst": {"0": 0, "4": 4, "3.0": 3},
    "cfimdb": {"0": 0, "1": 1},
    "para": {"0.0": 0, "1.0": 1, "1": 1},
    "sts": {"0": 0, "3.8": 3.8, "5.0": 5, "4.999": 4.999},
}
REFUSED = {
    "sst": ["5", "-1", "2.5"],
    "cfimdb": ["2", "-1", "0.5"],
    "para": ["2.0", "-1.0", "0.5"],
    "sts": ["5.001", "-0.001"],
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


@pytest.mark.parametrize(
    ("task", "text", "label"), [(task, *pair) for task, texts in ACCEPTED.items() for pair in texts.items()]
)
def test_labels_accepted(task, text, label):
    """Guards against `1.0` refused where an integer is meant, and 3.8 cut to 3."""
    parsed = TASKS[task].parse_label(text)
    assert type(parsed) is float and parsed == label


@pytest.mark.parametrize(
    ("task", "text"), [(task, text) for task, texts in REFUSED.items() for text in (*texts, *NO_NUMBERS)]
)
def test_labels_refused(task, text):
    """Guards against a label outside the range, which ends in an index error or in a loss without meaning."""
    with pytest.raises(ValueError):
        TASKS[task].parse_label(text)


@pytest.mark.parametrize("task", BUILT_IN)
def test_losses_by_hand(task):
    """Guards against another task's loss, (B,) broadcast over (B,1), a sum for the mean, labels cut to
    integers, and a loss in bf16, which has three digits."""
    logits, labels, expected = LOSSES[task]
    loss = TASKS[task].loss(torch.tensor(logits, dtype=torch.float32), torch.tensor(labels))
    assert loss.ndim == 0 and loss.item() == pytest.approx(expected, rel=1e-6)
    of_bf16 = TASKS[task].loss(torch.tensor(logits, dtype=torch.bfloat16), torch.tensor(labels))
    assert of_bf16.dtype == torch.float32 and of_bf16.item() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("task", BUILT_IN)
def test_divergences_by_hand(task, swapped):
    """Guards against a divergence that is not the paper's ℓ_s: KL one way, half a squared error, a sum."""
    *outputs, expected = DIVERGENCES[task]
    a, b = (torch.tensor(values, dtype=torch.float32) for values in (outputs[::-1] if swapped else outputs))
    assert TASKS[task].divergence(a, b).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("task", "logits", "expected"),
    [
        ("sst", [[0, 1, 0, 0, 0], [-5, -4, -3, -2, -1], [9, 1, 1, 1, 1]], [1, 4, 0]),
        ("cfimdb", [[0, 1], [0, -1], [-2, -1]], [1, 0, 1]),
        ("para", [[0.1], [-0.1], [0.0], [1e-30]], [1, 0, 0, 1]),  # an even chance is no paraphrase
        ("sts", [[3.75], [-1.5], [6.0]], [3.75, -1.5, 6.0]),
    ],
)
def test_predict_of_hand_made_logits(task, logits, expected):
    """Guards against a probability's threshold (.5) applied to a logit, and an argmax over the batch."""
    predictions = TASKS[task].predict(torch.tensor(logits, dtype=torch.float32))
    assert predictions.shape == (len(logits),) and predictions.numpy().tolist() == expected


@pytest.mark.parametrize(
    ("task", "logits", "expected"),
    [
        (
            "sst",
            [[0, math.log(4), 0, 0, 0], [0, 0, 0, 0, 0]],
            [[1 / 8, 1 / 2, 1 / 8, 1 / 8, 1 / 8], [0.2] * 5],
        ),
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
def test_each_task_has_a_name_a_header_and_its_course_files(task):
    """Guards against a renamed file or header, which only the course's grader would notice."""
    record = TASKS[task]
    stem = STEMS[task]
    assert record.name == task and record.prediction_column == HEADERS[task]
    assert [record.filename(split) for split in ("train", "dev", "test")] == [
        f"{stem}-train.csv",
        f"{stem}-dev.csv",
        f"{stem}-test-student.csv",
    ]
