"""The best model of all three tasks in two hours on two cores: a search over the options there are.

    python -m experiments.best search --data_dir path/to/data   # 11 trials of 20 minutes, about 4 hours
    python -m experiments.best final --data_dir path/to/data    # final runs, then the best with a second seed
    python -m experiments.best --table

    base ─ change one option ─> trial ─ higher mean of the three dev scores? ─> the new base ─ next option

Every trial is a line, and the next one follows from the lines alone, so a search can be broken off. All
training rows are used, Quora's 70,905 too. Every trial takes as long, on one core beside another process: an
option that makes a step dearer gets fewer steps. The time comes from `SECONDS`, so the number of steps is
the same on every machine. Scoring all dev rows, twice, takes about a tenth of it on top.

Trials take the tasks in turn, the final runs take them in proportion to their rows (`MIX`). So a trial sees
SST twice and a quarter of Quora. It can't tell how long to train, nor what keeps a long training from
overfitting: that takes runs of full length (`FINALS`). The first of them was planned before the first trial.
It sees the rows of every task six times, and it overfitted; the others were fixed when that was known.

What has the highest mean with the first seed is recommended, trial or final run, and gets the second seed.
Dev has chosen it, so its scores are selected: expect lower ones on test. One seed decides, so small
differences are chance. The final models' predictions for the test files are kept in `experiments/best/`.
"""

import shlex
import statistics
import sys
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from config import parse_arguments
from datasets import SCHEDULES, RunLength, read_examples, tokenize
from evaluation import predict, write_predictions
from experiments.runner import (
    HERE,
    Line,
    Question,
    Run,
    data_folder,
    dev_outcome,
    guarded,
    last_model,
    parser_of,
    provenance,
    run_grid,
)
from multitask_classifier import forward_passes
from support.errors import UserError
from tasks import TASKS

TASK_NAMES = ("sst", "para", "sts")
SEEDS = (0, 1)  # of the final runs; the search has the first
ROWS = 32  # of a batch, unless a trial changes it
# of a plain step of 32 rows: one core beside another process, bf16 (precision.jsonl has such runs)
SECONDS = {"sst": 0.55, "para": 1.0, "sts": 0.65}
PLAIN = 3  # forward passes of a plain step
TRIAL = 20 * 60  # seconds of training on one core
FINAL = 12 * TRIAL  # two hours of two cores
TRAIN_ROWS = {"sst": 8_544, "para": 70_905, "sts": 6_040}  # they decide over the shares of some schedules
Settings = dict[str, str]

BASE: Settings = {"precision": "bf16", "lr": "1e-4"}
SMART: Settings = {"use_smart": "", "smart_epsilon": "0.04", "smart_step_size": "0.04"}
OPTIONS: dict[str, Settings] = {  # in the order in which they are tried, each on top of what has won
    "base": {},
    "learning rate 5e-5": {"lr": "5e-5"},
    "learning rate 2e-4": {"lr": "2e-4"},
    "16 rows a batch": {"batch_size": "16"},
    "moving average of the weights": {"keep": "teacher"},
    "R-Drop": {"rdrop_weight": "1"},
    "SMART, both terms": SMART,
    "contrastive loss, weight .1": {"contrastive_weight": "0.1"},
    "cosine similarity": {"similarity": "cosine"},
    "dropout .3 before the heads": {"hidden_dropout_prob": "0.3"},
    "[CLS] and the pooler": {"pooling": "cls"},
}
MIX: Settings = {"schedule": "proportional"}  # of the final runs
FIRST = "winner"  # the search's, twelve times as long
FINALS: dict[str, tuple[Settings, float]] = {  # on top of what has won: a change, seconds
    FIRST: ({}, FINAL),  # 5.8 passes over every task
    "winner, two passes": ({}, FINAL / 3),
    "winner with SMART, two passes": (SMART, FINAL),
}
AIM = {"sst": 0.53, "para": 0.88, "sts": 0.89}


def words(settings: Mapping[str, str]) -> tuple[str, ...]:
    """The settings as flags of the main program."""
    return tuple(word for name, value in settings.items() for word in (f"--{name}", value) if word)


def seconds_of_a_step(settings: Mapping[str, str]) -> float:
    """What a step takes on average: by the tasks that the schedule draws, forward passes, rows of a batch."""
    config, _ = parse_arguments([*words(settings), "--tasks", ",".join(TASK_NAMES)])
    rows = tuple(TRAIN_ROWS[task] for task in TASK_NAMES)
    mix = RunLength(rows, epochs=1, steps_per_epoch=9000, seed=0)  # enough for shares to be even
    steps = SCHEDULES[config.schedule](mix, 0)
    of_task = [SECONDS[task] * forward_passes(config, task) / PLAIN for task in TASK_NAMES]
    return statistics.fmean(sum(of_task[task] for task in step) for step in steps) * config.batch_size / ROWS


