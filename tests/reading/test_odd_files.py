"""Hand-made files with every flaw: read as meant, skipped row by row, or refused with file and line."""

import re
from pathlib import Path

import pytest
import torch

from datasets import Example, read_examples, tokenize
from helpers import warnings_of
from support.errors import UserError
from tasks import TASKS

SST = TASKS["sst"]
STS = TASKS["sts"]


HEADER = "\tid\tsentence\tsentiment"


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "rows.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(*rows: str, end: str = "\n") -> str:
    return "".join(row + end for row in rows)


def good_rows(count: int) -> list[str]:
    return [f"{i}\tid{i}\ttext {i}\t{i % 5}" for i in range(count)]


# ------------------------------------------------------------------------------------ odd but valid

VALID_FILES = {
    "doubled quotes": (lines(HEADER, '0\ta\t"say ""no"" twice"\t3'), 'say "no" twice'),
    "BOM": ("\ufeff" + lines(HEADER, "0\ta\tplain\t3"), "plain"),
    "CRLF": (lines(HEADER, "0\ta\tplain\t3", end="\r\n"), "plain"),
    "NUL": (lines(HEADER, "0\ta\tnul\0byte\t3"), "nul\0byte"),
    "line separators": (
        lines(HEADER, "0\ta\tone\u2028two\x85three\x0bfour\t3"),
        "one\u2028two\x85three\x0bfour",
    ),
    "quoted newline": (lines(HEADER, '0\ta\t"one\ntwo"\t3'), "one\ntwo"),
    "trailing empty fields": (lines(HEADER, "0\ta\tplain\t3\t\t"), "plain"),
    "blank lines": (lines("", HEADER, "", "0\ta\tplain\t3", "", ""), "plain"),
    "other order": (lines("sentiment\tnote\tsentence\tid", "3.0\tx\tplain\ta"), "plain"),
    "long text": (lines(HEADER, f"0\ta\t{'long ' * 40000}end\t3"), "long " * 40000 + "end"),
}


@pytest.mark.parametrize(("content", "text"), VALID_FILES.values(), ids=VALID_FILES)
def test_odd_but_valid_files(tmp_path, caplog, content, text):
    """Guards against text that is silently changed, cut or lost on the way in."""
    assert read_examples(write(tmp_path, content), SST) == [Example("a", (text,), 3.0)]
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_numbers_after_a_quoted_newline(tmp_path, caplog, end):
    """Guards against row numbers reported as line numbers: the user would look at another line."""
    rows = good_rows(200)
    # Row 4 stands on lines 6 to 8, row 5 on line 9.
    rows[4:6] = [f'4\tid4\t"one{end}two{end}three"\t1', "5\tid5\tno label\t"]
    examples = read_examples(write(tmp_path, lines(HEADER, *rows, end=end)), SST)
    assert len(examples) == 199 and examples[4].texts == (f"one{end}two{end}three",)
    assert "1 of 200 rows" in caplog.text and "(line 9;" in caplog.text


def test_unlabelled_rows_are_all_kept_in_order(tmp_path, caplog):
    """Guards against a prediction file with fewer rows than the test file, or in another order."""
    rows = ["0\tb\tone\ttwo", "1\ta\t\t", "2\td", "3\tc\tone", "4\te\t \ttwo\t\t", "5\tf\tone\ttwo\t2.0"]
    examples = read_examples(write(tmp_path, lines("\tid\tsentence1\tsentence2", *rows)), STS, labelled=False)
    texts = [("one", "two"), ("", ""), ("", ""), ("one", ""), ("", "two"), ("one", "two")]
    assert examples == [Example(id, pair, None) for id, pair in zip("badcef", texts, strict=True)]
    (warning,) = warnings_of(caplog)
    assert "line 7" in warning and "stray tab" in warning


def test_similarity_labels_stay_floats(tmp_path, tokenizer):
    """Guards against scores cut to integers, which only lowers the correlation and gives no error."""
    scores = ["3.8", "0", "5.0", "0.25", "4.999"]
    header = "\tid\tsentence1\tsentence2\tsimilarity"
    rows = [f"0\tid\tone\ttwo\t{score}" for score in scores]
    examples = read_examples(write(tmp_path, lines(header, *rows)), STS)
    assert [example.label for example in examples] == [3.8, 0.0, 5.0, 0.25, 4.999]
    labels = tokenize(examples, STS, tokenizer, 32).labels
    assert torch.equal(labels, torch.tensor([3.8, 0.0, 5.0, 0.25, 4.999], dtype=torch.float32))


# ------------------------------------------------------------------------------------- unusable rows

BAD_ROWS = {
    "no label": "0\tbad\ttext\t",
    "too high": "0\tbad\ttext\t5",
    "between classes": "0\tbad\ttext\t1.5",
    "nan": "0\tbad\ttext\tnan",
    "a word": "0\tbad\ttext\tgood",
    "a number to Python only": "0\tbad\ttext\t0_1",
    "empty text": "0\tbad\t\t1",
    "no id": "0\t\ttext\t1",
    "id with a line break": "0\tb\u2028d\ttext\t1",
    "too few fields": "0\tbad\ttext",
    "unquoted tab": "0\tbad\tte\txt\t1",
}


