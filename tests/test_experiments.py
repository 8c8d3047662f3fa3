"""The runner of the experiments: rows drawn by the seed, grids that are broken off, paired statistics."""

import json
import math

import numpy as np
import pytest

from datasets import read_examples
from experiments import precision, runner
from experiments.runner import Question, Run, draw_rows, paired, run_grid
from helpers import SAMPLE
from tasks import TASKS


@pytest.mark.parametrize("task", ["sst", "para", "sts"])
def test_a_seed_draws_the_rows(tmp_path, task):
    """Guards against arms of one seed that train on other rows, and rows that are changed on the way."""
    first = draw_rows(task, 30, 1, SAMPLE, tmp_path / "a").read_bytes()
    assert draw_rows(task, 30, 1, SAMPLE, tmp_path / "b").read_bytes() == first
    other = read_examples(draw_rows(task, 30, 2, SAMPLE, tmp_path / "c"), TASKS[task])
    drawn = read_examples(draw_rows(task, 30, 1, SAMPLE, tmp_path / "d"), TASKS[task])
    everything = set(read_examples(SAMPLE / TASKS[task].filename("train"), TASKS[task]))
    assert len(drawn) == len(set(drawn)) == 30 and set(drawn) <= everything and set(drawn) != set(other)


def grid_of(encoder: str) -> list[Run]:
    flags = ("--model_name_or_path", encoder, "--batch_size", "4", "--precision", "fp32")
    return [Run(arm, ("sst",), 7, (*flags, *more), steps=4, train_rows=20) for arm, more in ARMS.items()]


ARMS = {"plain": (), "SMART": ("--use_smart",)}
CLOCK = ("seconds", "commit")


def without_clock(question: Question) -> list[dict]:
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in question.lines()]


def test_a_grid_that_is_broken_off_gives_the_same_lines(tmp_path, encoder, monkeypatch):
    """Guards against lines that are lost or doubled, and against a resumed run with other numbers."""
    grid = grid_of(encoder)
    whole = Question("whole", tmp_path / "whole")
    run_grid(whole, grid, SAMPLE, tmp_path / "work")

    broken = Question("broken", tmp_path / "broken")
    real = runner.dev_outcome

    def interrupted(*arguments):
        if broken.lines():
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(runner, "dev_outcome", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_grid(broken, grid, SAMPLE, tmp_path / "work2")
    assert [line["arm"] for line in broken.lines()] == ["plain"]
    monkeypatch.setattr(runner, "dev_outcome", real)
    run_grid(broken, grid, SAMPLE, tmp_path / "work2")
    assert without_clock(broken) == without_clock(whole) and len(broken.lines()) == 2
    for run in grid:
        with np.load(broken.predictions(run)) as ours, np.load(whole.predictions(run)) as theirs:
            assert np.array_equal(ours["sst"], theirs["sst"]) and len(ours["sst"]) == 50
    for line in whole.lines():
        assert line["precision"] == "fp32" and line["dev"]["sst"]["loss"] > 0 and line["train_rows"] == 20


def test_paired_differences_by_hand():
    """Guards against an interval of unpaired runs: the differences .1 and .3 give .2 ± 12.706 x .1."""
    mean, low, high = paired([0.5, 0.6], [0.6, 0.9])
    assert (mean, low, high) == pytest.approx((0.2, 0.2 - 1.2706205, 0.2 + 1.2706205), abs=1e-6)
    assert paired([1.0], [2.0]) == (1.0, 1.0, 1.0)


def test_the_interval_covers_what_it_should():
    """Guards against intervals that are too narrow: of 2,000 draws of ten pairs 95 % must hold the truth."""
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        first = random.normal(0, 1, 10)
        _, low, high = paired(first, first + random.normal(0.3, 0.5, 10))
        hits += low <= 0.3 <= high
    assert abs(hits / 2000 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 2000)


def test_the_table_comes_from_lines_alone():
    """Guards against a table that needs the runs, and one that pairs other seeds with each other."""
    lines = []
    for seed, (exact, rounded) in enumerate([(0.40, 0.41), (0.50, 0.51)]):
        for arm, score in (("plain fp32", exact), ("plain bf16", rounded)):
            dev = {"sst": {"accuracy": score, "loss": 1.0}}
            lines.append({"arm": arm, "tasks": ["sst"], "seed": seed, "dev": dev})
    lines.append(
        {"arm": "plain fp32", "tasks": ["sst"], "seed": 5, "dev": {"sst": {"accuracy": 0.9, "loss": 1.0}}}
    )
    _, _, row = precision.table(json.loads(json.dumps(lines))).splitlines()
    assert row.split(" | ")[:5] == ["| sst", "plain", "2", "0.4500", "0.4600"] and "+0.0100" in row
