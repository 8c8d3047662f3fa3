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

from config import parse_arguments
from helpers import ROOT, SAMPLE
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
    outputs = [
        output.get("text") or output.get("evalue") or output.get("data", {}).get("text/plain", "")
        for output in cell.outputs
    ]
    return "\n".join(outputs)


def execute(book, folder: Path) -> None:
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()


@pytest.fixture
def repository(tmp_path) -> Path:
    """A git repository with the project as it is here."""
    folder = tmp_path / "origin"
    left_out = (".*", "runs", "predictions", "pictures", "__pycache__", "*.jsonl")
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*left_out))
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


def small_project(folder: Path) -> Path:
    """A folder that the notebook takes for the project."""
    (folder / "runs").mkdir(parents=True)
    for name in ("multitask_classifier.py", "requirements.txt"):
        (folder / name).touch()
    return folder


def test_the_first_click_fails_nowhere(on_colab):
    """Guards against a traceback on the first click: with the form as it is, with a wrong address, with a
    zip that was uploaded in part. The cell says what to do."""
    (on_colab / "other.zip").write_bytes(b"half a zip")
    for address in ("", "https://127.0.0.1:9/nobody/nothing", f"{on_colab}/other.zip", "no such thing"):
        said = first_cell(on_colab, repository=address)
        assert "There is no project yet" in said and said.endswith("project: None\n")
        assert address in said


@pytest.mark.parametrize("where", ["zip", "folder", "Drive", "zip on Drive", "named", "asked"])
def test_the_project_comes_without_an_address(on_colab, tmp_path, where):
    """Guards against a notebook for those alone who have a public repository."""
    folder = small_project(tmp_path / "smart-bert-main")
    places = {"zip": on_colab, "zip on Drive": on_colab / "drive/MyDrive", "named": tmp_path}
    places["asked"] = tmp_path / "packages/google/colab"
    if where in places:  # as GitHub makes it
        places[where].mkdir(parents=True, exist_ok=True)
        shutil.make_archive(str(places[where] / "project"), "zip", tmp_path, folder.name)
    else:
        shutil.copytree(folder, on_colab / ("drive/MyDrive" if where == "Drive" else "") / folder.name)
    said = first_cell(on_colab, repository=f"{tmp_path}/project.zip" if where == "named" else "")
    assert said.endswith(f"project: {on_colab}/smart-bert\n")
    assert {path.name for path in (on_colab / "smart-bert").iterdir()} == {
        "multitask_classifier.py",
        "requirements.txt",
    }


def test_curves_have_two_points_and_whole_steps(tmp_path):
    """Guards against plots of single points, and ticks at steps such as 2.88."""
    source = notebook(3).cells[2].source.split("\nwords = command()")[0]
    scope = {"home": tmp_path, "data_dir": tmp_path, "sys": sys}
    exec(source, scope)
    log = tmp_path / "metrics.jsonl"
    lines = [
        {"step": step, "kind": kind, name: 0.5 / step}
        for step in (3, 4)
        for kind, name in (("train/sst", "task"), ("dev/sst", "accuracy"))
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    (axes,) = scope["draw"](scope["read_log"](tmp_path)).axes  # dev has one point
    assert all(tick == int(tick) for tick in axes.get_xticks())
    log.write_text(json.dumps(lines[0]) + "\n")
    assert "second point" in scope["draw"](scope["read_log"](tmp_path)).data


@pytest.mark.slow
def test_all_cells_run_on_the_sample(repository, tmp_path, no_course_data):
    """Guards against a notebook that fails in the middle: a flag that is gone, a log it cannot draw, a report
    that is not shown, an answer without its probabilities."""
    here = tmp_path / "here"
    here.mkdir()
    book = notebook(repository=str(repository), epochs=2, max_train_samples=32)
    execute(book, here)
    get, data, train, report, ask, compare, submit, tests = book.cells
    assert f"project: {here}/smart-bert" in text(get)
    assert "smart-bert/data/sample: ids-sst-dev.csv" in text(data)
    assert "--use_smart" in text(train) and "dev after epoch 2/2" in text(train)
    assert "image/png" in str(train.outputs)
    assert "<iframe srcdoc=" in str(report.outputs) and "SMART" in str(report.outputs)
    assert re.match(r"sst: (very )?(negative|neutral|positive)\n", text(ask)) and "image/png" in str(
        ask.outputs
    )
    assert re.search(r"smart +sst 0\.\d{3}   para 0\.\d{3}   sts -?0\.\d{3}", text(compare))
    assert "cs224n_default_final_project_submission.zip" in text(submit)
    assert re.search(r"\d{2,} passed", text(tests)) and "failed" not in text(tests)


@pytest.mark.slow
def test_a_run_goes_on_from_drive_after_a_disconnect(repository, on_colab, tmp_path, no_course_data):
    """Guards against a run that starts at step 0 in the next session, or whose data were lost with the first;
    and against ■ that kills the run before it has saved."""
    encoder = tiny_encoder(tmp_path / "encoder")
    form = {
        "repository": f"file://{repository}",
        "keep_on_drive": True,
        "epochs": 20,
        "max_train_samples": 16,
    }
    form |= {
        "batch_size": 8,
        "more_flags": f"--model_name_or_path {encoder} --save_steps 1 --max_eval_samples 5",
    }
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
    execute(second, tmp_path)
    assert "--resume" in text(second.cells[2])
    assert f"step {stopped_at}" in (run_dir.parent / "smart.log").read_text()
    results = json.loads((run_dir / "results.json").read_text())
    assert results["steps"] == 20 * 6 and 0 < stopped_at < 20 * 6


def test_a_form_without_smart_gives_a_plain_run(tmp_path):
    """Guards against a tick that changes nothing, and against flags that the program no longer has."""
    form = {"use_smart": False, "start_again": True, "max_train_samples": 7, "more_flags": "--seed 3"}
    train = notebook(3, **form).cells[2]
    source = train.source.split("\nwords = command()")[0]
    scope = {"home": tmp_path, "data_dir": tmp_path, "sys": sys}
    exec(source, scope)
    config, given = parse_arguments(scope["command"]()[2:])
    assert not config.use_smart and config.overwrite_output_dir and config.seed == 3
    assert config.max_train_samples == 7 and "smart_weight" not in given
