"""The runner of the experiments: rows drawn by the seed, grids that are broken off, paired statistics."""

import argparse
import dataclasses
import json
import math

import numpy as np
import pytest
from matplotlib.image import imread
from training import forward_passes

from config import TrainConfig, parse_arguments
from datasets import read_examples, read_unlabelled
from experiments import mixing, precision, runner, smart, study, table1, toy, unlabelled
from experiments.inference import bootstrap, over_rows, paired, permutation_p, seeds_needed, verdict
from experiments.runner import Question, Run, draw_rows, run_grid
from helpers import SAMPLE
from measured import write_lines
from support.errors import UserError
from tasks import TASKS, accuracy


@pytest.mark.parametrize("task", ["sst", "para", "sts"])
def test_a_seed_draws_the_rows(tmp_path, task):
    """Guards against arms of one seed that train on other rows, and rows that are changed on the way."""
    first = draw_rows(task, 30, 1, SAMPLE, tmp_path / "a").read_bytes()
    assert draw_rows(task, 30, 1, SAMPLE, tmp_path / "b").read_bytes() == first
    other = read_examples(draw_rows(task, 30, 2, SAMPLE, tmp_path / "c"), TASKS[task])
    drawn = read_examples(draw_rows(task, 30, 1, SAMPLE, tmp_path / "d"), TASKS[task])
    everything = set(read_examples(SAMPLE / TASKS[task].filename("train"), TASKS[task]))
    assert len(drawn) == len(set(drawn)) == 30 and set(drawn) <= everything and set(drawn) != set(other)


@pytest.mark.parametrize("task", ["sst", "para"])
def test_the_rows_without_labels_are_the_others(tmp_path, task):
    """Guards against labelled rows among the unlabelled ones, and against rows that are in neither file."""
    drawn = read_examples(draw_rows(task, 30, 1, SAMPLE, tmp_path), TASKS[task])
    others = read_unlabelled(draw_rows(task, 30, 1, SAMPLE, tmp_path, others=True), TASKS[task])
    everything = read_examples(SAMPLE / TASKS[task].filename("train"), TASKS[task])
    assert {example.label for example in others} == {None}
    assert not {example.id for example in drawn} & {example.id for example in others}
    assert {example.texts for example in [*drawn, *others]} == {example.texts for example in everything}


def grid_of(encoder: str) -> list[Run]:
    """Plain, SMART with texts without labels, and two epochs, of which the last step's weights are scored."""
    flags = ("--model_name_or_path", encoder, "--batch_size", "4", "--precision", "fp32")
    runs = [Run(arm, ("sst",), 7, (*flags, *more), steps=4, train_rows=20) for arm, more in ARMS.items()]
    return [runs[0], dataclasses.replace(runs[1], unlabelled="sst"), dataclasses.replace(runs[2], epochs=2)]


ARMS = {"plain": (), "SMART": ("--use_smart",), "annealed": ("--schedule", "annealed")}
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
    assert without_clock(broken) == without_clock(whole) and len(broken.lines()) == 3
    for run in grid:
        with np.load(broken.predictions(run)) as ours, np.load(whole.predictions(run)) as theirs:
            assert np.array_equal(ours["sst"], theirs["sst"]) and len(ours["sst"]) == 50
    for line in whole.lines():
        assert line["precision"] == "fp32" and line["dev"]["sst"]["loss"] > 0 and line["train_rows"] == 20


def test_paired_differences_by_hand():
    """Guards against an interval of unpaired runs: the differences .1 and .3 give .2 ± 12.706 x .1."""
    mean, low, high = paired([0.5, 0.6], [0.6, 0.9])
    assert (mean, low, high) == pytest.approx((0.2, 0.2 - 1.2706205, 0.2 + 1.2706205), abs=1e-6)
    assert paired([1.0, 2.0], [2.0, 3.0]) == (1.0, 1.0, 1.0)
    mean, *ends = paired([1.0], [2.0])
    assert mean == 1.0 and all(math.isnan(end) for end in ends)


def test_the_interval_covers_what_it_should():
    """Guards against intervals that are too narrow: of 2,000 draws of ten pairs 95 % must hold the truth."""
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        first = random.normal(0, 1, 10)
        _, low, high = paired(first, first + random.normal(0.3, 0.5, 10))
        hits += low <= 0.3 <= high
    assert abs(hits / 2000 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 2000)


