"""Texts on the command line: layouts, answers, bad lines, streams."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers

from helpers import ROOT

TEXTS = ["I loved it", "a dull , slow film", "It is what it is, and it is long. " * 4, "fine"]
PAIRS = [("a cat sleeps", "a cat naps"), ("How old is she?", "What is her age?"), ("one", "two " * 30)]


def by_transformers(folder: Path, task: str, rows: list) -> torch.Tensor:
    """The task's logits by transformers' BERT, one text at a time: [CLS] a [SEP] (b [SEP]), mean, head."""
    encoder = transformers.BertModel.from_pretrained(folder / "best").eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "best" / "tokenizer.json"))
    heads = safetensors.torch.load_file(folder / "best" / "heads.safetensors")
    logits = []
    for row in rows:
        encoded = tokenizer(*([row] if isinstance(row, str) else row), return_token_type_ids=True)
        ids = torch.tensor([encoded["input_ids"]])
        types = torch.tensor([encoded["token_type_ids"]])
        with torch.no_grad():
            hidden = encoder(ids, token_type_ids=types).last_hidden_state
        logits.append(hidden.mean(1) @ heads[f"{task}.weight"].T + heads[f"{task}.bias"])
    return torch.cat(logits)


def test_a_sentence_gets_label_name_and_probabilities(ask, run_folder):
    """Guards against probabilities of another row, another order of names, or softmax of the wrong axis."""
    status, answers, _ = ask("--task", "sst", *[word for text in TEXTS for word in ("--text", text)])
    expected = by_transformers(run_folder, "sst", TEXTS).softmax(-1)
    assert status == 0 and [answer["id"] for answer in answers] == [1, 2, 3, 4]
    names = ["very negative", "negative", "neutral", "positive", "very positive"]
    for answer, row in zip(answers, expected.tolist(), strict=True):
        assert set(answer) == {"id", "label", "name", "probabilities"}
        assert answer["label"] == row.index(max(row)) and answer["name"] == names[answer["label"]]
        assert list(answer["probabilities"]) == names
        assert list(answer["probabilities"].values()) == pytest.approx(row, abs=1e-5)


def test_pairs(ask, run_folder):
    """Guards against the second text left out, and a paraphrase's probability given for its opposite."""
    flags = [word for a, b in PAIRS for word in ("--text", a, "--text_pair", b)]
    _, answers, _ = ask("--task", "para", *flags)
    for answer, logit in zip(answers, by_transformers(run_folder, "para", PAIRS)[:, 0].tolist(), strict=True):
        positive = 1 / (1 + 2.718281828459045**-logit)
        expected = {"not a paraphrase": 1 - positive, "paraphrase": positive}
        assert answer["probabilities"] == pytest.approx(expected, abs=1e-5)
        assert answer["name"] == ("paraphrase" if logit > 0 else "not a paraphrase")
    _, answers, _ = ask("--task", "sts", *flags)
    values = by_transformers(run_folder, "sts", PAIRS)[:, 0].tolist()
    assert [set(answer) for answer in answers] == [{"id", "value"}] * 3
    assert [answer["value"] for answer in answers] == pytest.approx(values, abs=1e-4)


def test_all_layouts_give_the_same_answers(ask, tmp_path):
    """Guards against a layout that drops a text, a line or the second of a pair."""
    _, expected, _ = ask("--task", "sts", *[w for a, b in PAIRS for w in ("--text", a, "--text_pair", b)])
    plain = "".join(f"{a}\t{b}\n" for a, b in PAIRS).encode()
    rows = [{"text": a, "text_pair": b, "label": 3} for a, b in PAIRS]
    as_json = "\n".join(map(json.dumps, rows)).encode()  # without an end of the last line
    blank_first = b"\n" + as_json
    _, answers, _ = ask("--task", "sts", stdin=blank_first)
    assert "error" in answers[0] and [answer["value"] for answer in answers[1:]] == [
        a["value"] for a in expected
    ]
    crlf = b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n")
    for number, content in enumerate((plain, as_json, crlf)):
        file = tmp_path / f"{number}.txt"
        file.write_bytes(content)
        assert ask("--task", "sts", stdin=content) == (0, expected, "")
        assert ask("--task", "sts", "--input", file) == (0, expected, "")


