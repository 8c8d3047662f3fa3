"""Does bf16 cost quality? Runs in bf16 beside runs in fp32, equal in everything else.

    python -m experiments.precision --data_dir path/to/data     # runs what has no line yet, about three hours
    python -m experiments.precision --table

sst and sts alone with 1,000 training rows, plain and SMART, ten seeds; 96 steps of 32 rows. Then one pass
over all three tasks, interleaved, with 16,000 Quora rows: 801 steps, once.
"""

import sys

from experiments.inference import over_rows, paired
from experiments.runner import Line, Question, Run, main_of, provenance
from tasks import TASKS

QUESTION = Question("precision")
ARMS = {"plain": (), "SMART": ("--use_smart",)}
PRECISIONS = ("fp32", "bf16")
SEEDS = range(10)
TASK_NAMES = ("sst", "sts")
GRID = [
    Run(f"{arm} {precision}", (task,), seed, (*flags, "--precision", precision), steps=96, train_rows=1000)
    for seed in SEEDS
    for task in TASK_NAMES
    for arm, flags in ARMS.items()
    for precision in PRECISIONS
]
ALL_TASKS = ("sst", "para", "sts")
GRID += [
    Run(f"plain {precision}", ALL_TASKS, 10, ("--precision", precision), steps=801, train_rows=16_000)
    for precision in PRECISIONS
]


def table(question: Question) -> str:
    """Mean dev score in fp32 and in bf16, and the paired differences with their 95 % intervals.

    The interval of the single tasks is over seeds (Student's t), that of the one run of all tasks over dev
    rows (bootstrap).
    """
    lines = question.lines()
    rows = [
        "| training | task | runs | fp32 | bf16 | bf16 - fp32 (95 % interval) | dev loss, bf16 - fp32 |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in TASK_NAMES:
        for arm in ARMS:
            exact, rounded = pairs_of(lines, task, arm)
            if exact:
                rows.append(f"| {' | '.join([f'{arm}, {task} alone', task, *cells(task, exact, rounded)])} |")
    together = {line["arm"]: line for line in lines if tuple(line["tasks"]) == ALL_TASKS}
    if len(together) == len(PRECISIONS):
        for task in ALL_TASKS:
            rows.append(f"| {' | '.join(['plain, all three', task, *one_pair(question, task, together)])} |")
    return "\n".join([*rows, "", provenance(lines)])


def one_pair(question: Question, task: str, together: dict[str, Line]) -> list[str]:
    """Number of pairs, both scores, and the differences of score and loss; the interval is over dev rows."""
    exact, rounded = (together[f"plain {precision}"] for precision in PRECISIONS)
    metric = TASKS[task].main_metric
    scores = [line["dev"][task][metric] for line in (exact, rounded)]
    runs = [next(run for run in GRID if run.name == line["name"]) for line in (exact, rounded)]
    (first, labels), (second, _) = (question.kept(run, task) for run in runs)
    low, high = over_rows(TASKS[task].metrics[metric], first, second, labels)
    loss = rounded["dev"][task]["loss"] - exact["dev"][task]["loss"]
    difference = f"{scores[1] - scores[0]:+.4f} ({low:+.4f} to {high:+.4f}, over dev rows)"
    return ["1", *(f"{score:.4f}" for score in scores), difference, f"{loss:+.4f}"]


def pairs_of(lines: list[Line], task: str, arm: str) -> tuple[list[dict], list[dict]]:
    """Dev outcomes in fp32 and in bf16 of the seeds that have both, in the same order."""
    dev = {(line["arm"], line["seed"]): line["dev"].get(task) for line in lines if line["tasks"] == [task]}
    names = [f"{arm} {precision}" for precision in PRECISIONS]
    seeds = [seed for seed in SEEDS if all((name, seed) in dev for name in names)]
    exact, rounded = ([dev[name, seed] for seed in seeds] for name in names)
    return exact, rounded


def cells(task: str, exact: list[dict], rounded: list[dict]) -> list[str]:
    """Number of seeds, both means, and the paired differences of score and loss."""
    texts = [str(len(exact))]
    metric = TASKS[task].main_metric
    texts += [f"{sum(dev[metric] for dev in side) / len(side):.4f}" for side in (exact, rounded)]
    for name in (metric, "loss"):
        mean, low, high = paired([dev[name] for dev in exact], [dev[name] for dev in rounded])
        interval = f"({low:+.4f} to {high:+.4f})" if len(exact) > 1 else "(one seed has no interval)"
        texts.append(f"{mean:+.4f} {interval}")
    return texts


if __name__ == "__main__":
    sys.exit(main_of(QUESTION, GRID, table, description=__doc__))
