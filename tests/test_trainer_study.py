"""The searches on held-out rows: the rows, and the rules that pick a winner."""

import numpy as np
import pytest

from datasets import read_examples
from experiments import held_out, record_search, runner, tables, trainer
from tasks import TASKS


def lines_of(option: str, gains: dict[tuple[str, int], float]) -> list[dict]:
    """A line for every run of a stage: .5 and a gain by (value, seed), ±.002 by setting."""
    lines = []
    kind = tables.processor_type(runner.machine())
    for (value, seed), gain in gains.items():
        runs = trainer.runs_of(trainer.BEFORE | {option: value}, seed, False, kind)
        for number, run in enumerate(runs):
            main = 0.5 + gain + 0.001 * (number - 2) * (gain != 0)
            scores = {task: {TASKS[task].main_metric: main} for task in run.tasks}
            lines.append({"name": run.name, "tasks": run.tasks, "dev": scores} | runner.machine())
    return lines


@pytest.mark.parametrize(
    ("gains", "winner", "left"),
    [
        ([0.01, 0.02], "16", []),
        ([-0.01, -0.02], "32", []),
        ([0.01, -0.001], None, [2]),  # the seeds disagree: a third is run
        ([0.02, -0.001, 0.02], "16", []),
        ([0.01, -0.02], None, [2]),
        ([0.01], None, [1]),
    ],
)
def test_the_winner_of_a_stage_by_hand(gains, winner, left):
    """Guards against a default that changes by chance, or that a bad seed alone keeps from changing."""
    found = {
        (value, seed): gain * (value == "16") for seed, gain in enumerate(gains) for value in ("32", "16")
    }
    stage = trainer.stage_of("batch_size", dict(trainer.BEFORE), lines_of("batch_size", found))
    assert stage.winner == winner and list(stage.left) == left
    assert list(stage.gains["16"]) == list(range(len(gains)))


@pytest.mark.parametrize(("gains", "winner"), [((0.01, 0.002), "adapted"), ((0.02, -0.001), "minilm")])
def test_a_value_of_the_record_search_wins_by_both_seeds(gains, winner):
    """Guards against a value kept by one lucky seed, and a stage that starts from a loser."""

    def line(run, mean):
        dev = {task: {TASKS[task].main_metric: mean} for task in run.tasks}
        return {"name": run.name, "tasks": run.tasks, "dev": dev}

    (stage,) = record_search.stages([])
    scores = {run.name: 0.7 + gains[run.seed] * ("adapted" in run.arm) for run in stage.left}
    first, second = record_search.stages([line(run, scores[run.name]) for run in stage.left])
    assert first.winner == winner and second.option == "sts" and second.winner is None
    assert all(("adapted" in run.arm) == (winner == "adapted") for run in second.left)


def test_held_out_rows_are_in_one_of_the_two_files(course_data, tmp_path):
    """Guards against rows that are trained on and scored, and rows that are lost."""
    folder = held_out.held_out_folder(course_data, tmp_path)
    for task, count in held_out.HELD_OUT.items():
        record = TASKS[task]
        whole = [example.id for example in read_examples(course_data / record.filename("train"), record)]
        train, dev = (
            [example.id for example in read_examples(folder / record.filename(split), record)]
            for split in ("train", "dev")
        )
        assert len(dev) == count and not set(train) & set(dev)
        assert np.array_equal(np.sort(train + dev), np.sort(whole))