@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS)
def test_unusable_rows_are_skipped_and_reported_once(tmp_path, caplog, row):
    """Guards against a bad row that is trained on with a wrong label
    or dropped without a word, and against a warning for each row."""
    rows = good_rows(400)
    for place in (9, 99, 199, 299):  # on lines 11, 101, 201, 301: exactly 1 % of the rows
        rows[place] = row
    examples = read_examples(write(tmp_path, lines(HEADER, *rows)), SST)
    assert len(examples) == 396 and "bad" not in {example.id for example in examples}
    assert len(warnings_of(caplog)) == 1
    assert "4 of 400 rows" in caplog.text and "(line 11, 101, 201, ...;" in caplog.text


def test_too_many_unusable_rows_are_an_error(tmp_path):
    """Guards against training on the readable part of a file of another kind."""
    rows = good_rows(399)
    for place in (9, 99, 199, 299):
        rows[place] = BAD_ROWS["no label"]
    path = write(tmp_path, lines(HEADER, *rows))
    with pytest.raises(UserError, match="4 of 399 rows") as error:
        read_examples(path, SST)
    assert str(error.value).startswith(f"{path}:11: ")


@pytest.mark.parametrize("fields", ["one\t\t3", "one\ttwo\t5.1"])
def test_unusable_pairs_are_skipped(tmp_path, caplog, fields):
    """Guards against pairs with only one text, and scores outside the scale."""
    rows = [f"{i}\tid{i}\tone\ttwo\t{i / 20}" for i in range(100)]
    rows[50] = "50\tbad\t" + fields
    examples = read_examples(write(tmp_path, lines("\tid\tsentence1\tsentence2\tsimilarity", *rows)), STS)
    assert [example.label for example in examples] == [i / 20 for i in range(100) if i != 50]
    assert "1 of 100 rows" in caplog.text and "(line 52;" in caplog.text


@pytest.mark.parametrize("labelled", [True, False])
def test_an_id_that_comes_twice_is_reported(tmp_path, caplog, labelled):
    """Guards against two lines of a prediction file that nobody can tell apart."""
    rows = good_rows(6)
    rows[3] = rows[5] = "9\tid1\tanother text\t2"  # lines 5 and 7; the first is line 3
    assert len(read_examples(write(tmp_path, lines(HEADER, *rows)), SST, labelled)) == 6
    (warning,) = warnings_of(caplog)
    assert "2 rows have the id of an earlier row (first: line 5, 'id1' as in line 3)" in warning


# ------------------------------------------------------------------------------------ unusable files

ROW = "0\ta\tplain\t1"
UNLABELLED = "\tid\tsentence"
LATIN = lines(HEADER, ROW, "1\tb\tcafé\t1").encode("latin-1")
UNUSABLE_FILES = {
    "no label column": (lines(UNLABELLED, "0\ta\tplain"), True, 1, "sentiment"),
    "an id column in capitals": (lines("ID\tsentence\tsentiment", "a\tplain\t1"), True, 1, "id"),
    "two id columns": (lines("id\tid\tsentence", "a\tb\tplain"), False, 1, "id"),
    "header after blank lines": (lines("", "", UNLABELLED, "0\ta\tplain"), True, 3, "sentiment"),
    "no header": (lines(*good_rows(3)), True, 1, "sentence"),
    "empty": (b"", True, 1, "empty"),
    "header only": (lines(HEADER), True, 1, "no rows"),
    "Latin-1": (LATIN, True, 3, "UTF-8"),
    "Latin-1, BOM": (b"\xef\xbb\xbf" + LATIN, True, 3, "UTF-8"),
    "open quote": (lines(HEADER, ROW, '1\tb\t"open\t1', *good_rows(300)), True, 3, "quote"),
    "open quote, unlabelled": (lines(UNLABELLED, "0\ta\tx", '1\tb\t"open', "2\tc\ty"), False, 3, "quote"),
    "open quote, closed by a later one": (
        lines(HEADER, '0\ta\t"open\t1', '1\tb\tan "innocent" row\t1'),
        True,
        2,
        "quote",
    ),
    "unlabelled row without id": (lines(UNLABELLED, "0\ta\tplain", "1\t\tplain"), False, 3, "id"),
    "unlabelled id that ends like the separator": (lines(UNLABELLED, "1\tb ,\tplain"), False, 2, "id"),
}


@pytest.mark.parametrize(("content", "labelled", "line", "word"), UNUSABLE_FILES.values(), ids=UNUSABLE_FILES)
def test_unusable_files_are_refused_with_file_and_line(tmp_path, content, labelled, line, word):
    """Guards against training on half a file or on nothing, and against an error that doesn't say where."""
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=rf"(?i)\b{word}\b") as error:
        read_examples(path, SST, labelled)
    assert str(error.value).startswith(f"{path}:{line}: ")


def test_what_is_no_file_is_refused(tmp_path):
    """Guards against a traceback for a mistyped path."""
    for path in (tmp_path / "missing.csv", tmp_path):
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}: cannot be read"):
            read_examples(path, SST)