def test_ids_are_those_of_the_lines(ask):
    """Guards against answers that cannot be matched with their lines."""
    lines = b'{"id": "x\xc3\xa9", "text": "a"}\n{"id": 7, "text": "b"}\n{"text": "c", "text_pair": null}\n'
    _, answers, _ = ask("--task", "sst", stdin=lines)
    assert [answer["id"] for answer in answers] == ["xé", 7, 3]


PLAIN = {b"": "empty text", b"  ": "empty text", b"caf\xe9": "utf-8", b"one\ttwo": "takes one text, not 2"}
JSON = {
    b'{"id": "b"}': "must be a string, not NoneType",
    b'{"text": ""}': "empty text",
    b'{"text": ["a"]}': "must be a string, not list",
    b'{"text": "a", "text_pair": "b"}': "takes one text, not 2",
    b'{"text": "\\ud800"}': "not UTF-8",
    b'{"text": "a"': "not JSON",
    b"garbage": "not JSON",
    b"[1]": "not an object",
}


@pytest.mark.parametrize(("good", "bad"), [(b"{sic} good", PLAIN), (b'{"text": "good"}', JSON)])
def test_bad_lines_are_answered_in_place_and_counted(ask, good, bad):
    """Guards against a bad line that ends the stream, is dropped, or shifts the answers behind it."""
    lines = [good, *bad, good, good]
    status, answers, error = ask("--task", "sst", stdin=b"\n".join(lines))
    assert status == 1 and len(answers) == len(lines)
    for number, (line, answer) in enumerate(zip(lines, answers, strict=True), start=1):
        if line == good:
            assert answer["id"] == number and "label" in answer
        else:
            assert set(answer) == {"id", "error"} and bad[line] in answer["error"], answer
    first = next(iter(bad.values()))
    assert "standard input:2: " in error and first in error
    assert f"; {len(bad)} of {len(lines)} lines" in error.splitlines()[-1]


def test_bad_lines_of_a_pair_task(ask, tmp_path):
    """Guards against a pair that is completed with nothing, and a .jsonl whose first line is no JSON."""
    status, answers, _ = ask("--task", "sts", stdin=b"a\tb\none\n\tb\na\t\na\tb\tc\n")
    assert status == 1 and ["value" in answer for answer in answers] == [True] + [False] * 4
    (tmp_path / "a.jsonl").write_bytes(b'a\tb\n{"text": "a", "text_pair": "b"}\n')
    _, answers, _ = ask("--task", "sts", "--input", tmp_path / "a.jsonl")
    assert ["error" in answer for answer in answers] == [True, False]


def test_nothing_in_and_long_texts_are_said(ask):
    """Guards against a silent success for an empty input, and against texts that are cut in silence."""
    assert ask("--task", "sst", stdin=b"") == (0, [], "standard input: no text, so no answer\n")
    status, answers, error = ask("--task", "sst", "--text", "word " * 1000, "--text", "short")
    assert status == 0 and len(answers) == 2 and "1 of 2 texts were cut" in error


# ------------------------------------------------------------------------------------------- output


def test_output_is_replaced_at_the_end(ask, tmp_path):
    """Guards against an old file that is lost to a run that fails, and against a rest beside a new one."""
    out = tmp_path / "new" / "out.jsonl"
    status, printed, _ = ask("--task", "sst", "--text", "a", "--output", out)
    assert (status, printed) == (0, []) and json.loads(out.read_text())["id"] == 1
    before = out.read_bytes()
    assert ask("--task", "cfimdb", "--text", "a", "--output", out)[0] == 2  # no such head
    assert out.read_bytes() == before and os.listdir(out.parent) == ["out.jsonl"]
    link = tmp_path / "link"
    link.symlink_to(out)
    status, _, error = ask("--task", "sst", "--input", out, "--output", link)
    assert status == 2 and "--output" in error and out.read_bytes() == before