def line_of(arm: str, seed: int, accuracy: float) -> dict:
    """A line without its run."""
    dev = {"sst": {"accuracy": accuracy, "loss": 1.0}}
    line = {"arm": arm, "tasks": ["sst"], "seed": seed, "dev": dev, "seconds": 60.0, "precision": "bf16"}
    return line | {"name": f"{arm}-sst-{seed}", "commit": "c", "processor": "p"}


def test_seeds_as_ranges():
    """Guards against a page that names a seed which has not been run."""
    assert runner.ranges([219, 0, 1, *range(200, 219), 0]) == "0, 1, 200 to 219"
    assert runner.ranges([3, 5, 7]) == "3, 5, 7" and runner.ranges([]) == ""


def test_the_table_comes_from_lines_alone(tmp_path):
    """Guards against a table that needs the runs, and one that pairs other seeds with each other."""
    question = Question("precision", tmp_path)
    lines = []
    for seed, (exact, rounded) in enumerate([(0.40, 0.41), (0.50, 0.51)]):
        lines += [line_of("plain fp32", seed, exact), line_of("plain bf16", seed, rounded)]
    write_lines(question, [*lines, line_of("plain fp32", 5, 0.9)])
    row = precision.table(question).splitlines()[2]
    assert row.split(" | ")[:5] == ["| plain, sst alone", "sst", "2", "0.4500", "0.4600"] and "+0.0100" in row


def test_the_interval_over_dev_rows_by_hand():
    """Guards against rows of one side that are drawn apart from the other's: equal predictions differ by 0.

    One row of four that only the second side has right gives k / 4 with k ~ Binomial(4, 1/4): its 2.5 % and
    97.5 % quantiles are 0 and 3 / 4 (P(k <= 2) = .949, P(k <= 3) = .996).
    """
    labels = np.array([1, 0, 1, 0])
    assert over_rows(accuracy, labels, labels, labels) == (0.0, 0.0)
    assert over_rows(accuracy, np.array([0, 0, 1, 0]), labels, labels, draws=4000) == (0.0, 0.75)


def test_lines_of_another_commit_or_processor(tmp_path, monkeypatch, capsys):
    """Guards against a comparison of two programs, and of two processors within a seed."""
    question = Question("mixed", tmp_path)
    grid = [Run(arm, ("sst",), seed, (), 4) for seed in (0, 1) for arm in ("plain", "SMART")]
    here = {"commit": runner.commit(), **runner.machine()}
    first = line_of("plain", 0, 0.5) | {"name": grid[0].name}
    write_lines(question, [first | here | {"commit": "older"}])
    with pytest.raises(UserError, match="of commit older"):
        run_grid(question, grid, SAMPLE, tmp_path)
    write_lines(question, [first | here | {"processor": "abacus"}])
    done = []
    monkeypatch.setattr(
        runner, "run_one", lambda question, run, *_: done.append(run.name) or line_of("", 0, 1)
    )
    run_grid(question, grid, SAMPLE, tmp_path)
    assert done == [run.name for run in grid[2:]]
    assert "1 runs wait for the processor" in capsys.readouterr().out


def test_table1_from_lines_alone(tmp_path):
    """Guards against a seed that is left out of a mean, and a figure without its run."""
    question = Question("table1", tmp_path)
    lines = [
        line_of("sentiment only, no SMART", seed, value) | {"seconds": 120.0}
        for seed, value in enumerate((0.4, 0.5))
    ]
    for line in lines:
        line["dev"] |= {"para": {"accuracy": 0.6}, "sts": {"pearson": 0.1}}
    write_lines(question, lines)
    rows = table1.table(question).splitlines()
    assert rows[2] == (
        "| sentiment only, no SMART | **0.450** | 0.600 | 0.100 | 0.318 | 0.625 | 0.015 | 2 | 2 |"
    )
    assert rows[3] == "| sentiment only, SMART | … | … | … | 0.344 | 0.625 | 0.015 | 0 | … |"
    rows = table1.short_table(question).splitlines()
    assert rows[2:4] == [
        "| sentiment only, no SMART | 0.450 (0.318) | – | – |",
        "| sentiment only, SMART | … (0.344) | – | – |",
    ]
    assert rows[8] == "| all three interleaved, SMART | … | … | … |"
    with pytest.raises(UserError, match="no run yet"):
        table1.plot(question)


