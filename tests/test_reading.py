"""Course files read: real ones, the sample, and hand-made ones with every flaw. Reference: the csv module."""

import csv
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import Example, read_examples, sample_rows, tokenize
from support.errors import UserError
from tasks import TASKS

HOME = Path(__file__).resolve().parent.parent
SAMPLE = HOME / "data" / "sample"
SST, STS = TASKS["sst"], TASKS["sts"]
COURSE_ROWS = {  # as the course data's own README counts them; two rows of quora-train have no label
    "sst": {"train": 8544, "dev": 1101, "test": 2210},
    "para": {"train": 70905 - 2, "dev": 4000, "test": 3000},
    "sts": {"train": 6040, "dev": 863, "test": 1725},
    "cfimdb": {"train": 1707, "dev": 245, "test": 488},
}
HEADER = "\tid\tsentence\tsentiment"


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "rows.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(*rows: str, end: str = "\n") -> str:
    return "".join(row + end for row in rows)


def good_rows(count: int) -> list[str]:
    return [f"{i}\tid{i}\ttext {i}\t{i % 5}" for i in range(count)]


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


# ---------------------------------------------------------------------------------- real and sample


@pytest.mark.parametrize(
    ("name", "split"), [(name, split) for name, splits in COURSE_ROWS.items() for split in splits]
)
def test_course_files_are_read_whole(course_data, caplog, name, split):
    """Guards against rows lost, merged or shifted by quoting, and against labels cut to integers: the csv
    module is the reference."""
    task, labelled = TASKS[name], split != "test"
    path = course_data / task.filename(split)
    examples = read_examples(path, task, labelled)
    assert len(examples) == COURSE_ROWS[name][split]
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for example, row in zip(
        examples, (row for row in rows if not labelled or row[task.label_column]), strict=True
    ):
        label = float(row[task.label_column]) if labelled else None
        assert example == (
            row["id"].strip(),
            tuple(row[column].strip() for column in task.text_columns),
            label,
        )
    assert all(re.fullmatch("[0-9a-f]{25}", example.id) for example in examples)
    reports = warnings_of(caplog)
    assert len(reports) == (name == "para" and split == "train")
    assert all("2 of 70905 rows" in report and "line 13625, 45948;" in report for report in reports)


@pytest.mark.parametrize("name", ["sst", "cfimdb"])
def test_course_test_files_have_two_columns_before_the_id(course_data, name):
    """Guards against columns taken by position: here the id is the third, elsewhere the second."""
    path = course_data / TASKS[name].filename("test")
    header, first = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[:2])
    assert header[2:] == ["id", "sentence"]
    assert read_examples(path, TASKS[name], labelled=False)[0] == (first[2], (first[3].strip(),), None)


@pytest.mark.parametrize("name", ["sst", "para", "sts"])
@pytest.mark.parametrize(("split", "count"), [("train", 200), ("dev", 50), ("test", 50)])
def test_sample_has_the_promised_rows(caplog, name, split, count):
    """Guards against a damaged or lopsided sample, on which a constant guess would look like learning."""
    examples = read_examples(SAMPLE / TASKS[name].filename(split), TASKS[name], labelled=split != "test")
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
    names = [(name, split) for name in ("sst", "para", "sts") for split in ("train", "dev", "test")]
    read = [
        read_examples(SAMPLE / TASKS[name].filename(split), TASKS[name], split != "test")
        for name, split in names
    ]
    texts = [text.casefold() for examples in read for example in examples for text in example.texts]
    assert len(texts) == len(set(texts)) == 3 * 300 + 2 * 300


# ---------------------------------------------------------------------------------- hand-made files


