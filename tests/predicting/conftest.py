"""How the tests of asking ask the model of a short run."""

import io
import json
import sys

import pytest

from helpers import run_program, warnings_of


@pytest.fixture
def ask(sample_run, capsys, caplog, monkeypatch):
    """Asks the model: returns the exit status, the answers, and the error line and warnings.

    The warning that its model is one of the sample is left out.
    """

    def asked(*arguments, stdin: bytes = b"") -> tuple[int, list[dict], str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        caplog.clear()
        flags = ["--option", "predict", "--checkpoint", sample_run, "--precision", "fp32"]
        status = run_program(*flags, *arguments)
        said = capsys.readouterr()
        found = [warning for warning in warnings_of(caplog) if "own sample" not in warning]
        warnings = "".join(f"{warning}\n" for warning in found)
        return status, [json.loads(line) for line in said.out.splitlines()], said.err + warnings

    return asked
