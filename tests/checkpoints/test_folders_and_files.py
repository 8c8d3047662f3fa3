"""The folder of a run belongs to one process; files are written through links, into pipes, or not at all."""

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from config import TrainConfig
from helpers import ROOT, SAMPLE, run_program
from run_files import check_outputs
from support.errors import UserError
from support.files import check_writable, write_text
from support.locks import LOCK, locked
from support.log import RunLog


def test_a_folder_has_one_process(tmp_path):
    """Guards against two runs that write into each other's checkpoints."""
    with locked(tmp_path / "run"):
        said = f"process {os.getpid()} on {socket.gethostname()} since "
        with pytest.raises(UserError, match=f"in use by {said}"), locked(tmp_path / "run"):
            pass
        assert (tmp_path / "run" / LOCK).read_text().startswith(said)
        (tmp_path / "run" / "file").touch()
    assert os.listdir(tmp_path / "run") == ["file"]
    with locked(tmp_path / "run"):
        pass
    with locked(tmp_path / "new"):
        pass
    assert os.listdir(tmp_path) == ["run"]


def test_a_lock_dies_with_its_process(tmp_path):
    """Guards against a folder that nobody can use after a SIGKILL."""
    script = "import sys, time, pathlib, support.locks as l\n"
    script += "with l.locked(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"in use by process {process.pid} "), locked(tmp_path):
        pass
    process.kill()
    process.wait()
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_locked(tmp_path):
    """Guards against a traceback where a file stands in the place of --output_dir."""
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="cannot be written"), locked(folder):
            pass


def test_a_log_whose_folder_is_moved(tmp_path):
    """Guards against a run that goes on for hours and saves nothing where the user will look."""
    log = RunLog(tmp_path / "run")
    log.write("dev/sst", 1, {"accuracy": 0.5})
    assert log.size() > 0
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="moved or removed"):
        log.size()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="moved or removed"):
        log.size()


@pytest.mark.parametrize("left", [None, b"", b'{"step": 1}\n', b'{"step": 1}\n{"st'])
def test_a_log_that_lacks_records_goes_on(tmp_path, caplog, left):
    """Guards against a run that cannot be resumed because its log, which it does not need, was lost."""
    if left is not None:
        (tmp_path / "metrics.jsonl").write_bytes(left)
    log = RunLog(tmp_path, size=1000, step=7)
    log.write("train/sst", 8, {"task": 1.0})
    log.close()
    whole = [line for line in (left or b"").splitlines(keepends=True) if line.endswith(b"\n")]
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    assert lines[:-1] == whole and b'"step": 8' in lines[-1]
    assert "lacks records" in caplog.text


# -------------------------------------------------------------------------------------------- files


def test_a_symbolic_link_stays(tmp_path):
    """Guards against a link that is cut from its target, which then keeps the old predictions."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "disk" / "real.csv")
    for text in ("first", "second"):
        write_text(tmp_path / "link.csv", text)
        assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "disk" / "real.csv").read_text() == text
    assert os.listdir(tmp_path / "disk") == ["real.csv"]


def test_a_pipe_gets_the_text(tmp_path):
    """Guards against a named pipe that is replaced by a file, while its reader waits for ever."""
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    check_writable(tmp_path / "pipe", "--sst_dev_out")
    write_text(tmp_path / "pipe", "id, value")
    reader.join(10)
    assert read == ["id, value"] and (tmp_path / "pipe").is_fifo()


def test_the_standard_output_gets_the_text(tmp_path):
    """Guards against /dev/stdout that is replaced, or a redirected file that loses what was printed."""
    script = "import support.files as f; print('before'); f.write_text('/dev/stdout', 'predictions\\n')"
    script += "; print('after')"
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "before\npredictions\nafter\n"
    piped = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert piped.stdout == "before\npredictions\nafter\n"


def test_only_regular_files_are_replaced(tmp_path):
    """Guards against a socket, or a folder, that is destroyed by a prediction file."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        for name in ("s", "folder", "link"):
            with pytest.raises(UserError, match="stands there"):
                check_writable(tmp_path / name, "--sst_dev_out")
            with pytest.raises(UserError, match="left as it is"):
                write_text(tmp_path / name, "x")
        assert sorted(os.listdir(tmp_path)) == ["folder", "link", "s"]


