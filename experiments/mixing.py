"""Ways to mix three tasks, and losses beside SMART's: each alone beside the default. Exploratory.

    python -m experiments.mixing --data_dir path/to/data    # runs what has no line yet, about three hours
    python -m experiments.mixing --table

Plain training on SST, STS-B and 8,000 Quora pairs, with as many batches as two passes over the median task
need. A joint step has a batch of every task, so it has a third of the steps.

Two seeds for each option, beside the default with the same two: 0 and 1 for the schedules, 2 and 3 for all
else. (The halves ran on two types of processor, and only runs of one type are compared.)
"""

import statistics
import sys

from experiments.runner import Question, Run, main_of, markdown, provenance, ranges
from tasks import TASKS

QUESTION = Question("mixing")
TASK_NAMES = ("sst", "para", "sts")
QUORA_ROWS = 8_000  # more than STS-B has and fewer than SST: 250, 267 and 189 batches, 250 in the middle
STEPS = 2 * 3 * 250  # optimizer steps of two epochs, one task each
ARMS: dict[str, tuple[str, ...]] = {
    "default: interleaved": (),
    "sequential": ("--schedule", "sequential"),
    "proportional": ("--schedule", "proportional"),
    "annealed": ("--schedule", "annealed"),
    "joint": ("--schedule", "joint"),
    "joint, PCGrad": ("--schedule", "joint", "--gradient_surgery", "pcgrad"),
    "task weight of para .5": ("--task_weights", "para=0.5"),
    "at most 1,024 tokens": ("--max_tokens", "1024"),
    "moving average of the weights": ("--keep", "teacher"),
    "cosine similarity": ("--similarity", "cosine"),
    "contrastive loss, weight .1": ("--contrastive_weight", "0.1"),
    "FreeLB": (
        *("--use_smart", "--adversary", "freelb", "--bregman_weight", "0", "--smart_steps", "2"),
        *("--smart_epsilon", "0.3", "--smart_step_size", "0.1"),
    ),
}


def run_of(arm: str, seed: int) -> Run:
    """One run of an arm."""
    flags = (*ARMS[arm], "--precision", "bf16")
    steps = STEPS // len(TASK_NAMES) if arm.startswith("joint") else STEPS
    return Run(arm, TASK_NAMES, seed, flags, steps, QUORA_ROWS, epochs=2)


DEFAULT, *OTHERS = ARMS
HALVES = {(0, 1): [DEFAULT, *OTHERS[:4]], (2, 3): [DEFAULT, *OTHERS[4:]]}  # the schedules; all else
GRID = [run_of(arm, seed) for seeds, arms in HALVES.items() for seed in seeds for arm in arms]


def table(question: Question) -> str:
    """Dev scores of each arm, and their difference from the default's with the same seeds, in points."""
    lines = question.lines()
    scores = {
        (line["arm"], line["seed"]): [line["dev"][task][TASKS[task].main_metric] for task in TASK_NAMES]
        for line in lines
    }
    minutes = {(line["arm"], line["seed"]): line["seconds"] / 60 for line in lines}
    rows = []
    for half, arms in HALVES.items():
        for arm in arms:
            seeds = [seed for seed in half if (arm, seed) in scores]
            both = [seed for seed in seeds if (DEFAULT, seed) in scores]
            cells = ["…"] * len(TASK_NAMES)
            for place in range(len(TASK_NAMES)) if seeds else ():
                mean = statistics.fmean(scores[arm, seed][place] for seed in seeds)
                gains = [scores[arm, seed][place] - scores[DEFAULT, seed][place] for seed in both]
                points = f" ({100 * statistics.fmean(gains):+.1f})" if both and arm != DEFAULT else ""
                cells[place] = f"{mean:.3f}{points}"
            taken = f"{statistics.fmean(minutes[arm, seed] for seed in seeds):.0f}" if seeds else "…"
            rows.append([arm, *cells, ranges(seeds) or "…", taken])
    heads = ["arm", "SST", "Quora", "STS", "seeds", "minutes"]
    return f"{markdown(heads, rows)}\n\n{provenance(lines)}"


if __name__ == "__main__":
    sys.exit(main_of(QUESTION, GRID, table, description=__doc__))
