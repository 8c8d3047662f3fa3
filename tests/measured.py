"""Lines of experiments without their runs, and quick runs of experiments as a user starts them."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from experiments.runner import Question, Run
from helpers import ROOT
from tasks import TASKS


def line_of(run: Run, **scores: float) -> dict:
    """The line of a run, with these main scores; .5 where none is given."""
    dev = {task: {TASKS[task].main_metric: scores.get(task, 0.5)} for task in run.tasks}
    line = json.loads(json.dumps(dataclasses.asdict(run))) | {"name": run.name, "dev": dev, "seconds": 60.0}
    return line | {"precision": "bf16", "commit": "c", "processor": "p"}


def write_lines(question: Question, lines: list[dict]) -> None:
    """Put them in the place of the question's lines."""
    question.file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def quick_look(script: str, data_dir: Path, work_dir: Path) -> str:
    """What the script prints that calls an experiment's command line, asked for --quick."""
    words = ["--quick", "--data_dir", str(data_dir), "--work_dir", str(work_dir)]
    done = subprocess.run(
        [sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