def test_a_loss_curve_by_hand():
    """Guards against a last point that is the loss of one batch, and a task in turns that looks noisier than
    one alone: 50 steps of a task make a point in both."""
    alone = [(50, 3.0), (100, 2.0), (102, 9.0)]
    assert table1.smoothed(alone, 1) == ([50, 100], [3.0, 2.0])
    turns = [(50, 3.0), (100, 2.0), (150, 1.0), (200, 5.0), (202, 9.0)]
    assert table1.smoothed(turns, 3) == ([50], [2.0])


def test_table1_gives_each_task_as_many_steps():
    """Guards against rows that are not comparable: two passes over SST are 534 steps of 32 rows."""
    assert 534 * 32 >= 2 * 8544 > 533 * 32
    for run in table1.GRID:
        steps = run.steps * (8 if "--batch_size" in run.flags else 32) // 32
        assert steps == 534 * len(run.tasks) and run.scored == ("sst", "para", "sts")
    assert len(table1.GRID) == 11


# ---------------------------------------------------------------------------------------- what pairs say


def test_the_permutation_test_by_hand():
    """Guards against a one-sided test: ten differences of one sign have p = 2 / 2^10, whatever their size."""
    first = np.zeros(10)
    assert permutation_p(first, np.arange(1, 11) / 100) == pytest.approx(2 / 1024)
    assert permutation_p(np.arange(1, 11) / 100, first) == pytest.approx(2 / 1024)
    assert permutation_p([0.0, 0.0], [0.1, -0.1]) == 1.0


def test_the_bootstrap_covers_what_it_should():
    """Guards against an interval for these dev rows only: seeds scatter, rows scatter, 95 % must hold."""
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(150):
        of_rows = random.normal(0, 0.4, 150)
        of_seeds = random.normal(0, 0.1, (12, 1))
        first = random.normal(0, 0.3, (12, 150))
        low, high = bootstrap(first, first + 0.2 + of_rows + of_seeds, draws=400)
        hits += low <= 0.2 <= high
    assert 0.88 <= hits / 150 <= 0.99


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ([0.02 + 0.001 * i for i in range(20)], "gain"),
        ([-0.02 - 0.001 * i for i in range(20)], "loss"),
        ([0.004 * (-1) ** i for i in range(20)], "no gain"),
        ([0.05 * (-1) ** i for i in range(20)], "not decided"),
    ],
)
def test_the_verdict_follows_its_rule(differences, said):
    """Guards against a claim that its interval does not bear."""
    assert verdict(np.zeros(len(differences)), differences).startswith(said)


def test_seeds_needed_by_hand():
    """Guards against a promise that is off by the square: a scatter of .05 needs (1.96 x 5)² pairs."""
    assert seeds_needed([0.0] * 3, [-0.05, 0.0, 0.05]) == math.ceil((1.96 * 5) ** 2) + 2


def test_the_primary_comparison_is_tuned_alike(tmp_path):
    """Guards against a side that is tuned on more settings, or on the seeds that decide."""
    ours = dataclasses.replace(smart.STUDY, folder=tmp_path)
    assert [len(side) for side in ours.sides.values()] == [9, 9]
    grid = ours.tuning_grid()
    assert len({run.name for run in grid}) == 90 and not {run.seed for run in grid} & set(study.SEEDS)
    with pytest.raises(UserError, match="no winners yet"):
        ours.comparison_grid()
    best = {"plain 6 passes lr 0.0001", "SMART weight 3 epsilon 0.02"}
    lines = [line_of(run.arm, run.seed, 0.5 if run.arm in best else 0.4) for run in grid]
    write_lines(ours.tuning, lines[:-1])
    with pytest.raises(UserError, match="4 of 5 seeds"):
        study.choose_winners(ours)
    write_lines(ours.tuning, lines)
    study.choose_winners(ours)
    with pytest.raises(UserError, match="commit the winners"):
        study.check_committed(ours.winners)
    comparison = ours.comparison_grid()
    assert len({run.name for run in comparison}) == len(comparison) == 7 * 20
    primary = comparison[:40]
    assert {run.arm for run in primary} == {"plain", "SMART"}
    assert [run.seed for run in primary[::2]] == list(study.SEEDS)
    by_arm = {run.arm: run for run in comparison}
    assert by_arm["plain"].steps == 6 * 32 and by_arm["plain, SMART's passes"].steps == 3 * 32
    assert "0.02" in by_arm["SMART"].flags and by_arm["R3F"].flags[-2:] == ("--smart_steps", "0")


