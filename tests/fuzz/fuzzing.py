"""Each property is tried on few inputs, always the same, and (marked slow) on many that differ each time."""

import contextlib
import io
import sys
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings

from helpers import run_program

# Inputs of each property: in the default tests, in the slow ones.
COUNTS = {
    "files": (150, 1500),
    "predict": (40, 300),
    "parsed": (150, 3000),
    "started": (40, 300),
    "checkpoints": (20, 200),
}


def sizes(name: str):
    few, many = COUNTS[name]
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.slow)])


def fuzz(count: int, **inputs):
    """Calls the decorated function with `count` generated inputs, the same in every run if they are few."""
    quiet = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
    size = settings(max_examples=count, derandomize=count < 500, **quiet)
    return lambda check: size(given(**inputs)(check))()


def call(arguments) -> tuple[int, str]:
    """Exit status and standard error of the command line, whose standard input is empty;
    like a terminal, its standard output takes UTF-8 only."""
    terminal = io.TextIOWrapper(io.BytesIO(), "utf-8")
    error = io.StringIO()
    no_input = mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    with no_input, contextlib.redirect_stdout(terminal), contextlib.redirect_stderr(error):
        status = run_program(*arguments)
    return status, error.getvalue()


def assert_said_in_one_line(status: int, error: str) -> None:
    assert status in (0, 2), error
    if status == 2:
        assert error.startswith("multitask_classifier.py: error: "), error
        assert len(error.splitlines()) == 1 and error.endswith("\n"), error
