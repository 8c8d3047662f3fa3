"""Hand-made files with tabs or commas: read as meant, skipped row by row, or refused with file and line."""

import re
from pathlib import Path

import pytest

from datasets import Example, read_examples
from helpers import warnings_of
from support.errors import UserError
from tasks import TASKS

SST = TASKS["sst"]
STS = TASKS["sts"]
HEADER = "\tid\tsentence\tsentiment"
COMMAS = "id,sentence,sentiment"
PAIRS = "\tid\tsentence1\tsentence2\tsimilarity"


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "rows.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(*rows: str, end: str = "\n") -> str:
    return "".join(row + end for row in rows)


def good_rows(count: int) -> list[str]:
    return [f"{i}\tid{i}\ttext {i}\t{i % 5}" for i in range(count)]


VALID = {
    "doubled quotes": (lines(HEADER, '0\ta\t"say ""no"" twice"\t3'), 'say "no" twice'),
    "a tab in quotes": (lines(HEADER, '0\ta\t"one\ttwo, ""three"""\t3'), 'one\ttwo, "three"'),
    "quotes within": (lines(HEADER, '0\ta\tsay "no" twice\t3'), 'say "no" twice'),
    "BOM, CRLF": ("\ufeff" + lines(HEADER, "0\ta\tplain\t3", end="\r\n"), "plain"),
    "line separators": (lines(HEADER, "0\ta\tone\u2028two\x85three\t3"), "one\u2028two\x85three"),
    "quoted newline": (lines(HEADER, '0\ta\t"one\ntwo"\t3'), "one\ntwo"),
    "trailing empty fields": (lines(HEADER, "0\ta\tplain\t3\t\t"), "plain"),
    "blank lines": (lines("", HEADER, "", "0\ta\tplain\t3", "", ""), "plain"),
    "other order": (
        lines("sentiment\tnote, mine\tsentence\tID", "3.0\tx, y\tgood, really\ta"),
        "good, really",
    ),
    "long text": (lines(HEADER, f"0\ta\t{'long ' * 40000}end\t3"), "long " * 40000 + "end"),
    "commas": (lines(COMMAS, "a,plain,3"), "plain"),
    "commas, everything quoted": (lines('"id","sentence","sentiment"', '"a","plain","3"'), "plain"),
    "commas, BOM, CRLF": ("\ufeff" + lines(COMMAS, "a,plain,3", end="\r\n"), "plain"),
    "commas, blank lines": (lines("", COMMAS, "", "a,plain,3", ""), "plain"),
    "commas, spaces around": (' id , "sentence", sentiment\n a , "plain", 3\n', "plain"),
    "commas, empty fields at the end": (lines(COMMAS, "a,plain,3,,"), "plain"),
    "commas, a comma": (lines(COMMAS, 'a,"good, really",3'), "good, really"),
    "commas, doubled quotes": (lines(COMMAS, 'a,"say ""no"", twice",3'), 'say "no", twice'),
    "commas, a tab": (lines(COMMAS, "a,one\ttwo,3"), "one\ttwo"),
    "commas, lines like rows": (lines(COMMAS, 'a,"one,1\n2,two,0\n3,three",3'), "one,1\n2,two,0\n3,three"),
}


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(("content", "text"), VALID.values(), ids=VALID)
def test_odd_but_valid_files(tmp_path, caplog, content, text, labelled):
    """Guards against text that is silently changed, cut, joined with the next row or lost."""
    row = Example("a", (text,), 3.0 if labelled else None)
    assert read_examples(write(tmp_path, content), SST, labelled) == [row]
    assert warnings_of(caplog) == []


def test_a_file_of_one_column_keeps_its_commas(tmp_path):
    """Guards against sentences that are cut at their first comma."""
    path = write(tmp_path, 'sentence\nGood, but long.\n"quoted, too"\n')
    examples = read_examples(path, SST, labelled=False)
    assert examples == [("1", ("Good, but long.",), None), ("2", ("quoted, too",), None)]


