"""Whole runs on a folder of the user's own: comma-separated, without ids, without test files."""

import csv
import json
import shutil

import pytest

from helpers import SAMPLE, sample_examples
from tasks import TASKS

SIZE = ["--epochs=1", "--steps_per_epoch=4", "--batch_size=4"]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Folder with training and dev files of sst and sts, with commas, without ids; sst's labels are names."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "own"
    folder.mkdir()
    for name in ("sst", "sts"):
        task = TASKS[name]
        for split in ("train", "dev"):
            with (folder / task.filename(split)).open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow([*task.text_columns, task.label_column])
                for example in sample_examples(name, split, 12):
                    label = task.label_names[int(example.label)] if task.label_names else example.label
                    writer.writerow([*example.texts, label])
    return folder


def predictions(folder) -> dict[str, list[str]]:
    """Ids of each prediction file, by the file's name."""
    files = sorted((folder / "predictions").glob("*-output.csv"))
    return {file.name: [line.split(" , ")[0] for line in file.read_text().splitlines()[1:]] for file in files}


NUMBERS = [str(i) for i in range(1, 13)]
DEV = {"sst-dev-output.csv": NUMBERS, "sts-dev-output.csv": NUMBERS}


def test_a_run_without_test_files_is_complete(main, own, capsys):
    """Guards against data that must have a test file nobody needs, and against a folder that looks finished
    without a word about what it lacks."""
    data = ["--data_dir", own, "--tasks", "sst", "sts"]
    assert main(*data, *SIZE, "--output_dir", "run") == 0
    said = capsys.readouterr().out
    for task in ("sst", "sts"):
        path = own / TASKS[task].filename("test")
        assert said.count(f"no test file {path}: no test predictions for {task}\n") == 1
    run = own.parent / "run"
    results = json.loads((run / "results.json").read_text())
    assert set(results["dev"]) == {"sst", "sts"} and results["data"] == str(own)
    assert predictions(run) == DEV
    evaluate = ["--option", "evaluate", "--checkpoint", run, "--batch_size", 4]
    assert main(*evaluate, "--data_dir", own, "--output_dir", "again") == 0
    assert capsys.readouterr().out.count("no test file") == 2
    again = json.loads((own.parent / "again" / "results.json").read_text())
    assert again["dev"] == results["dev"] and predictions(own.parent / "again") == DEV


def test_only_the_missing_test_file_is_said_to_be_missing(main, own, capsys):
    """Guards against one missing file that costs the other task its predictions."""
    (own / TASKS["sts"].filename("test")).write_text("sentence1,sentence2\na,b\n")
    assert main("--data_dir", own, "--tasks", "sst,sts", *SIZE, "--output_dir", "run") == 0
    said = capsys.readouterr().out
    assert said.count("no test file") == 1 and "no test predictions for sst" in said
    assert predictions(own.parent / "run") == DEV | {"sts-test-output.csv": ["1"]}


def test_files_by_flag_need_no_test_file(main, own, capsys):
    """Guards against a source of data that still asks for test files."""
    files = [own / TASKS["sst"].filename(split) for split in ("train", "dev")]
    given = ["--sst_train", files[0], "--sst_dev", files[1], "--tasks", "sst"]
    assert main(*given, *SIZE, "--output_dir", "run") == 0
    assert capsys.readouterr().out.count("no test file") == 1
    assert json.loads((own.parent / "run" / "results.json").read_text())["data"] == "files given by flag"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--sst_test", "mine.csv"], "mine.csv: no such file; give it with --sst_test"),
        (["--sst_test_out", "out.csv"], "ids-sst-test-student.csv: no such file"),
        (["--sts_dev", "mine.csv"], "mine.csv: no such file; give it with --sts_dev"),
        (["--tasks", "sst,para"], "quora-train.csv: no such file; give it with --para_train"),
        (["--eval_tasks", "sst,para"], "quora-dev.csv: no such file; give it with --para_dev"),
    ],
)
def test_what_is_named_or_needed_must_be_there(main, own, capsys, arguments, named):
    """Guards against a mistyped path that is taken for a file nobody needs."""
    assert main("--data_dir", own, "--tasks", "sst,sts", *SIZE, *arguments, "--output_dir", "run") == 2
    printed = capsys.readouterr()
    assert named in printed.err and printed.err.count("\n") == 1 and "no test file" not in printed.out
    assert not (own.parent / "run").exists() and not (own.parent / "out.csv").exists()


def test_a_run_without_test_files_resumes(main, own, capsys):
    """Guards against a run that can't go on because of a file that it never had, and against a test file that
    is changed in between."""
    assert main("--data_dir", own, "--tasks", "sst", *SIZE, "--output_dir", "run") == 0
    assert main("--resume", "--epochs", 2, "--output_dir", "run") == 0
    run = own.parent / "run"
    assert list(predictions(run)) == ["sst-dev-output.csv"]
    test = own / TASKS["sst"].filename("test")
    shutil.copy(SAMPLE / test.name, test)
    assert main("--resume", "--epochs", 3, "--output_dir", "run") == 0
    ids = [example.id for example in sample_examples("sst", "test")]
    assert predictions(run)["sst-test-output.csv"] == ids
    test.write_text("sentence\nanother\n")
    capsys.readouterr()
    assert main("--resume", "--epochs", 4, "--output_dir", "run") == 2
    assert "--sst_test: its content" in capsys.readouterr().err


def test_predicting_needs_the_file(main, own, capsys):
    """Guards against a prediction that ends well and has predicted nothing."""
    assert main("--data_dir", own, "--tasks", "sst", *SIZE, "--output_dir", "run") == 0
    arguments = ["--option", "predict", "--checkpoint", "run", "--output_dir", "predicted"]
    assert main(*arguments, "--data_dir", own) == 2
    assert "ids-sst-test-student.csv: no such file; give it with --sst_test" in capsys.readouterr().err
    assert not (own.parent / "predicted").exists()
