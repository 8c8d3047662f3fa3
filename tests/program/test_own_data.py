"""Whole runs on a folder of the user's own: comma-separated, without ids, without test files."""

import csv
import json

import pytest

from helpers import sample_examples
from tasks import TASKS

SIZE = ["--epochs=1", "--steps_per_epoch=4", "--batch_size=4"]
DEV = dict.fromkeys(("sst-dev-output.csv", "sts-dev-output.csv"), [str(i) for i in range(1, 13)])


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


def test_a_run_needs_no_test_files(main, own, capsys):
    """Guards against data that must have a test file nobody needs, a run that can't be resumed without it, a
    test file that changes in between, and a prediction of nothing."""
    assert main("--data_dir", own, "--tasks", "sst", "sts", *SIZE, "--output_dir", "run") == 0
    run = own.parent / "run"
    said = capsys.readouterr().out
    for task in ("sst", "sts"):
        path = own / TASKS[task].filename("test")
        assert said.count(f"no test file {path}: no test predictions for {task}\n") == 1
    results = json.loads((run / "results.json").read_text())
    assert set(results["dev"]) == {"sst", "sts"} and results["data"] == str(own)
    assert predictions(run) == DEV
    use = ["--checkpoint", run, "--batch_size", 4, "--data_dir", own, "--output_dir", "again"]
    assert main("--option", "evaluate", *use) == 0
    again = json.loads((own.parent / "again" / "results.json").read_text())
    assert again["dev"] == results["dev"] and predictions(own.parent / "again") == DEV
    capsys.readouterr()
    assert main("--option", "predict", *use) == 2
    assert "ids-sst-test-student.csv: no such file; give it with --sst_test" in capsys.readouterr().err

    test = own / TASKS["sts"].filename("test")
    test.write_text("sentence1,sentence2\na,b\n")
    assert main("--resume", "--epochs", 2, "--output_dir", "run") == 0
    said = capsys.readouterr().out
    assert said.count("no test file") == 1 and "no test predictions for sst" in said
    assert predictions(run) == DEV | {"sts-test-output.csv": ["1"]}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--sst_test", "mine.csv"], "mine.csv: no such file; give it with --sst_test"),
        (["--sst_test_out", "out.csv"], "ids-sst-test-student.csv: no such file"),
        (["--tasks", "sst,para"], "quora-train.csv: no such file; give it with --para_train"),
    ],
)
def test_what_is_named_or_needed_must_be_there(main, own, capsys, arguments, named):
    """Guards against a mistyped path that is taken for a file nobody needs."""
    assert main("--data_dir", own, "--tasks", "sst,sts", *SIZE, *arguments, "--output_dir", "run") == 2
    printed = capsys.readouterr()
    assert named in printed.err and printed.err.count("\n") == 1 and "no test file" not in printed.out
    assert not (own.parent / "run").exists() and not (own.parent / "out.csv").exists()
