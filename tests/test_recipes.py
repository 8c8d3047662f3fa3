"""The recipes of CONTRIBUTING.md: each diff is applied to a copy of the project, and the copy is run.

The number of files that a recipe touches is part of the design.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ROOT, SAMPLE, clone_of_project
from tiny_bert import letters_encoder

pytestmark = pytest.mark.slow

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DIFFS = re.findall(r"^### (.+?)\n.*?^```diff\n(.+?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
RECIPES = {re.match(r"(?:A |Another |Something )(\w+)", title)[1]: diff for title, diff in DIFFS}
FILES = {
    "task": {"tasks.py"},
    "regression": {"tasks.py"},
    "divergence": {"mysmartloss.py", "tasks.py"},
    "term": {"multitask_classifier.py", "config.py"},
    "optimizer": {"multitask_classifier.py"},
    "schedule": {"support/schedules.py"},
    "more": {"checkpoint.py"},
}
RUN = ["--epochs=1", "--steps_per_epoch=5", "--batch_size=4", "--logging_steps=1", "--max_eval_samples=8"]
RUN += ["--use_smart", "--no_report"]

# The program, stopped after the checkpoint of step 2.
STOPPED = "import sys; sys.path.insert(0, 'tests'); import helpers; helpers.run_stopped(1, *sys.argv[1:])"


def test_every_recipe_is_tried():
    """Guards against a recipe whose diff the other tests no longer find."""
    assert set(RECIPES) == set(FILES)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return letters_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def run(tmp_path, encoder):
    """Runs the program of a copy of the project in which a recipe was followed; returns what it printed."""

    def run_copy(recipe: str, *arguments: str | Path) -> str:
        copy = followed(recipe, tmp_path / recipe)
        command = [sys.executable, "multitask_classifier.py", *map(str, arguments)]
        if "--checkpoint" not in command and "--resume" not in command:
            command += ["--model_name_or_path", encoder]
        return said(command, copy)

    return run_copy


def followed(recipe: str, copy: Path) -> Path:
    """A copy of the project with the recipe's diff applied; checks which files it touches."""
    if not copy.exists():
        clone_of_project(copy)
        diff = RECIPES[recipe]
        assert set(re.findall(r"^\+\+\+ b/(.+)$", diff, flags=re.MULTILINE)) == FILES[recipe]
        (copy / "recipe.diff").write_text(diff, encoding="utf-8")
        said(["git", "apply", "recipe.diff"], copy)
    return copy


def said(command: list[str], folder: Path) -> str:
    """What the command prints, run in the folder without the user's data."""
    without = {"SMART_BERT_DATA_DIR", "PYTHONPATH", "GIT_DIR"}
    environment = {name: value for name, value in os.environ.items() if name not in without}
    environment["GIT_CEILING_DIRECTORIES"] = "/"
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr + result.stdout
    return result.stdout


def training_records(folder: Path) -> list[dict]:
    """The log's lines of training, without the clock's."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    clock = {"ms_per_step": 0, "tokens_per_second": 0}
    return [line | clock for line in lines if line["kind"].startswith("train/")]


def write_nli(folder: Path) -> None:
    """A made-up data set of natural-language inference: three labels, twelve rows a file."""
    folder.mkdir()
    pairs = ["a man sleeps\ta person rests\t0", "a man sleeps\the is old\t1", "a man sleeps\the runs\t2"]
    for split in ("train", "dev", "test-student"):
        header = "id\tpremise\thypothesis" + ("" if "test" in split else "\trelation")
        rows = [f"{split}{i}\t{pairs[i % 3]}" for i in range(12)]
        rows = [row.rsplit("\t", 1)[0] for row in rows] if "test" in split else rows
        (folder / f"nli-{split}.csv").write_text("\n".join([header, *rows]) + "\n")


def test_a_task(run, tmp_path, encoder):
    """Guards against a task that needs more than its record, or that changes other tasks' runs."""
    data, out = tmp_path / "data", tmp_path / "out"
    write_nli(data)
    run("task", *RUN, "--tasks", "nli", "--data_dir", data, "--output_dir", out)
    results = json.loads((out / "results.json").read_text())
    assert set(results["dev"]["nli"]) == {"accuracy", "macro_f1"} and results["trained_tasks"] == ["nli"]
    assert len(training_records(out)) == 5 and all(record["smart"] > 0 for record in training_records(out))

    predicted = tmp_path / "predicted.csv"
    flags = ["--nli_test", data / "nli-test-student.csv", "--nli_test_out", predicted]
    run("task", "--option", "predict", "--checkpoint", out, *flags)
    header, *lines = predicted.read_text().splitlines()
    assert header == "id \t Predicted_Relation "
    assert [line.split(" , ")[0] for line in lines] == [f"test-student{i}" for i in range(12)]

    copy = tmp_path / "task"
    assert "sst, para, sts, cfimdb, nli" in " ".join(run("task", "--help").split())
    old = "from multitask_classifier import load_model\n"
    old += "print(sorted(load_model('tests/fixtures/old_model')[0].heads))"
    assert said([sys.executable, "-c", old], copy) == "['cfimdb', 'para', 'sst', 'sts']\n"
    # the run of another task is the same, number by number, in the copy and here
    sst = [*RUN, "--tasks", "sst", "--data_dir", SAMPLE, "--model_name_or_path", encoder, "--output_dir"]
    run("task", *sst, tmp_path / "sst_there")
    said([sys.executable, "multitask_classifier.py", *map(str, [*sst, tmp_path / "sst_here"])], ROOT)
    assert training_records(tmp_path / "sst_there") == training_records(tmp_path / "sst_here")