def steps_for(settings: Mapping[str, str], seconds: float) -> int:
    """How many steps take so long."""
    return round(seconds / seconds_of_a_step(settings))


def run_of(arm: str, settings: Mapping[str, str], seconds: float) -> Run:
    """A training on all rows that takes so long, with the first seed."""
    return Run(arm, TASK_NAMES, SEEDS[0], words(settings), steps_for(settings, seconds))


# ------------------------------------------------------------------------------------------- search


def mean_score(line: Line) -> float:
    """The mean of the three main metrics on dev."""
    return statistics.fmean(line["dev"][task][TASKS[task].main_metric] for task in TASK_NAMES)


def walk(lines: Sequence[Line]) -> tuple[Settings, dict[str, bool]]:
    """What has won so far, and of each option that was tried whether it was an improvement.

    A winner's settings are taken on, so a later option is tried on top of them.
    """
    best, highest = dict(BASE), -1.0
    better: dict[str, bool] = {}
    scores = {line["arm"]: mean_score(line) for line in lines}
    for option, change in OPTIONS.items():
        if option not in scores:
            break
        better[option] = scores[option] > highest
        if better[option]:
            best, highest = best | change, scores[option]
    return best, better


def next_trial(lines: Sequence[Line]) -> Run | None:
    """The trial that follows from the lines; None if the search has ended."""
    best, better = walk(lines)
    left = [option for option in OPTIONS if option not in better]
    return run_of(left[0], best | OPTIONS[left[0]], TRIAL) if left else None


def search(question: Question, data_dir: Path, work_dir: Path, quick: bool = False) -> None:
    """Run what is left of the search."""
    while trial := next_trial(question.lines()):
        run_grid(question, [trial.quick() if quick else trial], data_dir, work_dir)
        if not any(line["arm"] == trial.arm for line in question.lines()):
            return  # it waits for another type of processor


# -------------------------------------------------------------------------------------------- final


def final_run(search_lines: Sequence[Line], arm: str) -> Run:
    """The final run of that name in `FINALS`. Raises UserError while the search has not ended."""
    if next_trial(search_lines) is not None:
        raise UserError("experiments.best: the search has not ended; go on with `search`")
    change, seconds = FINALS[arm]
    return run_of(arm, walk(search_lines)[0] | change | MIX, seconds)


def recommended_line(lines: Sequence[Line]) -> Line:
    """Of all trials and final runs with the first seed the one with the highest mean."""
    return max((line for line in lines if line["seed"] == SEEDS[0]), key=mean_score)


def second(line: Line) -> Run:
    """The training that the line is of, with the second seed."""
    return Run(line["arm"], TASK_NAMES, SEEDS[1], tuple(line["flags"]), line["steps"], line["train_rows"])


def final(question: Question, others: Sequence[Line], data_dir: Path, work_dir: Path, quick: bool) -> None:
    """Run the final runs that came after the first, then what is recommended with the second seed.

    others: the lines of the search and of the first final run.
    """
    search_lines = [line for line in others if line["arm"] in OPTIONS]
    runs = [final_run(search_lines, arm) for arm in FINALS if arm != FIRST]
    run_grid(question, [run.quick() if quick else run for run in runs], data_dir, work_dir)
    lines = question.lines()
    if {run.arm for run in runs} <= {line["arm"] for line in lines}:
        # before, what waits for another type of processor may be better
        run_grid(question, [second(recommended_line([*others, *lines]))], data_dir, work_dir)


def file_name(arm: str) -> str:
    """The arm's name, as the names of its files begin."""
    return arm.replace(",", "").replace(" ", "-")


