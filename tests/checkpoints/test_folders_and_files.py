"""The folder of a run belongs to one process; files are written through links, into pipes, or not at all."""

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from checkpoint import locked
from helpers import ROOT, SAMPLE, run_program
from support.errors import UserError
from support.files import check_writable, write_text


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
    with pytest.raises(UserError, match="cannot be written"), locked(tmp_path / "run" / "file"):
        pass


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
    for path in (tmp_path, tmp_path / ("x" * 300), tmp_path / "there.csv" / "file", "/proc/no-such/file"):
        with pytest.raises(UserError, match="^--sst_dev_out .*: cannot be written"):
            check_writable(path, "--sst_dev_out")
    assert os.listdir(tmp_path) == ["there.csv"] and (tmp_path / "there.csv").read_text() == "old"


SLEEPER = """
import sys, time
import multitask_classifier
def wait(config):
    print("ready", flush=True)
    time.sleep(60)
multitask_classifier.PROGRAMS["finetune"] = wait
sys.exit(multitask_classifier.main(["--output_dir", sys.argv[1]]))
"""


def test_signals_outside_the_loop(tmp_path):
    """Guards against a traceback, or silence, where a run is stopped while it reads or predicts; against a
    run under nohup that ends when the user logs out."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, str(tmp_path / "run")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),  # as nohup does
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and said == "multitask_classifier.py: interrupted\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("out", ["dev.csv", "link.csv", "test-out.csv", "run/predictions/sts-dev-output.csv"])
def test_an_output_that_is_taken_is_refused(tmp_path, capsys, out):
    """Guards against a run that overwrites its user's data or its own other output, or finds out late."""
    (tmp_path / "dev.csv").write_text("not even a course file")
    (tmp_path / "link.csv").symlink_to("dev.csv")
    flags = ["--tasks", "sst,sts", "--data_dir", SAMPLE, "--sst_dev", tmp_path / "dev.csv"]
    flags += ["--sst_dev_out", tmp_path / out, "--sst_test_out", tmp_path / "test-out.csv"]
    assert run_program(*flags, "--output_dir", tmp_path / "run") == 2
    assert "would replace a file that the run reads, or another output" in capsys.readouterr().err
    assert (tmp_path / "dev.csv").read_text() == "not even a course file" and not (tmp_path / "run").exists()
