"""The course's files and the sample are read whole. Reference: the csv module."""

import csv
import itertools
import re
from collections import Counter

import numpy as np
import pytest
import torch

from datasets import Example, read_examples, sample_rows
from helpers import sample_examples, warnings_of
from tasks import TASKS

# As the course data's own README counts them; two rows of quora-train have no label.
COURSE_ROWS = {
    "sst": {"train": 8544, "dev": 1101, "test": 2210},
    "para": {"train": 70905 - 2, "dev": 4000, "test": 3000},
    "sts": {"train": 6040, "dev": 863, "test": 1725},
    "cfimdb": {"train": 1707, "dev": 245, "test": 488},
}


@pytest.mark.parametrize(
    ("name", "split"), [(name, split) for name, splits in COURSE_ROWS.items() for split in splits]
)
def test_course_files_are_read_whole(course_data, caplog, name, split):
    """Guards against rows lost, merged or shifted by quoting, and against labels cut to integers."""
    task = TASKS[name]
    labelled = split != "test"
    path = course_data / task.filename(split)
    examples = read_examples(path, task, labelled)
    assert len(examples) == COURSE_ROWS[name][split]
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    usable = [row for row in rows if not labelled or row[task.label_column]]
    for example, row in zip(examples, usable, strict=True):
        texts = tuple(row[column].strip() for column in task.text_columns)
        label = float(row[task.label_column]) if labelled else None
        assert example == (row["id"].strip(), texts, label)
    assert all(re.fullmatch("[0-9a-f]{25}", example.id) for example in examples)
    reports = warnings_of(caplog)
    assert len(reports) == (name == "para" and split == "train")
    assert all("2 of 70905 rows" in report and "line 13625, 45948;" in report for report in reports)


@pytest.mark.parametrize("name", ["sst", "para", "sts"])
@pytest.mark.parametrize(("split", "count"), [("train", 200), ("dev", 50), ("test", 50)])
def test_sample_has_the_promised_rows(caplog, name, split, count):
    """Guards against a damaged or lopsided sample, on which a constant guess would look like learning."""
    examples = sample_examples(name, split)
    count += 100 * ((name, split) == ("sst", "train"))
    assert len(examples) == len({example.id for example in examples}) == count
    assert warnings_of(caplog) == []
    labels = Counter(example.label for example in examples)
    if split == "test":
        assert set(labels) == {None}
    elif name == "sts":
        assert min(labels) == 0 and max(labels) == 5 and any(label % 1 for label in labels)
    else:
        classes = {"sst": 5, "para": 2}[name]
        assert labels == {float(label): count // classes for label in range(classes)}


def test_sample_sentences_are_all_distinct():
    """Guards against a test sentence that was trained on."""
    names = itertools.product(("sst", "para", "sts"), ("train", "dev", "test"))
    read = [sample_examples(name, split) for name, split in names]
    texts = [text.casefold() for examples in read for example in examples for text in example.texts]
    assert len(texts) == len(set(texts)) == 400 + 2 * 2 * 300


def test_sample_rows_is_always_the_same_and_in_file_order():
    """Guards against subsets that differ between runs, whose scores could not be compared, and against the
    first rows of a sorted file, which have one label only."""
    examples = [Example(str(i), ("text",), i // 10) for i in range(50)]
    chosen = []
    for seed in (1, 2):
        np.random.seed(seed)
        torch.manual_seed(seed)
        chosen.append([int(example.id) for example in sample_rows(examples, 7)])
    assert chosen[0] == chosen[1] == sorted(set(chosen[0])) and len(chosen[0]) == 7
    assert len({row // 10 for row in chosen[0]}) > 1
    assert sample_rows(examples, None) == sample_rows(examples, 51) == examples