def test_unlabelled_rows_are_all_kept_in_order(tmp_path, caplog):
    """Guards against a prediction file with fewer rows than the test file, or in another order."""
    rows = ["0\tb\tone\ttwo", "1\ta\t\t", "2\tc\tone\t", "3\te\t \ttwo\t\t"]
    examples = read_examples(write(tmp_path, lines("\tid\tsentence1\tsentence2", *rows)), STS, labelled=False)
    texts = [("one", "two"), ("", ""), ("one", ""), ("", "two")]
    assert examples == [Example(id, pair, None) for id, pair in zip("bace", texts, strict=True)]
    assert warnings_of(caplog) == []


BAD_ROWS = {
    "no label": "0\tbad\ttext\t",
    "too high": "0\tbad\ttext\t5",
    "a word": "0\tbad\ttext\tgood",
    "empty text": "0\tbad\t\t1",
    "no id": "0\t\ttext\t1",
    "id with a line break": "0\tb\u2028d\ttext\t1",
    "too few fields": "0\tbad\ttext",
    "unquoted tab": "0\tbad\tte\txt\t1",
}


@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS)
def test_unusable_rows_are_skipped_and_reported_once(tmp_path, caplog, row):
    """Guards against a bad row that is trained on with a wrong label or dropped without a word, a warning for
    each row, and training on the readable part of a file of another kind."""
    rows = good_rows(400)
    for place in (9, 99, 199, 299):  # on lines 11, 101, 201, 301: exactly 1 % of the rows
        rows[place] = row
    examples = read_examples(write(tmp_path, lines(HEADER, *rows)), SST)
    assert len(examples) == 396 and "bad" not in {example.id for example in examples}
    (warning,) = warnings_of(caplog)
    assert "4 of 400 rows" in warning and "(line 11, 101, 201, ...;" in warning
    path = write(tmp_path, lines(HEADER, *rows[:-1]))
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}:11: 4 of 399 rows"):
        read_examples(path, SST)


def test_pairs_need_both_texts(tmp_path, caplog):
    """Guards against training on pairs with only one text."""
    rows = [f"{i}\tid{i}\tone\ttwo\t{i / 20}" for i in range(100)]
    rows[50] = "50\tbad\tone\t\t3"
    examples = read_examples(write(tmp_path, lines(PAIRS, *rows)), STS)
    assert [example.label for example in examples] == [i / 20 for i in range(100) if i != 50]
    assert "1 of 100 rows" in caplog.text


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_numbers_and_row_numbers(tmp_path, caplog, end):
    """Guards against row numbers reported as line numbers, and against ids that shift when a row is skipped:
    without a column `id`, row 7 of the file must stay row 7."""
    rows = [f"text {i}\t{i % 5}" for i in range(1, 201)]
    # row 4 stands on lines 5 to 7, then comes a blank line, row 5 on line 9
    rows[3:5] = [f'"one{end}two{end}three"\t1{end}', "bad\t9"]
    examples = read_examples(write(tmp_path, lines("sentence\tsentiment", *rows, end=end)), SST)
    assert [example.id for example in examples] == [str(i) for i in range(1, 201) if i != 5]
    assert examples[3].texts == (f"one{end}two{end}three",)
    assert "1 of 200 rows" in caplog.text and "(line 9;" in caplog.text


@pytest.mark.parametrize("labelled", [True, False])
def test_an_id_that_comes_twice_is_reported(tmp_path, caplog, labelled):
    """Guards against two lines of a prediction file that nobody can tell apart."""
    rows = good_rows(6)
    rows[3] = rows[5] = "9\tid1\tanother text\t2"  # lines 5 and 7; the first is line 3
    assert len(read_examples(write(tmp_path, lines(HEADER, *rows)), SST, labelled)) == 6
    (warning,) = warnings_of(caplog)
    assert "2 rows have the id of an earlier row (first: line 5, 'id1')" in warning


