"""python -m data.download, against a hub on this machine: what is written, and what goes wrong."""

import csv
import io
import json
import os
from pathlib import Path

import huggingface_hub.constants
import pytest

import hub_server
from config import COURSE_TASKS
from data import download
from data.download import SOURCES
from datasets import Example, read_examples
from helpers import run_program
from tasks import TASKS

SST_NAMES = ("very negative", "negative", "neutral", "positive", "very positive")


def json_lines(*records: dict) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def sst(text: str, label: int, name: str | None = None) -> dict:
    return {"text": text, "label": label, "label_text": name or SST_NAMES[label]}


def pair(text1: str | None, text2: str, label: float, **more) -> dict:
    return {"text1": text1, "text2": text2, "label": label, "idx": 0, "label_text": "unlabeled"} | more


def quora(text1: str, text2: str, label: int) -> dict:
    return pair(text1, text2, label, label_text=("not duplicate", "duplicate")[label])


def reviews(*rows: tuple[str, str]) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter="\t", lineterminator="\n").writerows([("Sentiment", "Text"), *rows])
    return buffer.getvalue().encode()


# Rows of our own, with the fields of the real data sets. What a text may hold is in them: tabs, line breaks,
# quotes, other scripts; a label of STS-B is a 32-bit float.
FILES = {
    "SetFit/sst5": {
        "README.md": b"",
        "train.jsonl": json_lines(
            sst('a "fine" film', 4), sst("tab\there\nand there", 0), sst("так себе", 2)
        ),
        "dev.jsonl": json_lines(sst("not for me", 1)),
        "test.jsonl": json_lines(sst('"quoted" from the start', 3), sst("the end", 2)),
    },
    "SetFit/stsb": {
        "train.jsonl": json_lines(pair("A cat sleeps.", "A cat naps.", 3.7999999523, label_text="3.79")),
        "validation.jsonl": json_lines(
            pair("a", "b", 0.0), pair("c", "d", 5.0), pair("e", "f", 2.9170000553)
        ),
        "test.jsonl": json_lines(pair("g", "h", -1.0)),
    },
    "SetFit/qqp": {
        "train.jsonl": json_lines(quora("Why?", "How?", 0), quora("How old?", "What age?", 1)),
        "validation.jsonl": json_lines(quora("Who?", "Whom?", 1)),
        "test.jsonl": json_lines(*(pair(f"Is it {i}?", "Is it?", -1) for i in range(7))),
    },
    "tasksource/counterfactually-augmented-imdb": {
        "train.tsv": reviews(("Negative", 'Dull.<br /><br />Very "dull".'), ("Positive", "Fine.")),
        "dev.tsv": reviews(("Positive", "Good, all of it.")),
        "test.tsv": reviews(("Negative", "Never again.")),
    },
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with FILES, whose data sets are newer than those that the program knows; the library's cache is a
    folder of the test."""
    served = hub_server.Hub(
        files={name: dict(files) for name, files in FILES.items()},
        commits={name: f"{number:x}" * 40 for number, name in enumerate(FILES, start=10)},
    )
    server = hub_server.start(served)
    monkeypatch.setenv("HF_ENDPOINT", served.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield served
    server.shutdown()
    server.server_close()


def fetch(folder: Path, *words: str) -> int:
    return download.main(["--data_dir", str(folder), *words])


def refused(capsys, folder: Path, *words: str, named: tuple[str, ...]) -> None:
    """The download ends with status 2 and a line that has these words."""
    capsys.readouterr()
    assert fetch(folder, *words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("data.download: error: ")
    assert [word for word in named if word not in error] == [], error


def content(folder: Path, task: str, split: str) -> list[tuple[tuple[str, ...], float | None]]:
    """Texts and label of each row, as training reads them."""
    rows = read_examples(folder / TASKS[task].filename(split), TASKS[task], labelled=split != "test")
    assert all(isinstance(row, Example) for row in rows)
    return [(row.texts, row.label) for row in rows]


# ----------------------------------------------------------------------------------- what is written


def test_the_files_are_read_as_the_courses(hub, tmp_path, monkeypatch):
    """Guards against a label that moves by one, a score with the noise of a 32-bit float, a text that a tab
    cuts, test labels that leak, and hours of predictions for Quora's 390,965 public test rows."""
    monkeypatch.setitem(SOURCES, "para", SOURCES["para"]._replace(test_limit=4))
    assert fetch(tmp_path / "data") == 0
    folder = tmp_path / "data"
    assert content(folder, "sst", "train") == [
        (('a "fine" film',), 4.0),
        (("tab here and there",), 0.0),
        (("так себе",), 2.0),
    ]
    assert content(folder, "sst", "dev") == [(("not for me",), 1.0)]
    assert content(folder, "sst", "test") == [(('"quoted" from the start',), None), (("the end",), None)]
    assert content(folder, "sts", "train") == [(("A cat sleeps.", "A cat naps."), 3.8)]
    assert content(folder, "sts", "dev") == [(("a", "b"), 0.0), (("c", "d"), 5.0), (("e", "f"), 2.917)]
    assert content(folder, "para", "train") == [(("Why?", "How?"), 0.0), (("How old?", "What age?"), 1.0)]
    assert content(folder, "cfimdb", "train") == [
        (('Dull.<br /><br />Very "dull".',), 0.0),
        (("Fine.",), 1.0),
    ]
    assert content(folder, "cfimdb", "test") == [(("Never again.",), None)]
    assert [texts[0] for texts, _ in content(folder, "para", "test")] == [f"Is it {i}?" for i in range(4)]
    lines = (folder / "quora-train.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "\tid\tsentence1\tsentence2\tis_duplicate" and lines[2].endswith("\t1.0")
    assert (folder / "sts-test-student.csv").read_text().splitlines()[0] == "\tid\tsentence1\tsentence2"
    assert (folder / "ids-sst-dev.csv").read_text().splitlines()[1].endswith("\tnot for me\t1")


def test_ids_are_the_courses_in_form_and_the_same_each_time(hub, tmp_path):
    """Guards against predictions that cannot be told apart, or that fit no other download."""
    for folder in ("one", "two"):
        assert fetch(tmp_path / folder) == 0
    files = sorted((tmp_path / "one").iterdir())
    assert all(file.read_bytes() == (tmp_path / "two" / file.name).read_bytes() for file in files)
    rows = [row for file in files if file.suffix == ".csv" for row in file.read_text().splitlines()[1:]]
    ids = [row.split("\t")[1] for row in rows]
    assert len(ids) == len(set(ids)) > 15 and all(len(id) == 25 and int(id, 16) >= 0 for id in ids)


def test_the_program_trains_on_what_is_written(hub, encoder, tmp_path, no_course_data, capsys):
    """Guards against files that only a test reads, and against ids that are handed in as the course's."""
    assert fetch(tmp_path / "data", "--tasks", *COURSE_TASKS) == 0
    flags = ["--data_dir", tmp_path / "data", "--epochs", 1, "--steps_per_epoch", 3, "--no_report"]
    out = tmp_path / "out"
    assert run_program("--model_name_or_path", encoder, *flags, "--output_dir", out) == 0
    assert run_program("--option", "submit", "--output_dir", out) == 0
    assert "for files of data.download, so Gradescope will not know their ids" in capsys.readouterr().out


# ------------------------------------------------------------------------------- breaks, kept files


def test_files_that_are_there_are_kept_without_the_network(hub, tmp_path, capsys):
    """Guards against a second download, and against one over the course's own files."""
    folder = tmp_path / "data"
    assert fetch(folder, "--tasks", "sts") == 0
    hub.asked.clear()
    (folder / "ids-sst-train.csv").write_text("the course's own")
    assert fetch(folder, "--tasks", "sts") == 0
    out = capsys.readouterr().out
    assert hub.asked == []
    entry = json.loads((folder / "download.json").read_text())["sts-train.csv"]
    known = ("SetFit/stsb", "train.jsonl", hub.commits["SetFit/stsb"], 1)
    assert tuple(entry[name] for name in ("dataset", "file", "commit", "rows")) == known
    assert f"sts-train.csv: kept, SetFit/stsb at commit {hub.commits['SetFit/stsb'][:12]}\n" in out
    assert fetch(folder, "--tasks", "sst") == 0
    out = capsys.readouterr().out
    assert "ids-sst-train.csv: kept, not from this program" in out
    assert "sst: the kept files are from elsewhere" in out
    assert (folder / "ids-sst-train.csv").read_text() == "the course's own"
    assert (folder / "ids-sst-dev.csv").exists()


def test_a_break_leaves_what_is_finished_and_the_rest_follows(hub, tmp_path, capsys):
    """Guards against starting again from nothing, and against half a file that counts as one."""
    folder = tmp_path / "data"
    del hub.files["SetFit/stsb"]["validation.jsonl"]
    named = ("SetFit/stsb, validation.jsonl at commit bbbb", "goes on")
    refused(capsys, folder, "--tasks", "sst", "sts", named=named)
    written = sorted(os.listdir(folder))
    sst = ["ids-sst-dev.csv", "ids-sst-test-student.csv", "ids-sst-train.csv"]
    assert written == ["download.json", *sst, "sts-train.csv"]
    hub.files["SetFit/stsb"] = dict(FILES["SetFit/stsb"])
    hub.asked.clear()
    assert fetch(folder, "--tasks", "sst", "sts") == 0
    assert sorted(os.listdir(folder)) == sorted([*written, "sts-dev.csv", "sts-test-student.csv"])
    assert [line for line in hub.asked if "sst5" in line or "train.jsonl" in line] == []
    assert len(json.loads((folder / "download.json").read_text())) == 6


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "nonsense"])
def test_offline(hub, tmp_path, capsys, monkeypatch, address):
    """Guards against a traceback, or a minute of silence, without a network."""
    monkeypatch.setenv("HF_ENDPOINT", address)
    refused(capsys, tmp_path / "data", named=(f"SetFit/sst5: cannot be fetched from {address}", "goes on"))
    assert not (tmp_path / "data").exists()


