"""Files of the user's own: commas in place of tabs, no ids, labels by name. Expected rows are by hand."""

import re
from dataclasses import replace

import pytest

from datasets import Example, read_examples
from helpers import warnings_of
from support.errors import UserError
from tasks import TASKS, class_label

SST = TASKS["sst"]
PARA = TASKS["para"]


def write(folder, content: str | bytes):
    path = folder / "own.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# ---------------------------------------------------------------------------------------- separators

COMMAS = {
    "plain": "id,sentence,sentiment\na,good,3\n",
    "everything quoted": '"id","sentence","sentiment"\n"a","good","3"\n',
    "CRLF": "id,sentence,sentiment\r\na,good,3\r\n",
    "BOM": "\ufeffid,sentence,sentiment\na,good,3\n",
    "blank lines": "\n\nid,sentence,sentiment\n\na,good,3\n\n",
    "spaces around": ' id , "sentence", sentiment\n a , "good", 3\n',
    "other order": "sentence,sentiment,id\ngood,3.0,a\n",
    "empty fields at the end": "id,sentence,sentiment\na,good,3,,\n",
}


@pytest.mark.parametrize("content", COMMAS.values(), ids=COMMAS)
def test_commas_separate_where_the_header_has_them(tmp_path, caplog, content):
    """Guards against a proper CSV that is refused because the course's files have tabs."""
    assert read_examples(write(tmp_path, content), SST) == [Example("a", ("good",), 3.0)]
    assert warnings_of(caplog) == []


TEXTS = {
    "comma": ('"good, really"', "good, really"),
    "doubled quotes": ('"say ""no"", twice"', 'say "no", twice'),
    "line break": ('"one\ntwo, three"', "one\ntwo, three"),
    "lines that look like rows": ('"one,1\n2,two,0\n3,three"', "one,1\n2,two,0\n3,three"),
    "tab": ("one\ttwo", "one\ttwo"),
}


@pytest.mark.parametrize(("field", "text"), TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("labelled", [True, False])
def test_texts_of_a_comma_separated_file_arrive_whole(tmp_path, caplog, field, text, labelled):
    """Guards against texts that are cut at a comma or a quote, and rows that are joined."""
    path = write(tmp_path, f"id,sentence,sentiment\na,{field},3\nb,next,0\n")
    first, second = read_examples(path, SST, labelled)
    assert first == ("a", (text,), 3.0 if labelled else None) and second[:2] == ("b", ("next",))
    assert warnings_of(caplog) == []


def test_a_tab_in_the_header_means_tabs_whatever_else_is_in_it(tmp_path):
    """Guards against a course file that is split at the commas of its texts."""
    path = write(tmp_path, "id\tsentence\tnotes, of mine\tsentiment\na\tgood, really\tx, y\t3\n")
    assert read_examples(path, SST) == [Example("a", ("good, really",), 3.0)]


def test_a_file_of_one_column_keeps_its_commas(tmp_path):
    """Guards against sentences that are cut at their first comma."""
    path = write(tmp_path, 'sentence\nGood, but long.\n"quoted, too"\n')
    texts = [example.texts[0] for example in read_examples(path, SST, labelled=False)]
    assert texts == ["Good, but long.", "quoted, too"]


UNUSABLE = {
    "semicolons": ("id;sentence;sentiment\na;good;3\n", True, 1, "separated by tabs or commas"),
    "another column": ("id,text,sentiment\na,good,3\n", True, 1, "it has 'id', 'text', 'sentiment'"),
    "a comma outside quotes": ("id,sentence,sentiment\na,good, really,3\n", True, 2, "must stand in quotes"),
    "too few fields": ("id,sentence,sentiment\na,good\n", True, 2, "2 fields, not 3)"),
    "an open quote": ('id,sentence\na,x\nb,"open\nc,y\n', False, 3, "not closed"),
    "an open quote, closed by a quoted field": ('id,sentence\na,"open\nb,"x"\n', False, 2, "not closed"),
    "a quote that is not doubled": ('id,sentence\na,"say "no" twice"\n', False, 2, "not doubled"),
    "one column, an open quote": ('sentence\nx\n"open\ny\n', False, 3, "not closed"),
    "one column, a tab": ("sentence\nx\ngood\treally\n", False, 3, "must stand in quotes"),
}


@pytest.mark.parametrize(("content", "labelled", "line", "words"), UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_files_are_refused_with_file_and_line(tmp_path, content, labelled, line, words):
    """Guards against rows that vanish into an open quote, texts that are cut, and errors without a place."""
    path = write(tmp_path, content)
    with pytest.raises(UserError) as error:
        read_examples(path, SST, labelled)
    assert str(error.value).startswith(f"{path}:{line}: ") and words in str(error.value)


# ----------------------------------------------------------------------------------------------- ids


def test_rows_without_an_id_column_are_numbered(tmp_path, caplog):
    """Guards against ids that shift when a row is skipped: row 7 of the file must stay row 7."""
    rows = [["sentence", "sentiment"], *([f"text {i}", str(i % 5)] for i in range(1, 301))]
    rows[5][1] = "9"
    path = write(tmp_path, "\n\n".join(",".join(row) for row in rows))
    ids = [example.id for example in read_examples(path, SST)]
    assert ids == [str(i) for i in range(1, 301) if i != 5]
    (warning,) = warnings_of(caplog)
    assert "1 of 300 rows" in warning and "line 11;" in warning


# -------------------------------------------------------------------------------------------- labels

NAMES = {
    "sst": {"very negative": 0, "Neutral": 2, " VERY  positive ": 4, "3": 3, "4.0": 4},
    "para": {"not a paraphrase": 0, "Paraphrase": 1, "1.0": 1},
    "cfimdb": {"negative": 0, "POSITIVE": 1},
}


@pytest.mark.parametrize(
    ("task", "text", "label"), [(task, *pair) for task, names in NAMES.items() for pair in names.items()]
)
def test_labels_are_read_by_number_and_by_name(task, text, label):
    """Guards against names that are refused, or numbered in another order than the model's outputs."""
    found = TASKS[task].read_label(text)
    assert type(found) is float and found == label


@pytest.mark.parametrize(
    ("task", "text", "words"),
    [
        (
            "sst",
            "good",
            "sentiment 'good' is not one of 0 (very negative), 1 (negative), 2 (neutral), 3 (pos",
        ),
        ("sst", "5", "sentiment '5' is not one of 0 (very negative)"),
        ("para", "yes", "is_duplicate 'yes' is not one of 0 (not a paraphrase), 1 (paraphrase)"),
        ("sts", "paraphrase", "similarity 'paraphrase' is out of range or not a number"),
    ],
)
def test_an_unknown_label_is_answered_with_the_known_ones(task, text, words):
    """Guards against a message that leaves the user to guess how labels are written."""
    with pytest.raises(ValueError, match=re.escape(words)):
        TASKS[task].read_label(text)


def test_a_new_task_reads_its_names_by_its_record_alone(tmp_path):
    """Guards against names that are written down in a second place."""
    nli = replace(SST, parse_label=class_label(3), label_names=("entailment", "neutral", "contradiction"))
    path = write(tmp_path, "sentence,sentiment\nx,Contradiction\n")
    assert [example.label for example in read_examples(path, nli)] == [2.0]
    assert nli.read_label("neutral") == 1.0
    many = replace(SST, parse_label=class_label(77), label_names=tuple(f"intent {i}" for i in range(77)))
    assert many.read_label("intent 76") == 76.0
    with pytest.raises(ValueError, match="intent 3.*…$") as error:
        many.read_label("intent 77")
    assert len(str(error.value)) < 250
