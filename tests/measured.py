"""Lines of experiments without their runs."""

import dataclasses
import json

from experiments.runner import Question, Run
from tasks import TASKS


def line_of(run: Run, **scores: float) -> dict:
    """The line of a run, with these main scores; .5 where none is given."""
    dev = {task: {TASKS[task].main_metric: scores.get(task, 0.5)} for task in run.tasks}
    line = json.loads(json.dumps(dataclasses.asdict(run))) | {"name": run.name, "dev": dev, "seconds": 60.0}
    return line | {"precision": "bf16", "commit": "c", "processor": "p"}


def write_lines(question: Question, lines: list[dict]) -> None:
    """Put them in the place of the question's lines."""
    question.file.write_text("".join(json.dumps(line) + "\n" for line in lines))
