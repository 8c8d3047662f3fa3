"""Texts without labels: plain lines, pairs with a tab, and files in the course's layout."""

import pytest

from datasets import read_unlabelled
from helpers import SAMPLE
from support.errors import UserError
from tasks import TASKS


def read(path, text: str | bytes, task: str = "sst") -> list[tuple[str, ...]]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    examples = read_unlabelled(path, TASKS[task])
    assert all(example.label is None for example in examples)
    return [example.texts for example in examples]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "texts.txt"


def test_lines_are_texts(path):
    """Guards against a first line taken for a header, and quotes taken for CSV."""
    text = '\ufeffGood, "really" good\r\n\n "An open quote\nthird, with: sentence\n'
    assert read(path, text) == [('Good, "really" good',), ('"An open quote',), ("third, with: sentence",)]


def test_pairs_have_a_tab(path):
    """Guards against pairs that are joined or swapped."""
    assert read(path, "Is it?\tIs it so?\nA, b\tC\n", "para") == [("Is it?", "Is it so?"), ("A, b", "C")]


@pytest.mark.parametrize("task", ["sst", "para", "sts"])
def test_course_files_are_read_without_their_labels(task):
    """Guards against labels that train after all, and against ids or labels read as texts."""
    test = read_unlabelled(SAMPLE / TASKS[task].filename("test"), TASKS[task])
    train = read_unlabelled(SAMPLE / TASKS[task].filename("train"), TASKS[task])
    for examples in (test, train):
        assert len(examples) > 10 and {example.label for example in examples} == {None}
        assert {len(example.texts) for example in examples} == {len(TASKS[task].text_columns)}


@pytest.mark.parametrize(
    ("task", "text", "where", "said"),
    [
        ("sst", "", ":1", "empty"),
        ("sst", "one\ntwo\tthree\n", ":2", "one text"),
        ("para", "a\tb\nc\n", ":2", "two texts with a tab"),
        ("sst", b"good\nb\xe4d\n", ":2", "not UTF-8"),
    ],
    ids=repr,
)
def test_what_is_wrong_is_said_with_its_line(path, task, text, where, said):
    """Guards against a traceback, and against rows of another task that train in silence."""
    with pytest.raises(UserError) as caught:
        read(path, text, task)
    message = str(caught.value)
    assert message.startswith(f"{path}{where}: ") and said in message and "\n" not in message
