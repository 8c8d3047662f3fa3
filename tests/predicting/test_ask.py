"""Texts on the command line: layouts, answers, bad lines, streams."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from checkpoint import load_checkpoint, save_checkpoint
from helpers import ROOT, SAMPLE, run_program, warnings_of
from run_files import find_files

PAIRS = [("a cat sleeps", "a cat naps"), ("How old is she?", "What is her age?"), ("one", "two " * 30)]


def test_all_layouts_give_the_same_answers(ask, tmp_path):
    """Guards against a layout that drops a text, a line or the second of a pair."""
    _, expected, _ = ask("--task", "sts", *[w for a, b in PAIRS for w in ("--text", a, "--text_pair", b)])
    plain = "".join(f"{a}\t{b}\n" for a, b in PAIRS).encode()
    rows = [{"text": a, "text_pair": b, "label": 3} for a, b in PAIRS]
    as_json = "\n".join(map(json.dumps, rows)).encode()  # without an end of the last line
    crlf = b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n")
    for content in (plain, as_json, crlf):
        (tmp_path / "file").write_bytes(content)
        assert ask("--task", "sts", stdin=content) == (0, expected, "")
        assert ask("--task", "sts", "--input", tmp_path / "file") == (0, expected, "")


def test_ids_are_those_of_the_lines(ask):
    """Guards against answers that cannot be matched with their lines."""
    lines = b'{"id": "x\xc3\xa9", "text": "a"}\n{"id": 7, "text": "b"}\n{"text": "c", "text_pair": null}\n'
    _, answers, _ = ask("--task", "sst", stdin=lines)
    assert [answer["id"] for answer in answers] == ["xé", 7, 3]


PLAIN = {b"": "empty text", b"caf\xe9": "utf-8", b"one\ttwo": "takes one text, not 2"}
JSON = {
    b'{"id": "b"}': "must be a string, not NoneType",
    b'{"text": ""}': "empty text",
    b'{"text": "a", "text_pair": "b"}': "takes one text, not 2",
    b'{"text": "a"': "not JSON",
}
PAIR = {b"one": "takes a pair of texts, not 1", b"\tb": "empty text", b"a\tb\tc": "takes a pair of texts"}


@pytest.mark.parametrize(
    ("task", "good", "bad"),
    [("sst", b"{sic} good", PLAIN), ("sst", b'{"text": "good"}', JSON), ("sts", b"a\tb", PAIR)],
)
def test_bad_lines_are_answered_in_place_and_counted(ask, task, good, bad):
    """Guards against a bad line that ends the stream, is dropped, or shifts the answers behind it."""
    lines = [good, *bad, good, good]
    status, answers, error = ask("--task", task, stdin=b"\n".join(lines))
    assert status == 1 and len(answers) == len(lines)
    for number, (line, answer) in enumerate(zip(lines, answers, strict=True), start=1):
        if line == good:
            assert answer["id"] == number and "error" not in answer
        else:
            assert set(answer) == {"id", "error"} and bad[line] in answer["error"], answer
    first = next(iter(bad.values()))
    assert "standard input:2: " in error and first in error
    assert f"; {len(bad)} of {len(lines)} lines" in error.splitlines()[-1]


def test_flags_with_too_few_pairs_are_refused(ask):
    """Guards against a pair that is completed with nothing, or that takes the text of another."""
    status, answers, error = ask("--task", "sts", "--text", "a", "--text", "b", "--text_pair", "c")
    assert (status, answers) == (2, []) and "--text: " in error and error.count("\n") == 1


def test_nothing_in_and_long_texts_are_said(ask):
    """Guards against a silent success for an empty input, and against texts that are cut in silence."""
    assert ask("--task", "sst", stdin=b"") == (0, [], "standard input: no text, so no answer\n")
    status, answers, error = ask("--task", "sst", "--text", "word " * 1000, "--text", "short")
    assert status == 0 and len(answers) == 2 and "1 of 2 texts were cut" in error


def test_output_is_replaced_at_the_end(ask, tmp_path):
    """Guards against an old file that is lost to a run that fails, and an input that is written over."""
    out = tmp_path / "new" / "out.jsonl"
    status, printed, _ = ask("--task", "sst", "--text", "a", "--output", out)
    assert (status, printed) == (0, []) and json.loads(out.read_text())["id"] == 1
    before = out.read_bytes()
    assert ask("--task", "cfimdb", "--text", "a", "--output", out)[0] == 2  # no such head
    status, _, error = ask("--task", "sst", "--input", out, "--output", out)
    assert status == 2 and "--output" in error
    assert out.read_bytes() == before and os.listdir(out.parent) == ["out.jsonl"]


def test_a_model_that_gives_no_numbers_leaves_no_output(ask, tmp_path, monkeypatch):
    """Guards against `NaN` in the answers, which no JSON reader takes, and against a half-written file."""
    monkeypatch.setattr("evaluation.model_outputs", lambda *_, **__: torch.full((1, 5), float("nan")))
    status, _, error = ask("--task", "sst", "--text", "a", "--output", tmp_path / "out")
    assert status == 2 and "not finite" in error and os.listdir(tmp_path) == []


@pytest.fixture
def start(sample_run):
    """Starts the program in a process of its own."""
    program = [sys.executable, str(ROOT / "multitask_classifier.py"), "--option", "predict", "--task", "sst"]
    processes = []

    def started(*arguments, **settings) -> subprocess.Popen:
        flags = ["--checkpoint", sample_run, "--batch_size", 4, *arguments]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        processes.append(subprocess.Popen([*program, *map(str, flags)], **pipes, **settings))
        return processes[-1]

    yield started
    for process in processes:
        process.kill()
        process.wait()


def test_a_pipe_gets_answers_at_once_and_may_be_closed(start):
    """Guards against answers that wait for the end of the input, or for a buffer to fill, and against a
    traceback, or `Exception ignored`, after `| head`."""
    process = start()
    for number in range(1, 4):
        process.stdin.write(b"good\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["id"] == number
    process.stdout.close()
    process.stdin.write(b"good\n" * 200)
    process.stdin.close()
    (note,) = process.stderr.read().splitlines()
    assert b"own sample" in note and process.wait() == 141


def test_ctrl_c_is_one_line_and_leaves_nothing(start, tmp_path):
    """Guards against a traceback, and against half of the answers under the name of all."""
    # a program that was started in the background would ignore Ctrl-C
    heeds = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = start("--output", tmp_path / "out", **heeds)
    process.stdin.write(b"good\n")
    process.stdin.flush()
    while not ((tmp_path / "out.part").exists() and (tmp_path / "out.part").stat().st_size):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.stderr.read().splitlines()
    assert process.wait() == 130 and said[1:] == [b"multitask_classifier.py: interrupted"]
    assert os.listdir(tmp_path) == []


def test_a_model_of_the_sample_says_so(sample_run, tmp_path, caplog, capsys):
    """Guards against a user who takes the answers of a model of 700 rows for what the method can do."""
    other = load_checkpoint(sample_run / "best")
    other.records["run"]["data"] = "data"
    save_checkpoint(tmp_path / "other", other)
    asked = [["--task=sst", "--text=fine"], [f"--sst_test={SAMPLE / 'ids-sst-test-student.csv'}"]]
    for arguments in asked:
        for model, lines in ((sample_run, 1), (tmp_path / "other", 0)):
            caplog.clear()
            flags = ["--option=predict", "--checkpoint", model, "--output_dir", tmp_path / "out"]
            assert run_program(*flags, *arguments) == 0
            assert sum("own sample" in warning for warning in warnings_of(caplog)) == lines
            assert "own sample" not in capsys.readouterr().out


def test_the_sample_is_the_sample_however_it_is_named(tmp_path, monkeypatch):
    """Guards against a model of the sample that passes for one of real data since a flag named the folder."""
    monkeypatch.chdir(ROOT)
    wanted = [("sst", "train"), ("sst", "dev")]
    flags = {f"sst_{split}": str(SAMPLE / f"ids-sst-{split}.csv") for split in ("train", "dev")}
    for folder, files in ((str(SAMPLE), {}), ("data/sample/", {}), (None, flags)):
        assert find_files(wanted, folder, files, needs_test=False)[1] == "sample"
    shutil.copytree(SAMPLE, tmp_path / "sample")
    assert find_files(wanted, str(tmp_path / "sample"), {}, needs_test=False)[1] == str(tmp_path / "sample")
