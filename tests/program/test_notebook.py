"""The notebook, run cell by cell in a kernel of its own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from config import TrainConfig, flags, parse_arguments
from helpers import ROOT, SAMPLE, clone_of_project
from tiny_bert import tiny_encoder

GIT = ("git", "-c", "user.name=test", "-c", "user.email=test@example.org")
# What the notebook uses of Colab's own package. As in googlecolab/colabtools an upload writes files into the
# working directory. Here Drive is a folder, and the sample and any zips beside it are uploaded.
COLAB = {
    "drive": """
from pathlib import Path

def mount(folder):
    Path(folder, "MyDrive").mkdir(parents=True, exist_ok=True)
""",
    "files": """
import shutil
from pathlib import Path

def upload():
    for path in [*Path(SAMPLE).glob("*.csv"), *Path(__file__).parent.glob("*.zip")]:
        shutil.copy(path, path.name)
""",
}


def notebook(cells: int | None = None, content: Path | None = None, **form: object):
    """The notebook, or its first code cells, with these values in its forms.

    content: the folder that is Colab's /content.
    """
    book = nbformat.read(ROOT / "colab.ipynb", as_version=4)
    book.cells = [cell for cell in book.cells if cell.cell_type == "code"][:cells]
    for cell in book.cells:
        cell.source = cell.source.replace('"/content', f'"{content}')
        for name in list(form):
            line = re.compile(rf"^{name} = .+?(?=  # @param)", re.MULTILINE)
            if line.search(cell.source):
                value = form.pop(name)
                cell.source = line.sub(lambda _, name=name, value=value: f"{name} = {value!r}", cell.source)
    assert not form, f"no such fields: {', '.join(form)}"
    return book


def text(cell) -> str:
    """What a cell printed, and the text of what it displayed or raised."""
    ways = (
        output.get("text") or output.get("evalue") or output.get("data", {}).get("text/plain", "")
        for output in cell.outputs
    )
    return "\n".join(ways)


def scope_of(folder: Path, **form: object) -> dict:
    """The functions of the third cell, which trains, without the training."""
    source = notebook(3, **form).cells[2].source.split("\nwords = command()")[0]
    scope = {"home": folder, "data_dir": folder, "sys": sys}
    exec(source, scope)
    return scope


@pytest.fixture
def repository(tmp_path) -> Path:
    """A git repository with the project as it is here."""
    folder = clone_of_project(tmp_path / "origin")
    for words in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "all")):
        subprocess.run([*GIT, *words], cwd=folder, check=True)
    return folder


@pytest.fixture
def on_colab(tmp_path, monkeypatch) -> Path:
    """The kernel finds Colab's package. Returns the folder that stands for /content."""
    package = tmp_path / "packages" / "google" / "colab"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for name, source in COLAB.items():
        (package / f"{name}.py").write_text(f"SAMPLE = {str(SAMPLE)!r}\n{source}")
    monkeypatch.setenv("PYTHONPATH", str(package.parent.parent))
    content = tmp_path / "content"
    content.mkdir()
    return content


def first_cell(content: Path, **form: object) -> str:
    """What the first cell prints on Colab before it installs anything, then the project's folder."""
    source = notebook(1, content, **form).cells[0].source
    getting, _ = source.split("    # Colab has a torch")
    program = [sys.executable, "-c", f"{getting}\nprint('project:', project)"]
    done = subprocess.run(program, cwd=content, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_click_fails_nowhere(on_colab):
    """Guards against a traceback on the first click: with the form as it is, with a wrong address, with a
    zip that was uploaded in part. The cell says what to do."""
    (on_colab / "other.zip").write_bytes(b"half a zip")
    for address in ("", "https://127.0.0.1:9/nobody/nothing", f"{on_colab}/other.zip", "no such thing"):
        said = first_cell(on_colab, repository=address)
        assert "There is no project yet" in said and said.endswith("project: None\n")
        assert address in said


PLACES = {  # where the project is, as a folder or zipped by GitHub
    "zip": "content",
    "folder": "content",
    "Drive": "content/drive/MyDrive",
    "zip on Drive": "content/drive/MyDrive",
    "zip named": ".",
    "zip asked for": "packages/google/colab",
}


@pytest.mark.parametrize(("what", "place"), PLACES.items())
def test_the_project_comes_without_an_address(on_colab, tmp_path, what, place):
    """Guards against a notebook for those alone who have a public repository."""
    folder = tmp_path / "smart-bert-main"
    names = {"multitask_classifier.py", "requirements.txt"}
    (folder / "runs").mkdir(parents=True)
    for name in names:
        (folder / name).touch()
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    if what.startswith("zip"):
        shutil.make_archive(str(tmp_path / place / "project"), "zip", tmp_path, folder.name)
    else:
        shutil.copytree(folder, tmp_path / place / folder.name)
    said = first_cell(on_colab, repository=f"{tmp_path}/project.zip" if what == "zip named" else "")
    assert said.endswith(f"project: {on_colab}/smart-bert\n")
    assert {path.name for path in (on_colab / "smart-bert").iterdir()} == names


def test_curves_have_two_points_and_whole_steps(tmp_path):
    """Guards against plots of single points, and ticks at steps such as 2.88."""
    scope = scope_of(tmp_path)
    log = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "kind": "train/sst", "task": 0.5 / step} for step in (3, 4)]
    lines.append({"step": 3, "kind": "dev/sst", "accuracy": 0.5})  # one point
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (axes,) = scope["draw"](scope["read_log"](tmp_path)).axes
    assert all(tick == int(tick) for tick in axes.get_xticks())
    log.write_text(json.dumps(lines[0]) + "\n")
    assert "second point" in scope["draw"](scope["read_log"](tmp_path)).data


