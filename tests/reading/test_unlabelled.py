"""Texts without labels: plain lines, pairs with a tab, and files in the course's layout."""

import pytest

from datasets import read_unlabelled
from helpers import SAMPLE, sample_examples
from support.errors import UserError
from tasks import TASKS


@pytest.fixture
def read(tmp_path):
    """The texts of a file with the given content; errors name it by `texts.txt`."""

    def texts_of(content: str | bytes, task: str) -> list[tuple[str, ...]]:
        path = tmp_path / "texts.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return [example.texts for example in read_unlabelled(path, TASKS[task])]

    return texts_of


def test_lines_are_texts(read):
    """Guards against a first line taken for a header, quotes taken for CSV, and pairs joined or swapped."""
    text = '\ufeffGood, "really" good\r\n\n "An open quote\nthird, with: sentence\n'
    assert read(text, "sst") == [('Good, "really" good',), ('"An open quote',), ("third, with: sentence",)]
    assert read("Is it?\tIs it so?\nA, b\tC\n", "para") == [("Is it?", "Is it so?"), ("A, b", "C")]


@pytest.mark.parametrize("task", ["sst", "sts"])
def test_course_files_are_read_without_their_labels(task):
    """Guards against labels that train after all, and against ids or labels read as texts."""
    for split in ("train", "test"):
        examples = read_unlabelled(SAMPLE / TASKS[task].filename(split), TASKS[task])
        assert examples == [example._replace(label=None) for example in sample_examples(task, split)]


@pytest.mark.parametrize(
    ("task", "content", "said"),
    [
        ("sst", "", "texts.txt:1: the file is empty"),
        ("sst", "one\ntwo\tthree\n", "texts.txt:2: not one text"),
        ("para", "a\tb\nc\n", "texts.txt:2: not two texts with a tab"),
    ],
    ids=repr,
)
def test_what_is_wrong_is_said_with_its_line(read, task, content, said):
    """Guards against a traceback, and against rows of another task that train in silence."""
    with pytest.raises(UserError, match=said):
        read(content, task)