def test_a_model_that_gives_no_numbers_leaves_no_output(ask, tmp_path, monkeypatch):
    """Guards against `NaN` in the answers, which no JSON reader takes, and against a half-written file."""
    monkeypatch.setattr("evaluation.model_outputs", lambda *_, **__: torch.full((1, 5), float("nan")))
    status, _, error = ask("--task", "sst", "--text", "a", "--output", tmp_path / "out")
    assert status == 2 and "not finite" in error and os.listdir(tmp_path) == []


# ---------------------------------------------------------------------------------------- processes


@pytest.fixture
def start(run_folder):
    """Starts the program in a process of its own."""
    program = [sys.executable, str(ROOT / "multitask_classifier.py"), "--option", "predict"]
    processes = []

    def started(*arguments, **settings) -> subprocess.Popen:
        flags = ["--checkpoint", run_folder, "--batch_size", 4, *arguments]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | settings
        processes.append(subprocess.Popen([*program, *map(str, flags)], **pipes))
        return processes[-1]

    yield started
    for process in processes:
        process.kill()
        process.wait()


def test_a_pipe_gets_answers_before_its_end(start):
    """Guards against answers that wait for the end of the input, or for a buffer to fill."""
    process = start("--task", "sst")
    for number in range(1, 4):
        process.stdin.write(b"good\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["id"] == number
    process.stdin.close()
    assert (process.stdout.read(), process.stderr.read(), process.wait()) == (b"", b"", 0)


@pytest.mark.parametrize("target", ["--output /dev/stdout", ""])
def test_a_closed_pipe_is_silent(start, tmp_path, target):
    """Guards against a traceback, or `Exception ignored`, after `| head`."""
    (tmp_path / "many").write_bytes(b"good\n" * 5000)
    process = start("--task", "sst", "--input", tmp_path / "many", *target.split())
    assert json.loads(process.stdout.readline())["id"] == 1
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 141)


def test_ctrl_c_is_one_line_and_leaves_nothing(start, tmp_path):
    """Guards against a traceback, and against half of the answers under the name of all."""
    # a program that was started in the background would ignore Ctrl-C
    heeds = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = start("--task", "sst", "--output", tmp_path / "out", **heeds)
    process.stdin.write(b"good\n")
    process.stdin.flush()
    while not ((tmp_path / "out.part").exists() and (tmp_path / "out.part").stat().st_size):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130 and process.stderr.read() == b"multitask_classifier.py: interrupted\n"
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_one_line(start):
    """Guards against a traceback at exit for what the buffer still holds."""
    with open("/dev/full", "wb") as full:
        process = start("--task", "sst", "--text", "a", stdout=full)
        assert process.wait() == 2
    (line,) = process.stderr.read().splitlines()
    assert line.startswith(b"multitask_classifier.py: error: ") and b"No space left on device" in line


@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(start, tmp_path):
    """Guards against lines, answers or tokens that are kept until the end."""
    random.seed(0)
    words = ["a", "the", "film", "plot", "actor", "is", "was", "good", "bad", "slow", "story", "very", "not"]
    peaks = []
    for count in (2_000, 100_000):
        rows = (" ".join(random.choices(words, k=random.randint(3, 40))) for _ in range(count))
        (tmp_path / "lines").write_text("".join(f"{row}\n" for row in rows))
        out = tmp_path / "out"
        process = start("--task", "sst", "--batch_size", 32, "--input", tmp_path / "lines", "--output", out)
        _, status, used = os.wait4(process.pid, 0)
        ids = [json.loads(line)["id"] for line in out.open()]
        assert status == 0 and ids == list(range(1, count + 1))
        peaks.append(used.ru_maxrss / 1024)
    assert peaks[1] - peaks[0] < 40, peaks  # MiB, of which the allocator takes about 20