def test_a_regression(run, tmp_path):
    """Guards against a regression that needs more than its record, or whose R_s, as of one class, is 0."""
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    rows = [f"{text},{score}" for text, score in {"how do you do": 3, "it is": 0.5, "yo": -3}.items()]
    for split in ("train", "dev"):
        text = "\n".join(["sentence,formality", *rows * 4]) + "\n"
        (data / f"formality-{split}.csv").write_text(text)
    run("regression", *RUN, "--tasks", "formality", "--data_dir", data, "--output_dir", out)
    dev = json.loads((out / "results.json").read_text())["dev"]
    assert set(dev["formality"]) == {"pearson", "spearman"}
    assert len(training_records(out)) == 5 and all(record["smart"] > 0 for record in training_records(out))


def test_a_divergence(run, tmp_path):
    """Guards against a divergence that needs more than a function and its name in a record."""
    run("divergence", *RUN, "--tasks", "sst", "--output_dir", tmp_path / "out")
    assert all(record["smart"] > 0 for record in training_records(tmp_path / "out"))


def test_a_term(run, tmp_path):
    """Guards against a term that needs more than its record and weight, or that never reaches the total."""
    run("term", *RUN, "--tasks", "sst", "--confidence_weight", "sst=0.5", "--output_dir", tmp_path / "out")
    for record in training_records(tmp_path / "out"):
        added = record["smart"] + record["bregman"] + 0.5 * record["confidence"]
        assert record["confidence"] > 0 and record["total"] == pytest.approx(record["task"] + added, rel=1e-5)
    run("term", *RUN, "--tasks", "sst", "--output_dir", tmp_path / "without")
    assert not any("confidence" in record for record in training_records(tmp_path / "without"))


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_another_optimizer(run, tmp_path, encoder, monkeypatch, name):
    """Guards against a loop, or a checkpoint, that only our AdamW fits: one of torch's takes its place by a
    line, and a stopped run goes on bit for bit."""
    recipe = RECIPES["optimizer"].replace("torch.optim.SGD", f"torch.optim.{name}")
    monkeypatch.setitem(RECIPES, "optimizer", recipe)
    settings = [*RUN, "--tasks", "sst", "--save_steps=2", "--model_name_or_path", encoder, "--output_dir"]
    run("optimizer", *settings, tmp_path / "whole")
    stopped = [*map(str, settings), str(tmp_path / "stopped")]
    said([sys.executable, "-c", STOPPED, *stopped], tmp_path / "optimizer")
    run("optimizer", "--resume", "--output_dir", tmp_path / "stopped")
    for file in ("last/student.safetensors", "last/teacher.safetensors", "last/optimizer.safetensors"):
        if (tmp_path / "whole" / file).exists():
            assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "stopped" / file).read_bytes()
    record = json.loads((tmp_path / "stopped" / "last" / "optimizer.json").read_text())
    assert record["class"] == f"torch.optim.{name.lower()}.{name}"


def test_a_schedule(run, tmp_path):
    """Guards against a schedule that needs more than a function and its name."""
    run("schedule", *RUN, "--schedule", "backwards", "--output_dir", tmp_path / "out")
    kinds = [record["kind"] for record in training_records(tmp_path / "out")]
    assert kinds == ["train/sts", "train/para", "train/sst", "train/sts", "train/para"]


def test_something_more_in_a_checkpoint(run, tmp_path):
    """Guards against a checkpoint whose content is spread over several files of code."""
    run("more", *RUN, "--tasks", "sst", "--output_dir", tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "last" / "host.json").read_text())
    printed = run("more", "--resume", "--epochs", "2", "--output_dir", tmp_path / "out")
    assert saved["name"] and f"at step 5, saved by {saved['name']}" in printed
    assert len(training_records(tmp_path / "out")) == 10
