"""Fixtures for all tests. A fixture that one folder alone uses stands in that folder's conftest.py."""

import os
import signal
from pathlib import Path

import huggingface_hub
import pytest
import torch

import base_bert
from helpers import FAST, run_program
from tiny_bert import tiny_encoder

# A shell's background jobs ignore Ctrl-C. Runs that tests start would inherit that, and not stop.
signal.signal(signal.SIGINT, signal.default_int_handler)

# `pytest -n 2`: the test processes, and the programs that they start, share the cores.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    torch.set_num_threads(min(threads, torch.get_num_threads()))
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())


@pytest.fixture
def course_data() -> Path:
    """Folder of the course's files, which are no part of this project."""
    if "SMART_BERT_DATA_DIR" not in os.environ:
        pytest.skip("SMART_BERT_DATA_DIR is not set, so there are no course files to read")
    return Path(os.environ["SMART_BERT_DATA_DIR"])


@pytest.fixture(scope="session")
def tokenizer():
    """MiniLM's."""
    return base_bert.load_tokenizer()


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> str:
    """Folder of the tiny BERT with MiniLM's tokenizer: whole runs in seconds."""
    return tiny_encoder(tmp_path_factory.mktemp("tiny") / "encoder")


@pytest.fixture(scope="session")
def sample_run(encoder, tmp_path_factory) -> Path:
    """Folder of a finished run of the tiny BERT on sst, para and sts of the sample, with SMART."""
    folder = tmp_path_factory.mktemp("runs") / "out"
    # so large a rate that predictions differ from text to text
    flags = ["--use_smart", "--bregman_beta", 0.5, *FAST, "--lr", 0.05, "--model_name_or_path", encoder]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SMART_BERT_DATA_DIR", raising=False)
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        assert run_program(*flags, "--output_dir", folder) == 0
    return folder


@pytest.fixture
def no_course_data(monkeypatch) -> None:
    """The program reads the sample, whether or not the user has the course's files."""
    monkeypatch.delenv("SMART_BERT_DATA_DIR", raising=False)


@pytest.fixture
def main(encoder, no_course_data):
    """The command line on the sample with the tiny encoder; returns the exit status."""
    return lambda *arguments: run_program("--model_name_or_path", encoder, *arguments)


@pytest.fixture
def offline(monkeypatch, no_course_data, tmp_path, caplog) -> None:
    """The hub is out of reach, relative paths start in the test's folder, and no warnings are kept."""
    caplog.set_level("ERROR", "smart_bert")

    def unreachable(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.chdir(tmp_path)
