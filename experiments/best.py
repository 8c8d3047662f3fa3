"""The best model of all three tasks in two hours on two cores: a search over the options there are.

    python -m experiments.best search --data_dir path/to/data   # 15 trials of equal cost, about 5 hours
    python -m experiments.best final --data_dir path/to/data    # the winner, six times as long, two seeds
    python -m experiments.best --table

    base ─ change one option ─> trial ─ higher mean of the three dev scores? ─> the new base ─ next option

Every trial is a line, and the next one follows from the lines alone, so a search can be broken off. A trial
costs as many forward passes as any other, about 20 minutes: an option that makes a step dearer gets fewer
steps. All training rows are used, Quora's 70,905 too. The search looks at dev, so its scores, and the
final ones, are selected on dev: they flatter. The final models' predictions for the test files are kept in
`experiments/best/`.
"""

import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from config import parse_arguments
from datasets import read_examples, tokenize
from evaluation import predict, write_predictions
from experiments.runner import (
    HERE,
    Line,
    Question,
    Run,
    chosen_runs,
    data_folder,
    dev_outcome,
    guarded,
    last_model,
    parser_of,
    provenance,
    run_grid,
)
from support.errors import UserError
from tasks import TASKS
from training import forward_passes

TASK_NAMES = ("sst", "para", "sts")
SEEDS = (0, 1)  # of the final runs; the search has the first
ROWS = 32  # of a batch, unless a trial changes it
TRIAL = 10_800  # forward passes of ROWS rows: 3,600 plain steps
FINAL = 6 * TRIAL
Settings = dict[str, str]

BASE: Settings = {"precision": "bf16", "lr": "1e-4"}
OPTIONS: dict[str, Settings] = {  # in the order in which they are tried, each on top of what has won
    "base": {},
    "batches in proportion to rows": {"schedule": "proportional"},
    "annealed from proportional": {"schedule": "annealed"},
    "learning rate 5e-5": {"lr": "5e-5"},
    "learning rate 2e-4": {"lr": "2e-4"},
    "16 rows a batch": {"batch_size": "16"},
    "moving average of the weights": {"keep": "teacher"},
    "R-Drop": {"rdrop_weight": "1"},
    "SMART, both terms": {"use_smart": "", "smart_epsilon": "0.04", "smart_step_size": "0.04"},
    "joint steps": {"schedule": "joint"},
    "contrastive loss, weight .1": {"contrastive_weight": "0.1"},
    "cosine similarity": {"similarity": "cosine"},
    "dropout .3 before the heads": {"hidden_dropout_prob": "0.3"},
    "weight .5 for para": {"task_weights": "para=0.5"},
    "[CLS] and the pooler": {"pooling": "cls"},
}
AIM = {"sst": 0.53, "para": 0.88, "sts": 0.89}


def words(settings: Mapping[str, str]) -> tuple[str, ...]:
    """The settings as flags of the main program."""
    return tuple(word for name, value in settings.items() for word in (f"--{name}", value) if word)


def steps_for(settings: Mapping[str, str], passes: int) -> int:
    """How many steps cost so many forward passes of 32 rows."""
    config, _ = parse_arguments([*words(settings), "--tasks", ",".join(TASK_NAMES)])
    a_batch = statistics.fmean(forward_passes(config, task) for task in TASK_NAMES)
    batches = len(TASK_NAMES) if config.schedule == "joint" else 1
    return round(passes / (a_batch * batches * config.batch_size / ROWS))


def run_of(arm: str, settings: Mapping[str, str], passes: int, seed: int = SEEDS[0]) -> Run:
    """A training on all rows."""
    return Run(arm, TASK_NAMES, seed, words(settings), steps_for(settings, passes))


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


def final_grid(search_lines: Sequence[Line]) -> list[Run]:
    """The winner at full length. Raises UserError while the search has not ended."""
    if next_trial(search_lines) is not None:
        raise UserError("experiments.best: the search has not ended; go on with `search`")
    best, _ = walk(search_lines)
    return [run_of("winner", best, FINAL, seed) for seed in SEEDS]


