"""Files as strangers bring them, under tests/fixtures/strangers: refused in one line that says what was found
and what to do. tests/README.md counts them."""

import shutil
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
    "lines.csv": ("JSON lines with 'sentence', 'label'", "rename it to .jsonl"),
    "list.csv": ("JSON", "rename it to .json"),
    "rows.parquet": ("a Parquet file", f"read_parquet(path){TO_CSV}"),
    "rows.xlsx": ("an Excel workbook", "CSV UTF-8"),
    "rows.csv.gz": ("a compressed file", "unpack it"),
    "utf-16.csv": ("a text in UTF-16", "iconv -f UTF-16 -t UTF-8"),
    "utf-16-no-mark.csv": ("a text in UTF-16", "iconv -f UTF-16 -t UTF-8"),
    "page.csv": ("a web page", "download the file itself"),
    "pointer.csv": ("a git-lfs pointer", "git lfs pull"),
}
JSON = {"lines.csv": "lines.jsonl", "list.csv": "list.json"}  # under another name
# file, task: columns of the texts and of the label
READ = {
    ("glue-qqp.tsv", "para"): ("question1", "question2", "is_duplicate"),
    ("kaggle-quora.csv", "para"): ("question1", "question2", "is_duplicate"),
    ("glue-stsb.tsv", "sts"): ("sentence1", "sentence2", "score"),
    ("kaggle-movies.tsv", "sst"): ("Phrase", "Sentiment"),
}
# file, task: what to do
HEADERS = {
    ("glue-sst2.tsv", "sst"): "'label' has 2 values and sst 5 classes: train a task of its own, --train_file",
    ("glue-stsb.tsv", "para"): "no column 'is_duplicate' in the header (it has 'index', ",
    ("glue-mrpc.tsv", "para"): "rename the column, or train a task of its own: --train_file",
    ("glue-cola.tsv", "sst"): "rename the column, or train a task of its own: --train_file",
    ("kaggle-imdb.csv", "cfimdb"): "rename the column, or train a task of its own: --train_file",
    ("lines.jsonl", "sst"): "no column 'sentiment' in the header (it has 'sentence', 'label'",
    ("list.json", "sst"): "no column 'sentiment' in the header (it has 'sentence', 'label'",
}


def refused(path: Path, task: str, read=read_examples) -> str:
    """The one line of the error."""
    with pytest.raises(UserError, match=f"^{path}:(1:)? ") as error:
        read(path, TASKS[task])
    line = str(error.value).removeprefix(f"{path}:").removeprefix("1:")
    assert "\n" not in line and len(line) < 400
    return line.strip()


@pytest.mark.parametrize(("name", "words"), SHAPES.items())
@pytest.mark.parametrize("read", [read_examples, read_unlabelled], ids=lambda read: read.__name__)
def test_another_shape_is_named(name, words, read, tmp_path):
    """Guards against JSON lines that are "an open quote", and against a workbook's bytes, JSON's braces or a
    pointer of Git LFS that are trained on as texts."""
    found, mend = words
    path = FILES / name
    if name in JSON:
        path = Path(shutil.copy(FILES / JSON[name], tmp_path / name))
    line = refused(path, "sst", read)
    if read is read_unlabelled and found.startswith("JSON"):  # no name makes it readable there
        found, mend = "JSON", "a text a line"
    assert line.startswith(found) and mend in line


def test_a_workbook_is_no_list_of_texts(capsys):
    """Guards against an answer to each line of a zip archive."""
    assert (
        run_program("--option=predict", "--checkpoint=x", "--task=sst", "--input", FILES / "rows.xlsx") == 2
    )
    assert f"--input {FILES / 'rows.xlsx'}: an Excel workbook" in capsys.readouterr().err


@pytest.mark.parametrize(("key", "columns"), READ.items(), ids=str)
def test_columns_of_glue_and_kaggle_are_read(key, columns):
    """Guards against another column that is taken for the text, or quotes that swallow rows. By pandas."""
    name, task = key
    table = pandas.read_csv(FILES / name, sep="\t" if name.endswith(".tsv") else ",")
    examples = read_examples(FILES / name, TASKS[task])
    *texts, label = (table[column] for column in columns)
    assert [row.texts for row in examples] == [tuple(map(str.strip, row)) for row in zip(*texts, strict=True)]
    assert [row.label for row in examples] == label.tolist()


@pytest.mark.parametrize(("key", "mend"), HEADERS.items(), ids=lambda value: str(value)[:40])
def test_a_header_of_another_data_set(key, mend):
    """Guards against a message that leaves the user to guess, JSON that is "an open quote", and against
    STS-B's scores or two classes that are learned as something else."""
    name, task = key
    assert mend in refused(FILES / name, task)


def test_a_text_may_begin_like_json(tmp_path):
    """Guards against plain texts that are taken for JSON, or for a web page."""
    path = tmp_path / "texts.txt"
    for first in ("[SEP] is a token", "{braces} are fine", "<b>bold</b>", '["quoted", he said', "[[1]]"):
        path.write_text(f"{first}\nanother text\n")
        assert read_unlabelled(path, TASKS["sst"])[0].texts == (first,)