VALID_FILES = {
    "doubled quotes": (lines(HEADER, '0\ta\t"say ""no"" twice"\t3'), 'say "no" twice'),
    "inch sign": (lines(HEADER, '0\ta\ta 5" disk\t3'), 'a 5" disk'),
    "BOM": ("\ufeff" + lines(HEADER, "0\ta\tplain\t3"), "plain"),
    "BOM before id": ("\ufeff" + lines("id\tsentence\tsentiment", "a\tplain\t3"), "plain"),
    "CRLF": (lines(HEADER, "0\ta\tplain\t3", end="\r\n"), "plain"),
    "CR": (lines(HEADER, "0\ta\tplain\t3", end="\r"), "plain"),
    "no last newline": (lines(HEADER, "0\ta\tplain\t3")[:-1], "plain"),
    "NUL": (lines(HEADER, "0\ta\tnul\0byte\t3"), "nul\0byte"),
    "emoji": (lines(HEADER, "0\ta\tbravo 🎬👍🏽\t3"), "bravo 🎬👍🏽"),
    "line separators": (
        lines(HEADER, "0\ta\tone\u2028two\x85three\x0bfour\t3"),
        "one\u2028two\x85three\x0bfour",
    ),
    "quoted newline": (lines(HEADER, '0\ta\t"one\ntwo"\t3'), "one\ntwo"),
    "trailing empty fields": (lines(HEADER, "0\ta\tplain\t3\t\t"), "plain"),
    "trailing empty columns": (lines(HEADER + "\t\t", "0\ta\tplain\t3\t\t"), "plain"),
    "blank lines": (lines("", HEADER, "", "0\ta\tplain\t3", "", ""), "plain"),
    "spaces around": (lines("\t id \t sentence\tsentiment ", "0\t a \t plain \t 3 "), "plain"),
    "other order": (lines("sentiment\tnote\tsentence\tid", "3.0\tx\tplain\ta"), "plain"),
    "long text": (lines(HEADER, f"0\ta\t{'long ' * 40000}end\t3"), "long " * 40000 + "end"),
    "formula": (lines(HEADER, "0\ta\t=1+1\t3"), "=1+1"),
}


@pytest.mark.parametrize(("content", "text"), VALID_FILES.values(), ids=VALID_FILES)
def test_odd_but_valid_files(tmp_path, caplog, content, text):
    """Guards against text that is silently changed, cut or lost on the way in."""
    assert read_examples(write(tmp_path, content), SST) == [Example("a", (text,), 3.0)]
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_numbers_after_a_quoted_newline(tmp_path, caplog, end):
    """Guards against reporting row numbers as line numbers: the user would look at an innocent line."""
    rows = good_rows(200)
    rows[4:6] = [
        '4\tid4\t"one' + end + "two" + end + 'three"\t1',
        "5\tid5\tno label\t",
    ]  # lines 6 to 8, then line 9
    examples = read_examples(write(tmp_path, lines(HEADER, *rows, end=end)), SST)
    assert len(examples) == 199 and examples[4].texts == (f"one{end}two{end}three",)
    assert "1 of 200 rows" in caplog.text and "(line 9;" in caplog.text


BAD_ROWS = {
    "no label": "0\tbad\ttext\t",
    "blank label": "0\tbad\ttext\t  ",
    "too high": "0\tbad\ttext\t5",
    "too low": "0\tbad\ttext\t-1",
    "between classes": "0\tbad\ttext\t1.5",
    "nan": "0\tbad\ttext\tnan",
    "inf": "0\tbad\ttext\tinf",
    "a word": "0\tbad\ttext\tgood",
    "a number to Python only": "0\tbad\ttext\t0_1",
    "a digit of another script": "0\tbad\ttext\t\u0661",
    "empty text": "0\tbad\t\t1",
    "blank text": "0\tbad\t  \t1",
    "no id": "0\t\ttext\t1",
    "id with a line break": "0\tb\u2028d\ttext\t1",
    "id with the separator of predictions": "0\tb , d\ttext\t1",
    "too few fields": "0\tbad\ttext",
    "unquoted tab": "0\tbad\tte\txt\t1",
    "unquoted tab, number": "0\tbad\ttext\t3\t1",
}


@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS)
def test_unusable_rows_are_skipped_and_reported_once(tmp_path, caplog, row):
    """Guards against a bad row trained on with a wrong label, dropped without a word, or reported once a
    row."""
    rows = good_rows(400)
    for place in (9, 99, 199, 299):  # lines 11, 101, 201, 301: exactly 1 %
        rows[place] = row
    examples = read_examples(write(tmp_path, lines(HEADER, *rows)), SST)
    assert len(examples) == 396 and "bad" not in {example.id for example in examples}
    assert len(warnings_of(caplog)) == 1
    assert "4 of 400 rows" in caplog.text and "(line 11, 101, 201, ...;" in caplog.text


@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS)
def test_too_many_unusable_rows_are_an_error(tmp_path, row):
    """Guards against training on the readable part of a file that is something else."""
    rows = good_rows(399)
    for place in (9, 99, 199, 299):
        rows[place] = row
    path = write(tmp_path, lines(HEADER, *rows))
    with pytest.raises(UserError, match="4 of 399 rows") as error:
        read_examples(path, SST)
    assert str(error.value).startswith(f"{path}:11: ")