def test_what_cannot_be_written_is_found_out_without_a_trace(tmp_path):
    """Guards against an error after the first epoch, and a file that the check has left."""
    check_writable(tmp_path / "deep" / "er" / "file.csv", "--sst_dev_out")
    (tmp_path / "there.csv").write_text("old")
    check_writable(tmp_path / "there.csv", "--sst_dev_out")
    assert os.listdir(tmp_path) == ["there.csv"] and (tmp_path / "there.csv").read_text() == "old"
    wrong = [tmp_path / ("x" * 252), tmp_path / ("y" * 300) / "file.csv", tmp_path / "there.csv" / "file"]
    wrong += ["/proc/no-such-place/file", str(tmp_path / "nul\0")]
    for path in wrong:
        with pytest.raises(UserError, match="^--sst_dev_out "):
            check_writable(path, "--sst_dev_out")
    check_writable(tmp_path / ("x" * 250), "--sst_dev_out")  # with `.part` just as long as a name may be


# ------------------------------------------------------------------------------------------ signals

SLEEPER = """
import os, signal, sys, time
import multitask_classifier
def wait(config):
    print("ready", flush=True)
    time.sleep(60)
multitask_classifier.PROGRAMS["finetune"] = wait
sys.exit(multitask_classifier.main(["--output_dir", sys.argv[1]]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_outside_the_loop_is_one_line(tmp_path, number):
    """Guards against a traceback, or silence, where a run is stopped while it reads or predicts."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, str(tmp_path / "run")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # nohup ignores it
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number and said == "multitask_classifier.py: interrupted\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_ignored_signal_stays_ignored(tmp_path, number):
    """Guards against a run under nohup that ends when the user logs out."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER.replace("sleep(60)", "sleep(2)"), str(tmp_path / "run")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_IGN),
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 0


# ------------------------------------------------------------------------------- outputs and inputs


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("dev.csv", "is the input --sst_dev"),
        ("folder/../dev.csv", "is the input --sst_dev"),
        ("link.csv", "is the input --sst_dev"),
        ("train.csv", "is the input .*train.csv"),
        ("test-out.csv", "is the output of --sst_test_out|is the output of --sst_dev_out"),
        ("run/predictions/sts-dev-output.csv", "is the output of"),
    ],
)
@pytest.mark.parametrize("flag", ["sst_dev_out", "sst_test_out"])
def test_an_output_that_is_taken_is_refused(tmp_path, flag, out, said):
    """Guards against a run that overwrites its user's data, its own other output, or a model."""
    for name in ("dev.csv", "train.csv"):
        (tmp_path / name).write_text("the user's")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.csv").symlink_to("dev.csv")
    other = {"sst_dev_out": "sst_test_out", "sst_test_out": "sst_dev_out"}[flag]
    files = {"sst_dev": "dev.csv", flag: out, other: "test-out.csv"}
    files = {name: str(tmp_path / path) for name, path in files.items()}
    config = TrainConfig(tasks=("sst", "sts"), files=files, output_dir=str(tmp_path / "run"))
    with pytest.raises(UserError, match=f"^--.*{said}"):
        check_outputs(config, {("sst", "train"): tmp_path / "train.csv"})
    assert (tmp_path / "dev.csv").read_text() == "the user's" and not (tmp_path / "run").exists()


def test_an_output_that_is_free_is_taken(tmp_path):
    """Guards against a check that refuses the usual: an old output, or both outputs on the screen."""
    (tmp_path / "old.csv").write_text("old")
    files = {
        "sst_dev_out": str(tmp_path / "old.csv"),
        "sst_test_out": "/dev/stdout",
        "sts_dev_out": "/dev/stdout",
    }
    check_outputs(TrainConfig(files=files, output_dir=str(tmp_path / "run")), {})


def test_the_program_refuses_before_it_reads(tmp_path, capsys):
    """Guards against the check that nobody calls."""
    (tmp_path / "mine.csv").write_text("not even a course file")
    mine = str(tmp_path / "mine.csv")
    arguments = ["--tasks", "sst", "--data_dir", SAMPLE, "--sst_dev", mine, "--sst_dev_out", mine]
    assert run_program(*arguments, "--output_dir", tmp_path / "run") == 2
    assert f"error: --sst_dev_out {mine}: is the input --sst_dev" in capsys.readouterr().err
    assert (tmp_path / "mine.csv").read_text() == "not even a course file" and os.listdir(tmp_path) == [
        "mine.csv"
    ]
