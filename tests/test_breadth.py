"""Breadth and the best model: grids, a search that follows from its lines, tables."""

import dataclasses
import json

import pytest
from matplotlib.image import imread

from config import TrainConfig, parse_arguments
from experiments import best, breadth, study
from experiments.runner import Question
from helpers import SAMPLE
from support.errors import UserError
from tasks import TASKS
from training import forward_passes


def line_of(run, **scores: float) -> dict:
    """The line of a run, with these main scores."""
    dev = {task: {TASKS[task].main_metric: scores.get(task, 0.5)} for task in run.tasks}
    line = json.loads(json.dumps(dataclasses.asdict(run))) | {"name": run.name, "dev": dev, "seconds": 60.0}
    return line | {"precision": "bf16", "commit": "c", "processor": "p"}


def write(question: Question, lines: list[dict]) -> None:
    question.file.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    "grid", [breadth.GRID, [best.run_of("x", best.BASE | change, 10_800) for change in best.OPTIONS.values()]]
)
def test_no_flag_is_refused(grid):
    """Guards against a grid that stops after hours at a flag which is gone."""
    for run in grid:
        config, _ = parse_arguments([*run.flags, "--tasks", ",".join(run.tasks)])
        assert config.precision == "bf16" and config.tasks == run.tasks


# ------------------------------------------------------------------------------------------ breadth


def test_runs_of_breadth_have_names_of_their_own():
    """Guards against a size whose run counts as that of another size: 5 sizes, 5 seeds, 8 arms."""
    assert len({run.name for run in breadth.GRID}) == len(breadth.GRID) == 200


def test_equal_passes_are_equal():
    """Guards against a rival that trains for less than what both terms cost."""
    plain, both = (forward_passes(TrainConfig(use_smart=use), "sst") for use in (False, True))
    assert breadth.TIMES * plain == both
    for size in breadth.SIZES:
        equal, terms = (breadth.run_of(arm, size, 400) for arm in (breadth.EQUAL, "both terms"))
        costs = {study.passes(json.loads(json.dumps(dataclasses.asdict(run)))) for run in (equal, terms)}
        assert len(costs) == 1


def test_the_table_of_breadth_by_hand(tmp_path):
    """Guards against a gain over plain with other rows or another task: .02 and .04 are 3 points, and
    the interval of two pairs is 12.7062 of their standard error, .01."""
    question = Question("breadth", tmp_path)
    small, sts = breadth.SIZES[:2]
    lines = []
    for seed, (plain, both) in zip((400, 401), ((0.40, 0.42), (0.30, 0.34)), strict=True):
        lines += [line_of(breadth.run_of("plain", small, seed), sst=plain)]
        lines += [line_of(breadth.run_of("both terms", small, seed), sst=both)]
    lines += [line_of(breadth.run_of("plain", sts, 400), sts=0.9)]
    write(question, lines)
    rows = breadth.table(question).splitlines()
    assert rows[2] == "| sst, 250 rows | plain | 2 | 0.3500 |  | 1 |"
    assert rows[3] == "| sst, 250 rows | both terms | 2 | 0.3800 | +3.00 (-9.71 to +15.71) | 3 |"
    assert rows[4] == "| sts, 250 rows | plain | 1 | 0.9000 |  | 1 |"
    assert rows[5] == "| sts, 1000 rows | … | 0 | … | … | … |"
    assert [imread(path).shape[1] for path in breadth.plot(question)] == [800, 800]
    with pytest.raises(UserError, match="nothing to draw"):
        breadth.plot(Question("none", tmp_path))


# --------------------------------------------------------------------------------------------- best


def searched(scores: list[float]) -> list[dict]:
    """The lines of a search whose trials score so."""
    lines: list[dict] = []
    for score in scores:
        lines.append(line_of(best.next_trial(lines), sst=score, para=score, sts=score))
    return lines


def test_the_search_goes_on_from_what_was_better():
    """Guards against a trial on top of a setting that has lost, and a search that forgets what has won."""
    lines = searched([0.5, 0.6, 0.55, 0.6])  # base; proportional wins; annealed and a lower rate do not
    trial = best.next_trial(lines)
    assert trial.arm == "learning rate 2e-4"
    assert trial.flags == ("--precision", "bf16", "--lr", "2e-4", "--schedule", "proportional")
    won, better = best.walk(lines)
    assert won == {"precision": "bf16", "lr": "1e-4", "schedule": "proportional"}
    assert list(better.values()) == [True, True, False, False]


def test_a_search_ends_and_its_winner_trains_six_times_as_long():
    """Guards against a search without an end, and a final run while it goes on."""
    lines = searched([0.5] * len(best.OPTIONS))
    assert best.next_trial(lines) is None and len(lines) == 15
    finals = best.final_grid(lines)
    assert [run.seed for run in finals] == [0, 1] and finals[0].steps == 6 * 3600
    assert finals[0].flags == best.words(best.BASE) and finals[0].train_rows is None
    with pytest.raises(UserError, match="has not ended"):
        best.final_grid(lines[:-1])


def test_every_trial_costs_the_same():
    """Guards against an option that wins because it trains longer: plain 3 passes a step, both terms 9, a
    joint step three batches, and a batch of 16 rows half a pass."""
    steps = {option: best.steps_for(best.BASE | change, 10_800) for option, change in best.OPTIONS.items()}
    assert steps["base"] == steps["learning rate 5e-5"] == 3600
    assert steps["SMART, both terms"] == steps["joint steps"] == 1200 and steps["16 rows a batch"] == 7200


def test_the_command_is_one_that_the_program_takes():
    """Guards against a recommended command that fails."""
    words = best.command(searched([0.5, 0.6, 0.7])).split()
    assert words[:2] == ["python", "multitask_classifier.py"]
    config, _ = parse_arguments(words[2:])
    assert config.schedule == "annealed" and config.steps_per_epoch == 6 * 3600
    assert "| annealed from proportional | 0.700 | 0.700 | 0.700 | 0.700 | 3,600 | 1 | kept |" in best.table(
        searched([0.5, 0.6, 0.7]), []
    )


@pytest.mark.slow
def test_the_best_model_from_search_to_predictions(tmp_path, encoder, monkeypatch):
    """Guards against a search that breaks in the middle, and final runs that leave no predictions."""
    monkeypatch.setattr(best, "BASE", best.BASE | {"model_name_or_path": encoder})
    names = ("base", "joint steps")
    monkeypatch.setattr(best, "OPTIONS", {name: best.OPTIONS[name] for name in names})
    words = ["best", "--quick", "--data_dir", str(SAMPLE), "--work_dir", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    assert best.main() == 0
    search, final = best.questions(tmp_path / "quick")
    assert [line["arm"] for line in search.lines()] == list(names) and len(final.lines()) == 1
    for task in ("sst", "para", "sts"):
        text = (tmp_path / "quick" / "best" / f"{task}-test-output-seed-0.csv").read_text()
        assert len(text.splitlines()) == 51