def keep_predictions(
    target: Path, run: Run, data_dir: Path, folder: Path
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The dev outcome of a run; its predictions for the test files go to `target`, in the course's format."""
    model, tokenizer, config = last_model(folder)
    for name in TASK_NAMES:
        task = TASKS[name]
        examples = read_examples(data_dir / task.filename("test"), task, labelled=False)
        dataset = tokenize(examples, task, tokenizer, config.max_length)
        path = target / f"{file_name(run.arm)}-{name}-test-output-seed-{run.seed}.csv"
        predictions = predict(model, dataset, config.batch_size)
        write_predictions(path, task.prediction_column, dataset.ids, predictions)
    return dev_outcome(run, data_dir, folder)


def questions(folder: Path = HERE) -> tuple[Question, Question, Question]:
    """Search, first final run, later final runs, with their files in the folder."""
    outcome = partial(keep_predictions, folder / "best")
    return (
        Question("best_search", folder),
        Question("best_final", folder, outcome),
        Question("best_length", folder, outcome),
    )


# ------------------------------------------------------------------------------------------- tables


def scores_of(lines: Sequence[Line]) -> list[str]:
    """The mean over lines of each main metric, and of their mean."""
    by_task = [
        statistics.fmean(line["dev"][task][TASKS[task].main_metric] for line in lines) for task in TASK_NAMES
    ]
    return [f"{score:.3f}" for score in (*by_task, statistics.fmean(by_task))]


def row_of(cells: Sequence[str], lines: Sequence[Line], mark: str = "") -> str:
    """A row of the table: what it is of, then the mean scores of its lines, steps and minutes."""
    measured = ["…"] * (len(TASK_NAMES) + 3)
    if lines:
        minutes = statistics.fmean(line["seconds"] for line in lines) / 60
        measured = [*scores_of(lines), f"{lines[0]['steps']:,}", f"{minutes:.0f}"]
    return f"| {' | '.join([*cells, *measured, mark])} |"


def table(search_lines: Sequence[Line], final_lines: Sequence[Line]) -> str:
    """The trials in their order with what was kept, then the final runs and the aim.

    What is best is marked: of the trials while the search goes on, of all after it.
    """
    _, better = walk(search_lines)
    kept = [option for option in better if better[option]]
    marks = dict.fromkeys(kept, "kept") | dict.fromkeys(kept[-1:], "**best**")
    if next_trial(search_lines) is None:
        marks |= {kept[-1]: "kept", recommended_line([*search_lines, *final_lines])["arm"]: "**recommended**"}
    rows = ["| training | changed | SST | Quora | STS | mean | steps | minutes | |", "|" + "---|" * 9]
    changes = {option: change or BASE for option, change in OPTIONS.items()}
    changes |= {arm: change | MIX for arm, (change, _) in FINALS.items()}
    for arm, change in changes.items():
        lines = [line for line in (*search_lines, *final_lines) if line["arm"] == arm]
        name = arm + f", {len(lines)} seeds" * (len(lines) > 1)
        rows.append(row_of([name, f"`{' '.join(words(change))}`"], lines, marks.get(arm, "")))
    rows.append(f"| the aim | | {' | '.join(f'{AIM[task]:.2f}' for task in TASK_NAMES)} | | | | |")
    return "\n".join([*rows, "", provenance([*search_lines, *final_lines])])


def command_of(line: Line) -> str:
    """The command that trains what the line is of."""
    program = ["python", "multitask_classifier.py", "--data_dir", "data", "--output_dir", "runs/best"]
    # an experiment keeps the trained weights, where the program alone would choose by dev
    keep = ["--keep", "student"] if "--use_smart" in line["flags"] and "--keep" not in line["flags"] else []
    steps = ["--epochs", "1", "--steps_per_epoch", str(line["steps"])]
    return shlex.join([*program, *line["flags"], *keep, *steps])


def recommended() -> str:
    """What pages say once the search has ended: the best's mean dev scores, its time and its command."""
    search_lines, *final_lines = (question.lines() for question in questions())
    if next_trial(search_lines) is not None:
        return "The search has not ended."
    lines = [line for kept in (search_lines, *final_lines) for line in kept]
    best = recommended_line(lines)
    mine = [line for line in lines if line["arm"] == best["arm"]]
    scores = "SST {}, Quora {}, STS {}".format(*scores_of(mine))
    minutes = statistics.fmean(line["seconds"] for line in mine) / 60
    said = f"Recommended, the best of a search: {scores}, in {minutes:.0f} minutes of one core"
    said += f" ({len(mine)} of {len(SEEDS)} seeds; selected: dev chose the settings)."
    command = " \\\n    ".join(textwrap.wrap(command_of(best), 106, break_on_hyphens=False))
    fence = f"```console\n# the course's files (see data/README.md)\n{command}\n```"
    return f"{textwrap.fill(said, 110)}\n\n{fence}"


def page() -> str:
    """What stands on the page of experiments: the table, then what is recommended."""
    return f"{result_table(questions())}\n\n{recommended()}"


def result_table(asked: Sequence[Question]) -> str:
    """The table of a search and its final runs."""
    search_lines, *final_lines = (question.lines() for question in asked)
    return table(search_lines, [line for lines in final_lines for line in lines])


# ------------------------------------------------------------------------------------- command line


def run(options: Any) -> None:
    """What the command line asks for."""
    if options.plot:
        raise UserError("--plot: this question has a table only")
    if options.seeds:
        raise UserError("--seeds: a search and its final runs choose their seeds")
    asked = questions(options.work_dir / "quick") if options.quick else questions()
    if not options.table:
        data_dir = data_folder(options)
        asked[0].folder.mkdir(parents=True, exist_ok=True)
        if options.what == "search" or options.quick:
            search(asked[0], data_dir, options.work_dir, options.quick)
        if options.what == "final" or options.quick:
            others = [line for question in asked[:2] for line in question.lines()]
            final(asked[2], others, data_dir, options.work_dir, options.quick)
    print(result_table(asked))


def main() -> int:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("what", nargs="?", choices=("search", "final"))
    options = parser.parse_args()
    if not (options.what or options.table or options.plot or options.quick):
        parser.error("say what: search, final, --table or --quick")
    return guarded(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