def test_predictions(
    target: Path, run: Run, data_dir: Path, folder: Path
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The dev outcome of a run; its predictions for the test files go to `target`, in the course's format."""
    model, tokenizer, config = last_model(folder)
    for name in TASK_NAMES:
        task = TASKS[name]
        examples = read_examples(data_dir / task.filename("test"), task, labelled=False)
        dataset = tokenize(examples, task, tokenizer, config.max_length)
        path = target / f"{name}-test-output-seed-{run.seed}.csv"
        predictions = predict(model, dataset, config.batch_size)
        write_predictions(path, task.prediction_column, dataset.ids, predictions)
    return dev_outcome(run, data_dir, folder)


def questions(folder: Path = HERE) -> tuple[Question, Question]:
    """Search and final runs, with their files in the folder."""
    outcome = partial(test_predictions, folder / "best")
    return Question("best_search", folder), Question("best_final", folder, outcome)


# ------------------------------------------------------------------------------------------- tables


def scores_of(lines: Sequence[Line]) -> list[str]:
    """The mean over lines of each main metric, and of their mean."""
    by_task = [
        statistics.fmean(line["dev"][task][TASKS[task].main_metric] for line in lines) for task in TASK_NAMES
    ]
    return [f"{score:.3f}" for score in (*by_task, statistics.fmean(by_task))]


def table(search_lines: Sequence[Line], final_lines: Sequence[Line]) -> str:
    """The trials in their order, then the final runs and the aim."""
    _, better = walk(search_lines)
    rows = ["| trial | SST | Quora | STS | mean | steps | minutes | |", "|---|---|---|---|---|---|---|---|"]
    for option in OPTIONS:
        lines = [line for line in search_lines if line["arm"] == option]
        cells = ["…"] * 6
        if lines:
            cells = [*scores_of(lines), f"{lines[0]['steps']:,}", f"{lines[0]['seconds'] / 60:.0f}"]
        rows.append(f"| {option} | {' | '.join(cells)} | {'kept' if better.get(option) else ''} |")
    cells = ["…"] * 6
    if final_lines:
        minutes = statistics.fmean(line["seconds"] for line in final_lines) / 60
        cells = [*scores_of(final_lines), f"{final_lines[0]['steps']:,}", f"{minutes:.0f}"]
    rows.append(f"| **final, {len(final_lines)} of {len(SEEDS)} seeds** | {' | '.join(cells)} | |")
    aim = [f"{AIM[task]:.2f}" for task in TASK_NAMES]
    rows.append(f"| the aim | {' | '.join(aim)} | | | | |")
    return "\n".join([*rows, "", provenance([*search_lines, *final_lines])])


def command(search_lines: Sequence[Line]) -> str:
    """The command that trains the best model, as far as the search has come."""
    best, _ = walk(search_lines)
    steps = ["--epochs", "1", "--steps_per_epoch", str(steps_for(best, FINAL))]
    return shlex.join(["python", "multitask_classifier.py", "--data_dir", "data", *words(best), *steps])


def run(options: Any) -> None:
    """What the command line asks for."""
    asked = questions(options.work_dir / "quick") if options.quick else questions()
    if not options.table:
        data_dir = data_folder(options)
        asked[0].folder.mkdir(parents=True, exist_ok=True)
        if options.what == "search" or options.quick:
            search(asked[0], data_dir, options.work_dir, options.quick)
        if options.what == "final" or options.quick:
            grid = chosen_runs(options, final_grid(asked[0].lines()))
            run_grid(asked[1], grid, data_dir, options.work_dir)
    lines = [question.lines() for question in asked]
    print(f"{table(*lines)}\n\n{command(lines[0])}")


def main() -> int:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("what", nargs="?", choices=("search", "final"))
    options = parser.parse_args()
    if not (options.what or options.table or options.quick):
        parser.error("say what: search, final, --table or --quick")
    return guarded(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
