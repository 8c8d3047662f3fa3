"""The folder of a run belongs to one process; files are written through links, into pipes, or not at all."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from checkpoint import LOCK, locked
from config import TrainConfig
from helpers import ROOT, SAMPLE, run_program
from run_files import check_outputs
from support.errors import UserError
from support.files import check_writable, write_text
from support.log import RunLog


def test_a_folder_has_one_process(tmp_path):
    """Guards against two runs that write into each other's checkpoints, and a lock that is left behind."""
    with locked(tmp_path / "run"):
        said = f"process {os.getpid()} on {socket.gethostname()} since "
        with pytest.raises(UserError, match=f"in use by {said}"), locked(tmp_path / "run"):
            pass
        (tmp_path / "run" / "file").touch()
    with locked(tmp_path / "run"), locked(tmp_path / "new"):
        pass
    assert os.listdir(tmp_path) == ["run"] and os.listdir(tmp_path / "run") == ["file"]
    for folder in (tmp_path / "run" / "file", tmp_path / "run" / "file" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="cannot be written"), locked(folder):
            pass


def test_a_lock_dies_with_its_process(tmp_path):
    """Guards against a folder that nobody can use after a SIGKILL."""
    script = "import sys, time, pathlib, checkpoint as c\n"
    script += "with c.locked(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
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


def test_a_log_whose_folder_is_moved(tmp_path):
    """Guards against a run that goes on for hours and saves nothing where the user will look."""
    log = RunLog(tmp_path / "run")
    log.write("dev/sst", 1, {"accuracy": 0.5})
    assert log.size() > 0
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="moved or removed"):
        log.size()


def test_a_log_that_lacks_records_goes_on(tmp_path, caplog):
    """Guards against a run that cannot be resumed because its log, which it does not need, was lost."""
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"st')
    log = RunLog(tmp_path, size=1000, step=7)
    log.write("train/sst", 8, {"task": 1.0})
    log.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 8] and "lacks records" in caplog.text


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
    """Guards against a redirected /dev/stdout that is replaced, or that loses what was printed."""
    script = "import support.files as f; print('before'); f.write_text('/dev/stdout', 'predictions\\n')"
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", script + "; print('after')"], cwd=ROOT, stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "before\npredictions\nafter\n"


def test_what_cannot_be_written_is_found_out_without_a_trace(tmp_path):
    """Guards against an error after the first epoch, and a file that the check has left."""
    check_writable(tmp_path / "deep" / "er" / "file.csv", "--sst_dev_out")
    (tmp_path / "there.csv").write_text("old")
    check_writable(tmp_path / "there.csv", "--sst_dev_out")
    for path in (
        tmp_path,
        tmp_path / ("x" * 252),
        tmp_path / "there.csv" / "file",
        "/proc/no-such-place/file",
    ):
        with pytest.raises(UserError, match="^--sst_dev_out "):
            check_writable(path, "--sst_dev_out")
    assert os.listdir(tmp_path) == ["there.csv"] and (tmp_path / "there.csv").read_text() == "old"


# ------------------------------------------------------------------------------------------ signals

SLEEPER = """
import os, signal, sys, time
import multitask_classifier
def wait(config):
    print("ready", flush=True)
    time.sleep(SECONDS)
multitask_classifier.PROGRAMS["finetune"] = wait
sys.exit(multitask_classifier.main(["--output_dir", sys.argv[1]]))
"""


def stopped(folder, number: int, handler, seconds: int) -> tuple[int, str]:
    """Status and standard error of a run that gets a signal; the handler is what a shell or nohup has set."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER.replace("SECONDS", str(seconds)), str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, handler),
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_outside_the_loop_is_one_line(tmp_path, number):
    """Guards against a traceback, or silence, where a run is stopped while it reads or predicts."""
    status, said = stopped(tmp_path / "run", number, signal.SIG_DFL, 60)
    assert status == 128 + number and said == "multitask_classifier.py: interrupted\n"
    assert not (tmp_path / "run").exists()


def test_an_ignored_signal_stays_ignored(tmp_path):
    """Guards against a run under nohup that ends when the user logs out."""
    assert stopped(tmp_path / "run", signal.SIGHUP, signal.SIG_IGN, 2)[0] == 0


# ------------------------------------------------------------------------------- outputs and inputs


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("dev.csv", "is the input --sst_dev"),
        ("link.csv", "is the input --sst_dev"),
        ("train.csv", "is the input .*train.csv"),
        ("test-out.csv", "is the output of --sst_dev_out"),
        ("run/predictions/sts-dev-output.csv", "is the output of"),
    ],
)
def test_an_output_that_is_taken_is_refused(tmp_path, out, said):
    """Guards against a run that overwrites its user's data, its own other output, or a model."""
    for name in ("dev.csv", "train.csv"):
        (tmp_path / name).write_text("the user's")
    (tmp_path / "link.csv").symlink_to("dev.csv")
    files = {"sst_dev": "dev.csv", "sst_dev_out": out, "sst_test_out": "test-out.csv"}
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
