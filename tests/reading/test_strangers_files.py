"""Files as strangers bring them, under tests/fixtures/strangers: refused in one line that says what was found
and what to do. tests/README.md counts them."""

from pathlib import Path

import pandas
import pytest

from datasets import read_examples, read_unlabelled
from helpers import ROOT, run_program
from support.errors import UserError
from tasks import TASKS

FILES = ROOT / "tests" / "fixtures" / "strangers"
TO_CSV = ".to_csv('rows.csv', index=False)"
# file: what is found, what to do
SHAPES = {
    "lines.jsonl": ("JSON lines with 'sentence', 'label'", f"read_json(path, lines=True){TO_CSV}"),
    "list.json": ("JSON", f"read_json(path){TO_CSV}"),
    "rows.parquet": ("a Parquet file", f"read_parquet(path){TO_CSV}"),
    "rows.xlsx": ("an Excel workbook", "CSV UTF-8"),
    "rows.csv.gz": ("a compressed file", "unpack it"),
    "utf-16.csv": ("a text in UTF-16", "iconv -f UTF-16 -t UTF-8"),
    "utf-16-no-mark.csv": ("a text in UTF-16", "iconv -f UTF-16 -t UTF-8"),
    "page.csv": ("a web page", "download the file itself"),
    "pointer.csv": ("a pointer of Git LFS", "git lfs pull"),
}
SST2 = "rename 'label' to 'sentiment'; GLUE's SST-2, with two classes, would be data for cfimdb"
QUORA = "rename 'question1' to 'sentence1', 'question2' to 'sentence2'"
# file, task: what to do
HEADERS = {
    ("glue-sst2.tsv", "sst"): SST2,
    ("glue-sst2.tsv", "cfimdb"): "rename 'label' to 'sentiment'",
    ("glue-qqp.tsv", "para"): QUORA,
    ("glue-qqp.tsv", "sst"): "this is Quora's pairs (GLUE's QQP, Kaggle), data for para (--para_train",
    ("glue-stsb.tsv", "sts"): "rename 'score' to 'similarity'",
    ("glue-stsb.tsv", "para"): "this is GLUE's STS-B, data for sts (--sts_train",
    ("glue-mrpc.tsv", "para"): "'#1 String' to 'sentence1', '#2 String' to 'sentence2', 'Quality' to 'is_dup",
    ("glue-cola.tsv", "sst"): "the first line must name the columns sentence, sentiment",
    ("kaggle-quora.csv", "para"): QUORA,
    ("kaggle-movies.tsv", "sst"): "rename 'Phrase' to 'sentence', 'Sentiment' to 'sentiment'",
    ("kaggle-imdb.csv", "cfimdb"): "rename 'review' to 'sentence'",
}
RENAMED = {key: words for key, words in HEADERS.items() if words.startswith(("rename", "'#1"))}


def refused(path: Path, task: str, read=read_examples) -> str:
    """The one line of the error."""
    with pytest.raises(UserError, match=f"^{path}:1: ") as error:
        read(path, TASKS[task])
    assert "\n" not in str(error.value) and len(str(error.value).removeprefix(str(path))) < 400
    return str(error.value).removeprefix(f"{path}:1: ")


@pytest.mark.parametrize(("name", "words"), SHAPES.items())
@pytest.mark.parametrize("read", [read_examples, read_unlabelled], ids=lambda read: read.__name__)
def test_another_shape_is_named(name, words, read):
    """Guards against JSON lines that are "an open quote", and against a workbook's bytes or JSON's braces
    that are trained on as texts without labels."""
    found, mend = words
    line = refused(FILES / name, "sst", read)
    assert line.startswith(found) and mend in line


def test_a_workbook_is_no_list_of_texts(capsys):
    """Guards against an answer to each line of a zip archive."""
    assert (
        run_program("--option=predict", "--checkpoint=x", "--task=sst", "--input", FILES / "rows.xlsx") == 2
    )
    assert f"--input {FILES / 'rows.xlsx'}: an Excel workbook" in capsys.readouterr().err


@pytest.mark.parametrize(("key", "mend"), HEADERS.items(), ids=lambda value: str(value)[:40])
def test_a_header_of_glue_and_kaggle(key, mend):
    """Guards against a message that leaves the user to guess which column is which, and against STS-B's
    scores or two classes that are learned as something else."""
    name, task = key
    line = refused(FILES / name, task)
    assert line.startswith("no column ") and mend in line


@pytest.mark.parametrize("key", RENAMED, ids=str)
def test_what_the_line_says_works(key, tmp_path):
    """Guards against an advice after which the file is still refused. Reference: pandas."""
    name, task = key
    table = pandas.read_csv(FILES / name, sep="\t" if name.endswith(".tsv") else ",")
    line = refused(FILES / name, task)
    words = line.partition("rename ")[2].partition(";")[0].split("'")
    names = dict(zip(words[1::4], words[3::4], strict=True))
    table.rename(columns=names).to_csv(tmp_path / "rows.csv", index=False)
    examples = read_examples(tmp_path / "rows.csv", TASKS[task])
    columns = {ours: theirs for theirs, ours in names.items()}
    texts = [table[columns.get(name, name)] for name in TASKS[task].text_columns]
    assert [row.texts for row in examples] == [tuple(map(str.strip, row)) for row in zip(*texts, strict=True)]


def test_a_tables_way_out_of_json_and_parquet(tmp_path):
    """Guards against an advice after which the file is still refused. Reference: pandas."""
    pandas.read_parquet(FILES / "rows.parquet").to_csv(tmp_path / "rows.csv", index=False)
    assert [row.label for row in read_examples(tmp_path / "rows.csv", TASKS["sst"])] == [4, 1, 2]
    pandas.read_json(FILES / "lines.jsonl", lines=True).to_csv(tmp_path / "rows.csv", index=False)
    assert "rename 'label' to 'sentiment'" in refused(tmp_path / "rows.csv", "sst")


def test_a_text_may_begin_like_json(tmp_path):
    """Guards against plain texts that are taken for JSON, or for a web page."""
    path = tmp_path / "texts.txt"
    for first in ("[SEP] is a token", "{braces} are fine", "<b>bold</b>", '["quoted", he said', "[[1]]"):
        path.write_text(f"{first}\nanother text\n")
        assert read_unlabelled(path, TASKS["sst"])[0].texts == (first,)