def test_the_form_begins_with_the_programs_defaults(tmp_path):
    """Guards against a form that keeps an old learning rate when the program has a new one."""
    config, _ = parse_arguments(scope_of(tmp_path)["command"]()[2:])
    names = {setting.name for setting in flags(TrainConfig)} - {"output_dir", "data_dir"}
    differing = {name for name in names if getattr(config, name) != getattr(TrainConfig(), name)}
    assert differing == {"use_smart", "logging_steps"}


def test_a_form_without_smart_gives_a_plain_run(tmp_path):
    """Guards against a tick that changes nothing, and against flags that the program no longer has."""
    form = {"use_smart": False, "start_again": True, "max_train_samples": 7, "more_flags": "--seed 3"}
    config, given = parse_arguments(scope_of(tmp_path, **form)["command"]()[2:])
    assert not config.use_smart and config.overwrite_output_dir and config.seed == 3
    assert config.max_train_samples == 7 and "smart_weight" not in given


@pytest.mark.slow
def test_all_cells_run_on_the_sample(repository, tmp_path, no_course_data):
    """Guards against a notebook that fails in the middle: a flag that is gone, a log it cannot draw, a report
    that is not shown, an answer without its probabilities."""
    here = tmp_path / "here"
    here.mkdir()
    book = notebook(repository=str(repository), epochs=2, max_train_samples=32)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(here)}}).execute()
    get, data, train, report, ask, compare, submit, tests = book.cells
    assert f"project: {here}/smart-bert" in text(get)
    assert "smart-bert/data/sample: ids-sst-dev.csv" in text(data)
    assert "--use_smart" in text(train) and "dev after epoch 2/2" in text(train)
    assert "image/png" in str(train.outputs)
    assert "<iframe srcdoc=" in str(report.outputs) and "SMART" in str(report.outputs)
    assert re.match(r"sst: (very )?(negative|neutral|positive)\n", text(ask))
    assert "image/png" in str(ask.outputs)
    assert re.search(r"smart +sst 0\.\d{3}   para 0\.\d{3}   sts -?0\.\d{3}", text(compare))
    assert "cs224n_default_final_project_submission.zip" in text(submit)
    assert re.search(r"\d{2,} passed", text(tests)) and "failed" not in text(tests)


@pytest.mark.slow
def test_a_run_goes_on_from_drive_after_a_disconnect(repository, on_colab, tmp_path, no_course_data):
    """Guards against a run that starts at step 0 in the next session, or whose data were lost with the first;
    and against ■ that kills the run before it has saved."""
    encoder = tiny_encoder(tmp_path / "encoder")
    form = {"repository": f"file://{repository}", "keep_on_drive": True, "epochs": 20, "batch_size": 8}
    form["max_train_samples"] = 16
    form["more_flags"] = f"--model_name_or_path {encoder} --save_steps 1 --max_eval_samples 5"
    run_dir = on_colab / "drive/MyDrive/smart-bert/runs/smart"

    first = notebook(3, on_colab, data="upload", **form)
    where = {"metadata": {"path": str(tmp_path)}}
    session = NotebookClient(first, timeout=300, resources=where, allow_errors=True)

    def press_stop() -> None:
        while not (run_dir / "last" / "run.json").exists():
            time.sleep(0.01)
        os.kill(session.km.provisioner.pid, signal.SIGINT)

    stopper = threading.Thread(target=press_stop, daemon=True)
    stopper.start()
    session.execute()
    assert "interrupted, and saved" in text(first.cells[2])
    assert "The run has not ended" in text(first.cells[2])
    stopped_at = json.loads((run_dir / "last" / "progress.json").read_text())["step"]

    shutil.rmtree(on_colab / "smart-bert")  # the next session starts on a bare machine
    second = notebook(3, on_colab, data="Drive", **form)
    NotebookClient(second, timeout=300, resources=where).execute()
    assert "--resume" in text(second.cells[2])
    assert f"step {stopped_at}" in (run_dir.parent / "smart.log").read_text()
    results = json.loads((run_dir / "results.json").read_text())
    assert results["steps"] == 20 * 6 and 0 < stopped_at < 20 * 6