ROW = "0\ta\tplain\t1"
UNLABELLED = "\tid\tsentence"
LATIN = lines(HEADER, ROW, "1\tb\tcafé\t1").encode("latin-1")
# content, whether it has labels, the line that is named, what is said of it
UNUSABLE = {
    "no label column": (lines(UNLABELLED, "0\ta\tplain"), True, 1, "no column 'sentiment'"),
    "another column": (lines("id,text,sentiment", "a,x,3"), True, 1, "it has 'id', 'text', 'sentiment'"),
    "two id columns": (lines("id\tid\tsentence", "a\tb\tplain"), False, 1, "2 columns named 'id'"),
    "header after blank lines": (lines("", "", UNLABELLED, "0\ta\tplain"), True, 3, "'sentiment'"),
    "semicolons": (lines("id;sentence;sentiment", "a;x;3"), True, 1, "separated by tabs or commas"),
    "empty": (b"", True, 1, "empty"),
    "header only": (lines(HEADER), True, 1, "no rows"),
    "Latin-1": (LATIN, True, 3, "not UTF-8"),
    "Latin-1, BOM": (b"\xef\xbb\xbf" + LATIN, True, 3, "not UTF-8"),
    "open quote": (lines(HEADER, ROW, '1\tb\t"open\t1', *good_rows(300)), True, 3, "not closed"),
    "open quote, closed later": (
        lines(HEADER, '0\ta\t"open\t1', '1\tb\tan "x" row\t1'),
        True,
        2,
        "not closed",
    ),
    "a tab in quotes that end too early": (lines(HEADER, '0\ta\t"one\ttwo" three\t1'), True, 2, "not closed"),
    "open quote, closed by a later row's end": (
        lines(HEADER, '0\ta\t"open\t1', '1\tb\tend"\t1'),
        True,
        2,
        "not closed",
    ),
    "open quote, unlabelled": (lines(UNLABELLED, '1\tb\t"open', "2\tc\ty"), False, 2, "not closed"),
    "unlabelled, no id": (lines(UNLABELLED, "0\ta\tplain", "1\t\tplain"), False, 3, "is empty"),
    "unlabelled, id like the separator": (lines(UNLABELLED, "1\tb ,\tplain"), False, 2, "' ,'"),
    "unlabelled, a stray tab": (lines(UNLABELLED, "1\tb\tte\txt"), False, 2, "4 fields, not 3"),
    "commas, open quote": (lines("id,sentence", "a,x", 'b,"open', "c,y"), False, 3, "not closed"),
    "commas, open quote, closed later": (lines("id,sentence", 'a,"open', 'b,"x"'), False, 2, "not closed"),
    "commas, quote not doubled": (lines("id,sentence", 'a,"say "no" twice"'), False, 2, "not doubled"),
    "commas, comma outside quotes": (lines(COMMAS, "a,good, really,3"), True, 2, "must stand in quotes"),
    "commas, too few fields": (lines(COMMAS, "a,good"), True, 2, "2 fields, not 3)"),
    "one column, open quote": (lines("sentence", "x", '"open', "y"), False, 3, "not closed"),
    "one column, a tab": (lines("sentence", "x", "good\treally"), False, 3, "must stand in quotes"),
}


@pytest.mark.parametrize(("content", "labelled", "line", "words"), UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_files_are_refused_with_file_and_line(tmp_path, content, labelled, line, words):
    """Guards against training on half a file or on nothing, and against an error that doesn't say where."""
    path = write(tmp_path, content)
    with pytest.raises(UserError) as error:
        read_examples(path, SST, labelled)
    assert str(error.value).startswith(f"{path}:{line}: ") and words in str(error.value)


def test_what_is_no_file_is_refused(tmp_path):
    """Guards against a traceback for a mistyped path."""
    for path in (tmp_path / "missing.csv", tmp_path):
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}: cannot be read"):
            read_examples(path, SST)