# --------------------------------------------------------------------------------------- revisions


def test_a_revision_by_its_commit(hub, tmp_path, capsys):
    """Guards against a revision that is asked for and not taken."""
    sst_commit = hub.commits["SetFit/sst5"]
    assert fetch(tmp_path / "one", "--tasks", "sst", "--revision", sst_commit) == 0
    assert [line.split("/")[-1] for line in hub.asked if "/revision/" in line] == [sst_commit]
    named = (f"--revision {sst_commit}: SetFit/stsb has no such revision", "--tasks sst --revision COMMIT")
    refused(capsys, tmp_path / "three", "--tasks", "sts", "--revision", sst_commit, named=named)


def test_row_counts_are_those_of_the_known_commit(hub, tmp_path, capsys, monkeypatch):
    """Guards against a damaged file that is taken for the data set. Of a newer commit, a line says it."""
    assert fetch(tmp_path / "newer", "--tasks", "sst") == 0
    assert "SetFit/sst5/train.jsonl: 3 rows, and 8,544 at commit e51bdcd" in capsys.readouterr().out
    hub.commits["SetFit/sst5"] = SOURCES["sst"].commit
    named = ("SetFit/sst5/train.jsonl: 3 rows, and 8,544", "damaged")
    refused(capsys, tmp_path / "known", "--tasks", "sst", named=named)
    assert not (tmp_path / "known").exists()
    monkeypatch.setitem(SOURCES, "sst", SOURCES["sst"]._replace(rows=(3, 1, 2)))
    assert fetch(tmp_path / "known", "--tasks", "sst") == 0
    assert "at commit e51bdcd;" not in capsys.readouterr().out


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("task", "lines", "named"),
    [
        ("sst", json_lines(sst("a", 1), {"sentence": "b", "label": 1}), ":2: no field 'text'"),
        ("sst", json_lines(sst("a", 5, "great")), ":1: label 5 is not one of 0 to 4"),
        ("sst", json_lines(sst("a", 0, "very positive")), "label 0 is called 'very positive'"),
        ("sst", json_lines({"text": "a", "label": 1.5}), "label 1.5 is not one of"),
        ("sst", json_lines({"text": ["a"], "label": 1}), "text ['a'] is not a text"),
        ("sst", b'{"text": "a"\n', ":1: not JSON"),
        ("sst", b"", "0 rows"),
        ("sts", json_lines(pair("a", "b", 5.5)), ":1: label 5.5 is not a number from 0 to 5"),
        ("sts", json_lines(pair("a", "b", -1.0)), ":1: label -1.0 is not a number"),
        ("para", json_lines(quora("a", "b", 1) | {"label": 0}), "label 0 is called 'duplicate'"),
        ("cfimdb", reviews(("Mixed", "So so.")), ":2: Sentiment 'Mixed' is not Negative or Positive"),
        ("cfimdb", b"label\ttext\n1\ta\n", ":2: no field 'Text' (it has label, text)"),
    ],
)
def test_a_data_set_of_another_form_is_refused(hub, tmp_path, capsys, task, lines, named):
    """Guards against labels and texts that are taken for what they are not. File and line are named."""
    source = SOURCES[task]
    hub.files[source.dataset][source.files[1]] = lines
    refused(capsys, tmp_path / "data", "--tasks", task, named=(f"{source.dataset}/{source.files[1]}", named))
    assert not (tmp_path / "data" / TASKS[task].filename("dev")).exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--tasks qqp", "--tasks qqp: must be one or more of sst, sts, cfimdb, para"),
        ("--tasks spara", "did you mean para?"),
        ("--revisoin main", "did you mean --revision?"),
    ],
)
def test_a_wrong_flag_is_one_line(words, named, tmp_path, capsys, monkeypatch):
    """Guards against a traceback, and against a download before the mistake is seen."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert download.main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and named in error


def test_what_cannot_be_written_or_is_not_there(hub, tmp_path, capsys):
    """Guards against a download of minutes that cannot be written at its end, and against a traceback where a
    data set was taken down or renamed."""
    (tmp_path / "file").write_text("")
    refused(capsys, tmp_path / "file", named=("--data_dir", "file"))
    assert hub.asked == []
    del hub.files["SetFit/sst5"]
    refused(capsys, tmp_path / "data", named=("SetFit/sst5: ", "has no such public data set"))
