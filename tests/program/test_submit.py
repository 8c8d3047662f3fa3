"""--option submit: the zip for the course, and what is refused before there is one."""

import os
import shutil
import zipfile
from pathlib import Path

import pytest

from helpers import ROOT, SAMPLE, run_program
from submit import ZIP_NAME

TASK_NAMES = ("sst", "para", "sts")
# what the course's prepare_submit.py packs: every .py beside it, and the folder predictions
PREDICTIONS = {f"predictions/{task}-{split}-output.csv" for task in TASK_NAMES for split in ("dev", "test")}
COURSE = {path.name for path in ROOT.glob("*.py")} | PREDICTIONS


def add_row(path: Path, id: str) -> None:
    """A row more at the end of an unlabelled file of pairs."""
    path.write_text(path.read_text() + f"99\t{id}\ta\tb\n")


@pytest.fixture(scope="module")
def finished(encoder, tmp_path_factory) -> Path:
    """Folder of a run on a copy of the sample with a test row more, which its flags name."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(SAMPLE, folder / "data")
    add_row(folder / "data" / "sts-test-student.csv", "extra")
    flags = ["--epochs", 1, "--steps_per_epoch", 3, "--no_report", "--data_dir", folder / "data"]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SMART_BERT_DATA_DIR", raising=False)
        assert run_program("--model_name_or_path", encoder, *flags, "--output_dir", folder / "run") == 0
    return folder


@pytest.fixture
def run(finished, tmp_path, no_course_data) -> Path:
    """A copy of the run's folder that a test may harm."""
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path / "run"


def submit(*arguments) -> int:
    return run_program("--option", "submit", *arguments)


def refused(capsys, run: Path, *words: str, arguments=()) -> None:
    """The run is refused with one line that has these words, and nothing is left behind."""
    before = sorted(os.listdir(run)) if run.exists() else None
    capsys.readouterr()
    assert submit("--output_dir", run, *arguments) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("multitask_classifier.py: error: ") and len(error) == 1
    assert [word for word in words if word not in error[-1]] == [], error[-1]
    assert (sorted(os.listdir(run)) if run.exists() else None) == before


def test_the_zip_has_the_courses_files(run, capsys):
    """Guards against a zip that Gradescope cannot grade: a file is missing, or its content is another's.
    What is there beyond the course's list is support/, which our code imports."""
    assert submit("--output_dir", run) == 0
    with zipfile.ZipFile(run / ZIP_NAME) as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
        for name in names:
            source = run if name.startswith("predictions/") else ROOT
            assert archive.read(name) == (source / name).read_bytes()
    assert names - COURSE == {f"support/{path.name}" for path in (ROOT / "support").glob("*.py")}
    assert COURSE - names == set()
    assert "50 predictions" in capsys.readouterr().out


def test_the_data_are_those_of_the_run(run, finished, capsys):
    """Guards against a check beside the sample, though the run had the course's files: no id would fit.
    Files that the command line names come first."""
    other = finished.parent / "other"
    shutil.copytree(finished / "data", other, dirs_exist_ok=True)
    add_row(other / "sts-test-student.csv", "new")
    assert submit("--output_dir", run) == 0
    words = ("1 of 52 rows", "'new'", str(other / "sts-test-student.csv"))
    refused(capsys, run, *words, arguments=("--data_dir", other))


def test_predictions_may_lie_elsewhere_and_in_any_order(run, finished, tmp_path):
    """Guards against a refusal of files that the course accepts. The zip has them by the course's names."""
    path = run / "predictions" / "para-test-output.csv"
    header, *lines = path.read_text().splitlines()
    elsewhere = tmp_path / "mine.csv"
    elsewhere.write_text("\n".join([header.replace(" \t ", ", "), *reversed(lines), "", ""]))
    path.unlink()
    arguments = ("--para_test_out", elsewhere, "--data_dir", finished / "data")
    assert submit("--output_dir", run, *arguments) == 0
    with zipfile.ZipFile(run / ZIP_NAME) as archive:
        assert archive.read("predictions/para-test-output.csv") == elsewhere.read_bytes()


@pytest.mark.parametrize(
    ("name", "line", "text", "words"),
    [
        ("sst-test", 3, "strange , 2 \n", "{path}:3: the id 'strange' is not in"),
        ("sst-test", 3, "no comma\n", "{path}:3: 'no comma' is not 'ID , VALUE'"),
        ("sst-dev", 4, "{id} , 5 \n", "{path}:4: '5' is not one of 0 to 4"),
        ("sts-dev", 51, "{id} , nan \n", "{path}:51: 'nan' is not a number"),
        # a row that is graded twice, or not at all
        ("sts-test", 3, "{next} , 1.0 \n", "{path}:4: a second prediction for the id '{next}'"),
        ("sts-test", 3, "", "{path}: 1 of 51 rows of ... (first: id '{id}'"),
    ],
)
def test_a_wrong_line_is_named(run, capsys, name, line, text, words):
    """Guards against a zip that the course refuses, or grades as wrong, days later."""
    path = run / "predictions" / f"{name}-output.csv"
    lines = [*path.read_text().splitlines(keepends=True), ""]
    ids = [words.split(" ,")[0] for words in lines]
    named = {"path": path, "id": ids[line - 1], "next": ids[line]}
    path.write_text("".join([*lines[: line - 1], text.format(**named), *lines[line:]]))
    refused(capsys, run, *words.format(**named).split(" ... "))


def test_missing_predictions_are_listed(run, capsys, tmp_path):
    """Guards against one error after the other, a file at a time."""
    for name in ("sst-dev-output.csv", "sts-test-output.csv"):
        (run / "predictions" / name).unlink()
    refused(capsys, run, "no sst-dev-output.csv, sts-test-output.csv;")
    refused(capsys, tmp_path / "nowhere", "nowhere: no sst-dev-output.csv")