def test_a_quick_look_leaves_the_committed_lines_alone(tmp_path, monkeypatch):
    """Guards against lines of a few steps among those that decide."""
    asked = []

    def run_grid(question, runs, *_):
        asked.append((question.file.parent, len(runs), {run.steps for run in runs}))
        write_lines(question, [line_of(run.arm, run.seed, 0.5) for run in runs])

    monkeypatch.setattr(study, "run_grid", run_grid)
    words = ["unlabelled", "--quick", "--data_dir", str(SAMPLE), "--work_dir", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr(study, "table", lambda _: "")
    assert study.main_of(unlabelled.STUDY, None) == 0
    assert asked == [(tmp_path / "quick", 18, {2}), *[(tmp_path / "quick", 3, {2})] * 2]


def test_the_comparison_from_what_is_kept(tmp_path):
    """Guards against a gain that pairs other seeds, and a picture that needs the runs.

    SMART is right on one more row of ten in each of three seeds: a gain of .1 with no scatter over seeds.
    """
    ours = dataclasses.replace(smart.STUDY, folder=tmp_path)
    assert study.answer(ours) == ""  # nothing has been run
    question = ours.comparison
    labels = np.arange(10) % 5
    question.predictions(Run("plain", ("sst",), 0, (), 0)).parent.mkdir(parents=True)
    lines = []
    for arm, right in (("plain", 4), ("SMART", 5), ("R-Drop", 3)):
        for seed in (200, 201, 202):
            predicted = np.where(np.arange(10) < right, labels, 9)
            path = question.predictions(Run(arm, ("sst",), seed, (), 0))
            np.savez_compressed(path, **{"sst": predicted, "sst labels": labels})
            lines.append(line_of(arm, seed, right / 10) | {"seconds": 10.0 * right, "flags": [], "steps": 20})
            if arm == "SMART":
                lines[-1] |= {"flags": ["--use_smart"], "steps": 10}
    write_lines(question, lines)
    heads, _, _, row = study.table(ours).splitlines()[:4]
    assert heads.split(" | ")[-3:] == ["cost", "seconds", "verdict |"]
    assert heads.count("|") == row.count("|")
    # ten steps of nine forward passes beside twenty of three
    scores = "| SMART | 3 | 0.5000 | +0.1000 (+0.1000 to +0.1000) | +0.0000 to +0.3000 | 1.5 | 50 |"
    assert row.startswith(scores)
    assert study.answer(ours) == (
        "**Not decided** with 1,000 rows: +10.00 points (95 % over 3 seeds: +10.00 to +10.00),"
        " in 1.2 times the time."
    )
    paths = study.plot(ours)
    assert [imread(path).shape[1] for path in paths] == [800, 800]


KEPT = sorted(path.name for path in (runner.HERE / "predictions").iterdir() if path.is_dir())


@pytest.mark.parametrize("name", [name for name in KEPT if name != "robustness"])  # it has a test of its own
def test_the_committed_predictions_give_the_committed_lines(name):
    """Guards against a line that is edited, or predictions that are another run's."""
    question = Question(name)
    for line in question.lines():
        with np.load(question.folder / "predictions" / name / f"{line['name']}.npz") as kept:
            arrays = dict(kept)
        for task, said in line["dev"].items():
            labels = arrays[f"{task} labels"]
            for predicted, scores in (
                (arrays[task], said),
                (arrays.get(f"{task} teacher"), said.get("teacher")),
            ):
                if predicted is not None:
                    measured = np.corrcoef(predicted, labels)[0, 1] if task == "sts" else predicted == labels
                    assert measured.mean() == pytest.approx(scores[TASKS[task].main_metric], abs=1e-6)


def test_the_toy_gives_its_committed_lines():
    """Guards against a picture and a table of another program than today's."""
    kept = toy.kept_lines()
    found = {name: toy.measure(toy.train(weight)) for name, weight in toy.WEIGHTS.items()}
    for name, measured in found.items():  # another processor moved two of the 100 points
        assert measured == pytest.approx(kept[name], abs=0.03)
    assert found["with R_s"]["changed"] < found["plain"]["changed"]
    assert kept["with R_s"]["changed"] < kept["plain"]["changed"]


# ------------------------------------------------------------------------------ mixing, texts without labels


def test_texts_without_labels_have_a_rival_of_equal_cost(tmp_path):
    """Guards against a comparison with a plain training that had fewer passes, or fewer tries."""
    ours = dataclasses.replace(unlabelled.STUDY, folder=tmp_path)
    assert [len(side) for side in ours.sides.values()] == [9, 9]
    plain, judged = (side[-1] for side in ours.sides.values())
    with_terms = TrainConfig(tasks=("sst",), use_smart=True, unlabelled_file="x")
    costs = [forward_passes(with_terms, source) for source in with_terms.sources]
    assert plain.steps * forward_passes(TrainConfig(), "sst") == judged.steps * sum(costs) / len(costs)
    lines = [dataclasses.asdict(run) for run in (plain, judged)]
    assert study.passes(lines[0]) == study.passes(lines[1]) == 3 * plain.steps
    assert judged.unlabelled == "sst" and not plain.unlabelled
    assert judged.train_rows == plain.train_rows == 250
    with pytest.raises(UserError, match="no winners yet"):
        ours.comparison_grid()
    ours.winners.write_text(json.dumps({side: runs[0].arm for side, runs in ours.sides.items()}))
    grid = ours.comparison_grid()
    assert [run.arm for run in grid[:4]] == ["plain", ours.judged] * 2 and len(grid) == 60
    tuning = ours.tuning_grid()
    assert len(tuning) == 54 and not {run.seed for run in grid} & {run.seed for run in tuning}


def test_every_way_of_mixing_sees_as_many_batches():
    """Guards against an arm that trains longer than the default. A joint step has a batch of each task."""
    for run in mixing.GRID:
        assert run.steps * (3 if run.arm.startswith("joint") else 1) == 1500 and run.epochs == 2
        TrainConfig(tasks=run.tasks, **flags_of(run))  # no flag is refused
    assert len({run.name for run in mixing.GRID}) == len(mixing.GRID)
    for arm in mixing.OTHERS:
        seeds = {run.seed for run in mixing.GRID if run.arm == arm}
        assert len(seeds) == 2  # and the default with the same two
        assert seeds < {run.seed for run in mixing.GRID if run.arm == mixing.DEFAULT}
    options = argparse.Namespace(data_dir="data", seeds=None, quick=True)
    quick = runner.chosen_runs(options, mixing.GRID)
    assert sorted(run.arm for run in quick) == sorted(mixing.ARMS)  # one of each, also of the second half


def flags_of(run: Run) -> dict:
    config, given = parse_arguments([*run.flags, "--tasks", ",".join(run.tasks)])
    return {name: getattr(config, name) for name in given - {"tasks"}}


def test_the_table_of_mixing_by_hand(tmp_path):
    """Guards against differences from other seeds, or in the wrong unit."""
    question = Question("mixing", tmp_path)

    def line(arm, seed, sst):
        dev = {"sst": {"accuracy": sst}, "para": {"accuracy": 0.8}, "sts": {"pearson": 0.9}}
        shared = {"precision": "bf16", "processor": "x", "commit": "c", "seconds": 60}
        return json.dumps({"arm": arm, "seed": seed, "dev": dev} | shared)

    default = mixing.DEFAULT
    lines = [line(default, 0, 0.40), line(default, 1, 0.44), line("joint", 1, 0.45)]
    lines += [line(default, 2, 0.30), line("cosine similarity", 2, 0.32)]
    question.file.write_text("\n".join(lines) + "\n")
    rows = mixing.table(question).splitlines()
    assert rows[2] == f"| {default} | 0.420 | 0.800 | 0.900 | 0, 1 | 1 |"
    assert "| joint | 0.450 (+1.0) | 0.800 (+0.0) | 0.900 (+0.0) | 1 | 1 |" in rows
    assert rows[7] == f"| {default} | 0.300 | 0.800 | 0.900 | 2 | 1 |"  # the other half's own
    assert "| cosine similarity | 0.320 (+2.0) | 0.800 (+0.0) | 0.900 (+0.0) | 2 | 1 |" in rows
