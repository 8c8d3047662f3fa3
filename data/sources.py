"""Which data set of the Hugging Face hub has a task's rows, and what its labels mean.

    record, a row of the data set ─ Source.label ─> label as the course writes it

Fields, labels and numbers of rows were looked up on 2026-11-27, on the stored pages of the data sets.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tasks import TASKS

Record = dict[str, Any]  # a row of a data set, by the names of its fields

# ------------------------------------------------------------------------------------------- labels


def class_number(record: Record, names: Sequence[str]) -> int:
    """The class that the fields `label` and, if it is there, `label_text` name. Raises ValueError."""
    value = record["label"]
    if isinstance(value, bool) or value not in range(len(names)):
        raise ValueError(f"label {value!r:.40} is not one of 0 to {len(names) - 1}")
    called = record.get("label_text")
    if called is not None and str(called).casefold() != names[int(value)]:
        raise ValueError(f"label {value} is called {called!r:.40}, not {names[int(value)]!r}")
    return int(value)


def sst_label(record: Record) -> str:
    """0 (very negative) to 4 (very positive)."""
    return str(class_number(record, TASKS["sst"].label_names))


def para_label(record: Record) -> str:
    """1.0 for a duplicate, else 0.0, as the course writes them."""
    return str(float(class_number(record, ("not duplicate", "duplicate"))))


def sts_label(record: Record) -> str:
    """0.0 to 5.0. The hub has 3.8 as the 32-bit float 3.7999999523; the benchmark has three decimals."""
    value = record["label"]
    score = round(value, 3) if isinstance(value, int | float) and not isinstance(value, bool) else -1.0
    if not 0 <= score <= 5:
        raise ValueError(f"label {value!r:.40} is not a number from 0 to 5")
    return str(float(score))


def cfimdb_label(record: Record) -> str:
    """0 (negative) or 1 (positive)."""
    numbers = {"Negative": "0", "Positive": "1"}
    value = str(record["Sentiment"])
    if value not in numbers:
        raise ValueError(f"Sentiment {value!r:.40} is not Negative or Positive")
    return numbers[value]


# ------------------------------------------------------------------------------------------ sources


class Source(NamedTuple):
    """A data set of the hub that has the rows of a task."""

    dataset: str
    commit: str  # the commit whose rows were counted, or how it begins
    files: tuple[str, str, str]  # of train, dev, test
    rows: tuple[int, int, int]  # of train, dev, test at that commit
    text_fields: tuple[str, ...]  # one for each text column of the task
    label_field: str
    label: Callable[[Record], str]  # record -> label as the course writes it; raises ValueError
    test_limit: int | None = None  # of so many test rows the first are taken


JSON_LINES = ("train.jsonl", "validation.jsonl", "test.jsonl")
SOURCES = {
    "sst": Source(
        "SetFit/sst5",
        "e51bdcd8cd3a30da231967c1a249ba59361279a3",
        ("train.jsonl", "dev.jsonl", "test.jsonl"),
        (8544, 1101, 2210),
        ("text",),
        "label",
        sst_label,
    ),
    "sts": Source(
        "SetFit/stsb",
        "77bd85cf73a244d4503e477ce6de81196187839f",
        JSON_LINES,
        (5749, 1500, 1379),
        ("text1", "text2"),
        "label",
        sts_label,
    ),
    "cfimdb": Source(
        "tasksource/counterfactually-augmented-imdb",
        "fd42efb815508d02beb7d478eae41a8a2e7100a3",
        ("train.tsv", "dev.tsv", "test.tsv"),
        (1707, 245, 488),
        ("Text",),
        "Sentiment",
        cfimdb_label,
    ),
    "para": Source(  # the largest comes last
        "SetFit/qqp",
        "df33eff",
        JSON_LINES,
        (363846, 40430, 390965),
        ("text1", "text2"),
        "label",
        para_label,
        test_limit=40431,  # as many as the course's; all would take an hour to predict on a CPU
    ),
}
