"""python -m data.download, from a hub of our own: what is written, and what goes wrong."""

import functools
import json
import os
from unittest import mock

import huggingface_hub
import pytest
from huggingface_hub import errors

from config import COURSE_TASKS
from data import download
from data.download import SOURCES
from datasets import read_examples
from helpers import run_program
from tasks import TASKS

SST_NAMES = ("very negative", "negative", "neutral", "positive", "very positive")


def json_lines(*records: dict) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def sst(text: str, label: int) -> dict:
    return {"text": text, "label": label, "label_text": SST_NAMES[label]}


def pair(text1: str, text2: str, label: float) -> dict:
    return {"text1": text1, "text2": text2, "label": label, "idx": 0, "label_text": "unlabeled"}


# Rows of our own, with the fields of the real data sets. What a text may hold is in them: tabs, line breaks,
# quotes, other scripts; a label of STS-B is a 32-bit float.
SST, STS, PARA, IMDB = (SOURCES[name].dataset for name in ("sst", "sts", "para", "cfimdb"))
FILES = {
    SST: {
        "train.jsonl": json_lines(
            sst('a "fine" film', 4), sst("tab\there\nand there", 0), sst("так себе", 2)
        ),
        "dev.jsonl": json_lines(sst("not for me", 1)),
        "test.jsonl": json_lines(sst('"quoted" from the start', 3), sst("the end", 2)),
    },
    STS: {
        "train.jsonl": json_lines(pair("A cat sleeps.", "A cat naps.", 3.7999999523)),
        "validation.jsonl": json_lines(
            pair("a", "b", 0.0), pair("c", "d", 5.0), pair("e", "f", 2.9170000553)
        ),
        "test.jsonl": json_lines(pair("g", "h", -1.0)),
    },
    PARA: {
        "train.jsonl": json_lines(pair("Why?", "How?", 0), pair("How old?", "What age?", 1)),
        "validation.jsonl": json_lines(pair("Who?", "Whom?", 1)),
        "test.jsonl": json_lines(*(pair(f"Is it {i}?", "Is it?", -1) for i in range(7))),
    },
    IMDB: {
        "train.tsv": b'Sentiment\tText\nNegative\t"Dull.<br /><br />Very ""dull""."\nPositive\tFine.\n',
        "dev.tsv": b"Sentiment\tText\nPositive\tGood, all of it.\n",
        "test.tsv": b"Sentiment\tText\nNegative\tNever again.\n",
    },
}
# What training reads of them; para's test file is cut to four rows.
READ = {
    ("sst", "train"): [(('a "fine" film',), 4), (("tab here and there",), 0), (("так себе",), 2)],
    ("sst", "dev"): [(("not for me",), 1)],
    ("sst", "test"): [(('"quoted" from the start',), None), (("the end",), None)],
    ("sts", "train"): [(("A cat sleeps.", "A cat naps."), 3.8)],
    ("sts", "dev"): [(("a", "b"), 0), (("c", "d"), 5), (("e", "f"), 2.917)],
    ("sts", "test"): [(("g", "h"), None)],
    ("para", "train"): [(("Why?", "How?"), 0), (("How old?", "What age?"), 1)],
    ("para", "dev"): [(("Who?", "Whom?"), 1)],
    ("para", "test"): [((f"Is it {i}?", "Is it?"), None) for i in range(4)],
    ("cfimdb", "train"): [(('Dull.<br /><br />Very "dull".',), 0), (("Fine.",), 1)],
    ("cfimdb", "dev"): [(("Good, all of it.",), 1)],
    ("cfimdb", "test"): [(("Never again.",), None)],
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with FILES in place of the real one; its calls have the signatures of huggingface_hub's."""
    hub = mock.create_autospec(huggingface_hub.HfApi, instance=True)
    hub.files = {name: dict(files) for name, files in FILES.items()}
    hub.commits = {name: f"{number:x}" * 40 for number, name in enumerate(FILES, start=10)}
    hub.asked = []  # revisions and files

    def dataset_info(name, revision, timeout):
        hub.asked.append(revision)
        if revision not in ("main", hub.commits[name]):
            raise errors.RevisionNotFoundError("no such revision", response=mock.Mock())
        return mock.Mock(sha=hub.commits[name])

    def download(name, file, repo_type, revision):
        assert (repo_type, revision) == ("dataset", hub.commits[name])
        hub.asked.append(f"{name}/{file}")
        if file not in hub.files[name]:
            raise errors.EntryNotFoundError(f"no {file}")
        path = tmp_path / "cache" / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(hub.files[name][file])
        return str(path)

    hub.dataset_info.side_effect = dataset_info
    hub.hf_hub_download.side_effect = download
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    return hub


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


def fetch(folder, *words: str) -> int:
    return download.main(["--data_dir", str(folder), *words])


def refused(capsys, folder, *words: str, named: tuple[str, ...]) -> None:
    """The download ends with status 2 and a line that has these words."""
    capsys.readouterr()
    assert fetch(folder, *words) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("data.download: error: ")
    assert [word for word in named if word not in error] == [], error


def test_the_files_are_read_as_the_courses(hub, folder, tmp_path, monkeypatch):
    """Guards against a label that moves by one, a score with the noise of a 32-bit float, a text that a tab
    cuts, test labels that leak, hours of predictions for Quora's 390,965 public test rows, and ids that fit
    no other download."""
    monkeypatch.setitem(SOURCES, "para", SOURCES["para"]._replace(test_limit=4))
    assert fetch(folder) == fetch(tmp_path / "again") == 0
    ids = []
    for (name, split), expected in READ.items():
        file = TASKS[name].filename(split)
        rows = read_examples(folder / file, TASKS[name], labelled=split != "test")
        assert [(row.texts, row.label) for row in rows] == expected
        ids += [row.id for row in rows]
        assert (folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert len(ids) == len(set(ids)) and all(len(id) == 25 and int(id, 16) >= 0 for id in ids)
    lines = (folder / "quora-train.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "\tid\tsentence1\tsentence2\tis_duplicate" and lines[2].endswith("\t1.0")
    assert (folder / "sts-test-student.csv").read_text().splitlines()[0] == "\tid\tsentence1\tsentence2"
    assert (folder / "ids-sst-dev.csv").read_text().splitlines()[1].endswith("\tnot for me\t1")


def test_the_program_trains_on_what_is_written(hub, encoder, folder, tmp_path, no_course_data, capsys):
    """Guards against files that only a test reads, and against ids that are handed in as the course's."""
    assert fetch(folder, "--tasks", *COURSE_TASKS) == 0
    flags = ["--data_dir", folder, "--epochs", 1, "--steps_per_epoch", 3, "--no_report"]
    out = tmp_path / "out"
    assert run_program("--model_name_or_path", encoder, *flags, "--output_dir", out) == 0
    assert run_program("--option", "submit", "--output_dir", out) == 0
    assert "for files of data.download, so Gradescope will not know their ids" in capsys.readouterr().out


def test_files_that_are_there_are_kept_without_the_network(hub, folder, capsys):
    """Guards against a second download, and against one over the course's own files."""
    assert fetch(folder, "--tasks", "sts") == 0
    said = capsys.readouterr().out
    assert "sts-train.csv: 1 rows; there were 5,749 when this program was written" in said
    hub.asked.clear()
    assert fetch(folder, "--tasks", "sts") == 0
    assert hub.asked == [] and "sts-train.csv: kept\n" in capsys.readouterr().out
    entry = json.loads((folder / "download.json").read_text())["sts-train.csv"]
    known = (STS, "train.jsonl", hub.commits[STS], 1)
    assert tuple(entry[name] for name in ("dataset", "file", "commit", "rows")) == known
    (folder / "ids-sst-train.csv").write_text("the course's own")
    assert fetch(folder, "--tasks", "sst") == 0
    assert "ids-sst-train.csv: kept; its rows may be in the new files" in capsys.readouterr().out
    assert (folder / "ids-sst-train.csv").read_text() == "the course's own"
    assert (folder / "ids-sst-dev.csv").exists()


def test_a_break_leaves_what_is_finished_and_the_rest_follows(hub, folder, capsys):
    """Guards against starting again from nothing, and against half a file that counts as one."""
    lost = hub.files[STS].pop("validation.jsonl")
    named = (f"{STS}, validation.jsonl at commit bbbb", "goes on")
    refused(capsys, folder, "--tasks", "sst,sts", named=named)
    sst = ["ids-sst-dev.csv", "ids-sst-test-student.csv", "ids-sst-train.csv"]
    assert sorted(os.listdir(folder)) == ["download.json", *sst, "sts-train.csv"]
    hub.files[STS]["validation.jsonl"] = lost
    hub.asked.clear()
    assert fetch(folder, "--tasks", "sst", "sts") == 0
    assert hub.asked == ["main", *(f"{STS}/{file}" for file in SOURCES["sts"].files[1:])]
    assert len(json.loads((folder / "download.json").read_text())) == 6


def test_a_revision_by_its_commit(hub, folder, tmp_path, capsys):
    """Guards against a revision that is asked for and not taken."""
    commit = hub.commits[SST]
    assert fetch(folder, "--tasks", "sst", "--revision", commit) == 0
    assert hub.asked[0] == commit
    named = (f"--revision {commit}: {STS} has no such revision", "--tasks sst --revision COMMIT")
    refused(capsys, tmp_path / "other", "--tasks", "sts", "--revision", commit, named=named)


@pytest.mark.parametrize(
    ("task", "lines", "named"),
    [
        ("sst", json_lines(sst("a", 1), {"sentence": "b", "label_text": "neutral"}), ":2: no field 'text'"),
        ("sst", json_lines({"text": "a", "label_text": "great"}), ":1: sentiment 'great' is not one of"),
        ("sst", b'{"text": "a"\n', ":1: not JSON"),
        ("sts", json_lines(pair("a", "b", -1.0)), ":1: similarity '-1.0' is out of range"),
        ("para", json_lines(pair("a", "b", -1)), ":1: is_duplicate '-1' is not one of"),
        ("cfimdb", b"Sentiment\tText\nMixed\tSo so.\n", ":2: sentiment 'Mixed' is not one of"),
        ("cfimdb", b"label\ttext\n1\ta\n", ":2: no field 'Text' (it has label, text)"),
    ],
)
def test_a_data_set_of_another_form_is_refused(hub, folder, capsys, task, lines, named):
    """Guards against labels and texts that are taken for what they are not. File and line are named."""
    source = SOURCES[task]
    hub.files[source.dataset][source.files[1]] = lines
    refused(capsys, folder, "--tasks", task, named=(f"{source.dataset}/{source.files[1]}", named))
    assert not (folder / TASKS[task].filename("dev")).exists()


def test_a_wrong_flag_is_one_line(hub, folder, tmp_path, capsys):
    """Guards against a traceback, and against a download before the mistake is seen."""
    refused(capsys, folder, "--tasks", "spara", named=("--tasks spara", "did you mean para?"))
    refused(capsys, folder, "--revisoin", "main", named=("did you mean --revision?",))
    (tmp_path / "file").write_text("")
    refused(capsys, tmp_path / "file", named=("--data_dir", "file"))
    assert hub.asked == []


def test_offline(folder, capsys, monkeypatch):
    """Guards against a traceback, or a minute of silence, without a network."""
    api = functools.partial(huggingface_hub.HfApi, "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub, "HfApi", api)
    refused(capsys, folder, named=(f"{SST}: cannot be fetched", "goes on"))
    assert not folder.exists()
