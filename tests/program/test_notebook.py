"""The notebook's commands and its plot."""

import json

from config import parse_arguments
from helpers import ROOT


def test_the_notebooks_commands_are_right(sample_run, monkeypatch, capsys):
    """Guards against a notebook with flags that the program no longer has,
    or a plot that cannot read the log."""
    cells = json.loads((ROOT / "colab.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    commands = [line for text in code for line in text.splitlines() if "multitask_classifier.py" in line]
    assert len(commands) == 4
    for command in commands:
        parse_arguments(command.split()[2:])
    (tests,) = [word for text in code for word in text.split() if word.startswith("tests/")]
    assert (ROOT / tests).exists()
    (plot,) = [text for text in code if "matplotlib" in text]
    monkeypatch.setenv("MPLBACKEND", "Agg")
    exec(plot.replace('"runs/plain"', repr(str(sample_run))), {})
    assert '"accuracy"' in capsys.readouterr().out.replace("'", '"')
