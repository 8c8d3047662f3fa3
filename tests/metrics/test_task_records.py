"""The records of the built-in tasks: labels, losses, predictions, files.

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
    "sst": ["5", "-1", "2.5", "4.0001"],
    "cfimdb": ["2", "-1", "0.5"],
    "para": ["2.0", "-1.0", "0.5"],
    "sts": ["5.001", "-0.001", "6"],
}
NO_NUMBERS = ("nan", "inf", "-inf", "", "two", "1,0", "0x1")
LOG3 = math.log(3)  # sigmoid, and softmax beside a 0, give 3/4
LOSSES = {  # logits, labels, loss by hand
    "sst": ([[0.0] * 5, [0, 0, math.log(4), 0, 0]], [3.0, 2.0], (math.log(5) + math.log(2)) / 2),
    "cfimdb": ([[0.0, LOG3], [0.0, LOG3]], [1.0, 0.0], -(math.log(3 / 4) + math.log(1 / 4)) / 2),
    "para": ([[LOG3], [LOG3], [0.0]], [1.0, 0.0, 1.0], -math.log(3 / 4 * 1 / 4 * 1 / 2) / 3),
    "sts": ([[3.0], [1.0], [2.5]], [3.8, 0.0, 2.5], (0.64 + 1 + 0) / 3),
}
TORCH_LOSSES = {
    "sst": lambda logits, labels: torch.nn.CrossEntropyLoss()(logits, labels.long()),
    "cfimdb": lambda logits, labels: torch.nn.CrossEntropyLoss()(logits, labels.long()),
    "para": lambda logits, labels: torch.nn.BCELoss()(
        logits[:, 0].double().sigmoid(), labels.double()
    ).float(),
    "sts": lambda logits, labels: torch.nn.MSELoss()(logits[:, 0], labels),
}
TABLES = {
    "ACCEPTED": ACCEPTED,
    "REFUSED": REFUSED,
    "LOSSES": LOSSES,
    "TORCH_LOSSES": TORCH_LOSSES,
    "HEADERS": HEADERS,
    "STEMS": STEMS,
}


def test_the_tables_cover_the_built_in_tasks():
    """Guards against a built-in task that the tests of this folder no longer look at."""
    assert set(BUILT_IN) == {"sst", "para", "sts", "cfimdb"} and set(BUILT_IN) <= set(TASKS)
    lacking = {name: set(BUILT_IN) - set(table) for name, table in TABLES.items()}
    assert not any(lacking.values()), lacking


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


@pytest.mark.parametrize("task", LOSSES)
def test_losses_by_hand(task):
    """Guards against (B,) broadcast over (B,1), sums in place of means, and labels cut to integers."""
    logits, labels, expected = LOSSES[task]
    loss = TASKS[task].loss(torch.tensor(logits), torch.tensor(labels))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("task", TORCH_LOSSES)
def test_losses_are_those_of_torch_in_fp32(task, dtype):
    """Guards against a loss computed in bfloat16, which has three digits."""
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
    """Guards against a probability's threshold (.5) applied to a logit, and an argmax over the batch."""
    predictions = TASKS[task].predict(torch.tensor(logits, dtype=dtype))
    assert predictions.shape == (len(logits),) and predictions.numpy().tolist() == expected


def test_an_even_chance_is_no_paraphrase():
    """Guards against a label that the program's own probabilities, 0.5 and 0.5, do not show."""
    record = TASKS["para"]
    assert record.predict(torch.tensor([[0.0], [-0.0], [1e-30]])).tolist() == [0.0, 0.0, 1.0]


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
def test_the_last_axis_is_that_of_the_outputs(task):
    """Guards against an axis counted from the front: right for (B,C), wrong for outputs of every token."""
    record = TASKS[task]
    outputs = record.num_outputs
    logits = torch.randn(6, outputs, generator=torch.Generator().manual_seed(0))
    tokens = logits.reshape(2, 3, outputs)
    assert torch.equal(record.predict(tokens), record.predict(logits).reshape(2, 3))
    if record.probabilities is not None:
        torch.testing.assert_close(record.probabilities(tokens).flatten(0, 1), record.probabilities(logits))
    if outputs == 1:  # cross entropy has its classes on axis 1
        labels = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
        torch.testing.assert_close(record.loss(tokens, labels.reshape(2, 3)), record.loss(logits, labels))


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