@pytest.mark.parametrize(
    "fields",
    ["\ttwo\t3", "one\t\t3", "one\ttwo\t", "one\ttwo\t5.1", "one\ttwo\tnan", "one\ttwo", "o\tne\ttwo\t3"],
)
def test_unusable_pairs_are_skipped(tmp_path, caplog, fields):
    """Guards against pairs with one text only, and scores outside the scale."""
    rows = [f"{i}\tid{i}\tone\ttwo\t{i / 20}" for i in range(100)]
    rows[50] = "50\tbad\t" + fields
    examples = read_examples(write(tmp_path, lines("\tid\tsentence1\tsentence2\tsimilarity", *rows)), STS)
    assert [example.label for example in examples] == [i / 20 for i in range(100) if i != 50]
    assert len(warnings_of(caplog)) == 1 and "1 of 100 rows" in caplog.text and "(line 52;" in caplog.text


UNUSABLE_FILES = {
    "no label column": (lines("\tid\tsentence", "0\ta\tplain"), True, 1, "sentiment"),
    "no text column": (lines("\tid\tsentiment", "0\ta\t1"), True, 1, "sentence"),
    "no id column": (lines("sentence\tsentiment", "plain\t1"), True, 1, "id"),
    "a column twice": (lines("id\tsentence\tsentence\tsentiment", "a\tone\ttwo\t1"), True, 1, "sentence"),
    "header after blank lines": (lines("", "", "\tid\tsentence", "0\ta\tplain"), True, 3, "sentiment"),
    "commas": (lines(",id,sentence,sentiment", "0,a,plain,1"), True, 1, "id"),
    "no header": (lines(*good_rows(3)), True, 1, "id"),
    "empty": (b"", True, 1, "empty"),
    "only newlines": (b"\n\r\n\n", True, 1, "empty"),
    "only a BOM": (b"\xef\xbb\xbf", True, 1, "empty"),
    "header only": (lines(HEADER), True, 1, "no rows"),
    "header only, unlabelled": (lines("\tid\tsentence"), False, 1, "no rows"),
    "Latin-1": (
        lines(HEADER, "0\ta\tplain\t1", "1\tb\tplain\t1", "2\tc\tcafé\t1").encode("latin-1"),
        True,
        4,
        "UTF-8",
    ),
    "Latin-1, CR": (
        lines(HEADER, "0\ta\tplain\t1", "1\tb\tcafé\t1", end="\r").encode("latin-1"),
        True,
        3,
        "UTF-8",
    ),
    "Latin-1, CRLF": (
        lines(HEADER, "0\ta\tplain\t1", "1\tb\tcafé\t1", end="\r\n").encode("latin-1"),
        True,
        3,
        "UTF-8",
    ),
    "Latin-1, BOM": (
        b"\xef\xbb\xbf" + lines(HEADER, "0\ta\tplain\t1", "é\tb\tplain\t1").encode("latin-1"),
        True,
        3,
        "UTF-8",
    ),
    "cut in a character": (lines(HEADER, "0\ta\tcafé").encode()[:-2], True, 2, "UTF-8"),
    "UTF-16": (lines(HEADER, "0\ta\tplain\t1").encode("utf-16"), True, 1, "UTF-8"),
    "open quote": (lines(HEADER, "0\ta\tplain\t1", '1\tb\t"open\t1', *good_rows(300)), True, 3, "quote"),
    "open quote, unlabelled": (
        lines("\tid\tsentence", "0\ta\tplain", '1\tb\t"open', "2\tc\tplain"),
        False,
        3,
        "quote",
    ),
    "open quote, closed by a later one": (
        lines(HEADER, '0\ta\t"open\t1', '1\tb\tan "innocent" row\t1'),
        True,
        2,
        "quote",
    ),
    "open quote, CRLF": (lines(HEADER, '0\ta\t"open\t1', *good_rows(9), end="\r\n"), True, 2, "quote"),
    "unlabelled row without id": (lines("\tid\tsentence", "0\ta\tplain", "1\t\tplain"), False, 3, "id"),
    "unlabelled id with a line break": (
        lines("\tid\tsentence", "0\ta\tplain", '1\t"b\nc"\tplain'),
        False,
        3,
        "id",
    ),
    "unlabelled id that ends like the separator": (
        lines("\tid\tsentence", "0\ta\tplain", "1\tb ,\tplain"),
        False,
        3,
        "id",
    ),
    "unlabelled row that ends before the id": (lines("\tid\tsentence", "0\ta\tplain", "1"), False, 3, "id"),
}


@pytest.mark.parametrize(("content", "labelled", "line", "word"), UNUSABLE_FILES.values(), ids=UNUSABLE_FILES)
def test_unusable_files_are_refused_with_file_and_line(tmp_path, content, labelled, line, word):
    """Guards against training on half a file, or on nothing, and against an error that doesn't say where."""
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=rf"(?i)\b{word}\b") as error:
        read_examples(path, SST, labelled)
    assert str(error.value).startswith(f"{path}:{line}: ")


@pytest.mark.parametrize("name", ["missing.csv", "", "rows.csv/below-a-file.csv"])
def test_what_is_no_file_is_refused(tmp_path, name):
    """Guards against a traceback for a mistyped path."""
    write(tmp_path, lines(HEADER, *good_rows(3)))
    path = tmp_path / name
    with pytest.raises(UserError) as error:
        read_examples(path, SST)
    assert str(error.value).startswith(f"{path}: cannot be read")


def test_unlabelled_rows_are_all_kept_in_order(tmp_path, caplog):
    """Guards against a prediction file with fewer rows than the test file, or in another order."""
    rows = ["0\tb\tone\ttwo", "1\ta\t\t", "2\td", "3\tc\tone", "4\te\t \ttwo\t\t", "5\tf\tone\ttwo\t2.0"]
    examples = read_examples(write(tmp_path, lines("\tid\tsentence1\tsentence2", *rows)), STS, labelled=False)
    texts = [("one", "two"), ("", ""), ("", ""), ("one", ""), ("", "two"), ("one", "two")]
    assert examples == [Example(id, pair, None) for id, pair in zip("badcef", texts, strict=True)]
    (warning,) = warnings_of(caplog)
    assert "line 7" in warning and "stray tab" in warning


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('\tid\tsentence1\tsentence2\n0\ta\tb\tc\n1\ta\t"x\ty" z\n', 3),  # on one line
        ('\tid\tsentence1\tsentence2\r0\ta\t"x\r1\tb\ty\tz\r', 2),  # bare carriage returns
        (
            '"0"\t"id"\t"sentence1"\t"sentence2"\n"0"\t"a"\t"x"\t"y\n"1"\t"b"\t"y"\t"z"\n',
            2,
        ),  # everything quoted
        ('\tid\tsentence1\tsentence2\n0\ta\tb\t"c\n1\tb\tx\ty\n2\tc\tx\ty\n', 2),
    ],
)
def test_an_open_quote_does_not_swallow_rows(tmp_path, content, line):
    """Guards against rows of a test file that vanish into the field before them, ids and all."""
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=f"{re.escape(str(path))}:{line}: .*quote"):
        read_examples(path, TASKS["para"], labelled=False)


@pytest.mark.parametrize("labelled", [True, False])
def test_an_id_that_comes_twice_is_reported(tmp_path, caplog, labelled):
    """Guards against two lines of a prediction file that nobody can tell apart."""
    rows = good_rows(6)
    rows[3] = rows[5] = "9\tid1\tanother text\t2"  # lines 5 and 7; the first is line 3
    assert len(read_examples(write(tmp_path, lines(HEADER, *rows)), SST, labelled)) == 6
    (warning,) = warnings_of(caplog)
    assert "2 rows have the id of an earlier row (first: line 5, 'id1' as in line 3)" in warning


def test_similarity_labels_stay_floats(tmp_path, tokenizer):
    """Guards against scores cut to integers, which costs correlation and nothing else."""
    scores = ["3.8", "0", "5.0", "0.25", "4.999"]
    content = lines(
        "\tid\tsentence1\tsentence2\tsimilarity", *(f"0\tid\tone\ttwo\t{score}" for score in scores)
    )
    examples = read_examples(write(tmp_path, content), STS)
    assert [example.label for example in examples] == [3.8, 0.0, 5.0, 0.25, 4.999]
    labels = tokenize(examples, STS, tokenizer, 32).labels
    assert torch.equal(labels, torch.tensor([3.8, 0.0, 5.0, 0.25, 4.999], dtype=torch.float32))


@pytest.mark.parametrize("limit", [1, 7, 49])
def test_sample_rows_is_always_the_same_and_in_file_order(limit):
    """Guards against subsets that differ between runs: their scores could not be compared."""
    examples = [Example(str(i), ("text",), i // 10) for i in range(50)]
    chosen = []
    for seed in (1, 2):
        np.random.seed(seed)
        torch.manual_seed(seed)
        chosen.append([int(example.id) for example in sample_rows(examples, limit)])
    assert chosen[0] == chosen[1] == sorted(set(chosen[0])) and len(chosen[0]) == limit
    assert limit != 7 or len({row // 10 for row in chosen[0]}) > 1, (
        "a sorted file must not give one label only"
    )


@pytest.mark.parametrize("limit", [None, 50, 51])
def test_sample_rows_without_a_limit_that_binds(limit):
    """Guards against rows lost where none should be."""
    examples = [Example(str(i), ("text",), 0.0) for i in range(50)]
    assert sample_rows(examples, limit) == examples
