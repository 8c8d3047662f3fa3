"""The question whether SMART is smoother: its grid, its tables, an attack that is broken off."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from config import TrainConfig, parse_arguments
from experiments import robustness, runner
from experiments.measures import EPSILONS
from experiments.robustness import EPOCHS, LONG, MIDDLE, QUESTION, SEEDS, answer, grid, plot, table
from experiments.runner import Question, Run, run_grid
from experiments.smart import STUDY
from helpers import SAMPLE
from support.errors import UserError
from tasks import TASKS


def test_the_grid_is_what_was_fixed_beforehand():
    """Guards against an arm that trains longer, seeds that were tuned on, and primary runs that come last."""
    runs = grid()
    assert len({run.name for run in runs}) == len(runs) == 20 + 5 + 8 + 6
    assert [(run.arm, run.seed) for run in runs[:4]] == [
        ("plain", 300),
        ("SMART", 300),
        ("plain", 301),
        ("SMART", 301),
    ]
    assert {run.steps for run in runs[:25]} == {534} and not any(run.train_rows for run in runs[:25])
    assert {(run.tasks[0], run.steps, run.train_rows) for run in runs[25:33]} == {
        ("sts", 378, None),
        ("para", 500, 8000),
    }
    assert {(run.steps, run.epochs) for run in runs[33:]} == {(2670, EPOCHS)}
    for run in runs:
        config, given = parse_arguments([*run.flags, "--tasks", run.tasks[0]])
        TrainConfig(tasks=run.tasks, **{name: getattr(config, name) for name in given - {"tasks"}})
    assert dict(zip(runs[0].flags[::2], runs[0].flags[1::2], strict=True))["--lr"] == "0.0001"


def test_smarts_epsilon_is_the_largest_that_cost_no_accuracy():
    """Guards against a setting that was picked for what the attack says of it."""
    means = json.loads(STUDY.winners.read_text())["SMART means"]
    near = [name for name, mean in means.items() if mean > max(means.values()) - 0.001]
    epsilon = max(float(name.split()[-1]) for name in near)
    assert f"SMART weight 1 epsilon {epsilon:g}" in near
    for flags in (robustness.SMART, robustness.R3F):
        config, _ = parse_arguments([*flags, "--tasks", "sst"])
        assert config.smart_epsilon == epsilon and config.smart_weight == 1
    assert config.smart_steps == 0 and config.smart_noise_var == pytest.approx(epsilon**2)


def line_of(arm: str, seed: int, under: float, task: str = "sst") -> dict:
    """A line without its run: the main metric under attack at the middle ε is `under`."""
    metric = TASKS[task].main_metric
    more = {"squared_error": 2.0} if task == "sts" else {}
    levels = [{metric: level} | more for level in (0.5, 0.4, under, 0.05)]
    found = {"attack": levels, "noise": [{metric: 0.49} | more] * 4, metric: 0.5, "typos": levels}
    if task != "sts":
        bins = [[0, 0.0, 0.0]] * 8 + [[3, 0.85, 0.8], [1, 0.95, 1.0]]
        side = {"error": 0.1, "loss": 1.0, "bins": bins}
        found["calibration"] = {"before": side, "after": side, "temperatures": [1.5, 2.5]}
    if task == "sst":
        found["reviews"] = 0.75
    line = {"arm": arm, "tasks": [task], "seed": seed, "dev": {task: found}, "seconds": 60.0, "steps": 534}
    line["flags"] = ["--use_smart"] if arm.startswith("SMART") else []
    line |= {"name": f"{arm}-{task}-{seed}", "commit": "c", "processor": "p", "precision": "bf16"}
    return line


def long_line(arm: str, seed: int, train: float) -> dict:
    found = {"accuracy": 0.5, "train": {"accuracy": train}, "epochs": [0.4, 0.5]}
    line = line_of(arm + LONG, seed, 0.3) | {"train_loss": {"sst": [(50, 1.0), (534, 0.5)]}}
    return line | {"dev": {"sst": found}}


def written(folder: Path, lines: list[dict]) -> Question:
    question = dataclasses.replace(QUESTION, folder=folder)
    question.file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return question


def ten_pairs(gain: float) -> list[dict]:
    """Ten seeds; plain is right on .2 to .29 of the rows under attack, SMART on so much more."""
    levels = [(seed, 0.2 + i / 100) for i, seed in enumerate(SEEDS)]
    return [line_of("plain", *pair) for pair in levels] + [
        line_of("SMART", seed, level + gain + 0.001 * (-1) ** seed) for seed, level in levels
    ]


def test_the_tables_come_from_lines_alone(tmp_path):
    """Guards against a table that needs its runs, other seeds in a pair, and a figure of another ε."""
    lines = [*ten_pairs(0.05), line_of("R3F", 301, 0.31), line_of("R3F", 302, 0.32)]
    lines += [line_of(arm, 300, 0.3, task) for task in ("sts", "para") for arm in ("plain", "SMART")]
    lines += [long_line("plain", 300 + i, 0.9 - i / 10) for i in range(3)]
    lines += [long_line("SMART", 300 + i, 0.8 - i / 10) for i in (1, 2, 0)]  # .1 less than plain's same seed
    said = table(written(tmp_path, lines))
    (plain, ours, theirs), found = (
        re.findall(r"^\| sst \|.*", said, flags=re.MULTILINE)[:3],
        said.splitlines(),
    )
    assert plain == "| sst | plain | 10 | 0.500 | 0.490 | 0.400 | 0.245 | 0.050 |  |  |"
    assert ours.startswith("| sst | SMART | 10 | 0.500 | 0.490 | 0.400 | 0.295 | 0.050 | +0.050 (+0.04")
    assert ours.endswith("gain (p = 0.0020) |")
    assert "| +0.100 (+0.100 to +0.100) | exploratory |" in theirs  # .21 and .22 of plain's same seeds
    assert "+0.000 (one seed has no interval) | exploratory |" in said
    assert "| sts | plain | 1 | 0.500 (2.00) | 0.490 (2.00) | 0.400 (2.00) | 0.300 (2.00) |" in said
    assert "| sst | plain | 10 | 0.500 | 0.400 | 0.245 | 0.050 | 0.750 | 0.100 | 0.100 | 2.000 |" in found
    assert "| sts | plain | 1 | 0.500 | 0.400 | 0.300 | 0.050 |  |  |  |  |" in found
    none = "+0.000 (+0.000 to +0.000)"
    assert f"|  | R3F - plain | 2 | {none} | {none} | +0.100 (+0.100 to +0.100) | {none} | {none} |" in said
    assert "| plain | 3 | 0.800 | 0.500 | +0.300 (+0.052 to +0.548) |" in found
    less = "-0.100 (-0.100 to -0.100)"
    assert f"| SMART - plain | 3 | {less} | {none} | {less} |" in found


@pytest.mark.parametrize(
    ("gain", "said"), [(0.05, "**Smoother**"), (-0.05, "**Not smoother**"), (0.0, "**Not smoother**")]
)
def test_the_answer_follows_its_rule(tmp_path, gain, said):
    """Guards against a sentence that its numbers do not bear."""
    found = answer(written(tmp_path, ten_pairs(gain)))
    assert found.startswith(said) and f"{100 * gain:+.1f} points (95 % over 10 seeds:" in found
    assert found.endswith("in 3 times the forward passes.")
    assert f"ε = {EPSILONS[MIDDLE - 1]:g}) SMART has {24.5 + 100 * gain:.1f} %" in found


def test_there_is_no_verdict_before_the_last_seed(tmp_path):
    """Guards against a claim at the seed where chance looks best: nine pairs of +5 points would have it."""
    lines = [line for line in ten_pairs(0.05) if line["seed"] != 304]
    assert answer(written(tmp_path, lines)).startswith("**Smoother? 9 of 10 seeds so far**: under attack")
    assert re.search(r"\| sst \| SMART \| 9 .* \| 9 of 10 seeds so far \|", table(written(tmp_path, lines)))


def test_an_attack_that_finds_nothing_gives_no_answer(tmp_path):
    """Guards against a claim of smoothness from an attack that is no better than chance."""
    assert answer(written(tmp_path, [])) == ""
    assert "Nothing has been run yet" in table(written(tmp_path, []))
    with pytest.raises(UserError, match="no run yet"):
        plot(written(tmp_path, []))
    lines = ten_pairs(0.05)
    lines[3]["dev"]["sst"]["noise"] = lines[3]["dev"]["sst"]["attack"]
    assert (
        "**The attack is broken**" in answer(written(tmp_path, lines)) and lines[3]["name"] == "plain-sst-303"
    )
    assert "plain-sst-303." in answer(written(tmp_path, lines))


def test_the_pictures_come_from_lines_alone(tmp_path):
    """Guards against pictures that need the runs, or that are not as wide as the page."""
    lines = [*ten_pairs(0.05), line_of("R3F", 300, 0.3)]
    lines += [long_line(arm, 300, 0.9) for arm in ("plain", "SMART")]
    paths = plot(written(tmp_path, lines))
    assert [imread(path).shape[1] for path in paths] == [800] * 6
    assert {path.stem for path in paths} == {
        f"{name}-{theme}" for name in robustness.PICTURES for theme in ("light", "dark")
    }


@pytest.fixture
def small_data(tmp_path) -> Path:
    """The sample, with a few reviews."""
    folder = tmp_path / "data"
    shutil.copytree(SAMPLE, folder)
    rows = "".join(f"{i}\tr{i}\tI {'loved' if i % 2 else 'hated'} this film\t{i % 2}\n" for i in range(6))
    (folder / "ids-cfimdb-dev.csv").write_text("\tid\tsentence\tsentiment\n" + rows)
    return folder


def without_clock(found: dict) -> dict:
    return json.loads(json.dumps({**found["sst"], "measuring_seconds": 0}))  # as a line has it


def test_an_attack_that_is_broken_off_keeps_the_training(tmp_path, encoder, small_data, monkeypatch):
    """Guards against a training that is thrown away with its attack, and other numbers the second time."""
    flags = ("--model_name_or_path", encoder, "--batch_size", "4", "--precision", "fp32")
    run = Run("plain", ("sst",), 7, (*flags, "--max_eval_samples", "20"), steps=4, train_rows=20)
    question = dataclasses.replace(QUESTION, folder=tmp_path)
    folder = tmp_path / "work" / "robustness" / run.name
    with monkeypatch.context() as patched:

        def interrupted(*_):
            raise KeyboardInterrupt

        patched.setattr(robustness, "under_typos", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_grid(question, [run], small_data, tmp_path / "work")
    assert not question.lines() and runner.command(run, small_data, folder)[-1] == "--resume"
    expected, _ = robustness.outcome(run, small_data, folder)
    long, _ = robustness.outcome(dataclasses.replace(run, epochs=EPOCHS), small_data, folder)
    run_grid(question, [run], small_data, tmp_path / "work")
    (line,) = question.lines()
    found = line["dev"]["sst"]
    assert without_clock(line["dev"]) == without_clock(expected) and not folder.exists()
    assert len(found["attack"]) == len(found["noise"]) == 4 and found["attack"][0] == found["noise"][0]
    assert found["typos"][0]["accuracy"] == found["accuracy"] and 0 <= found["reviews"] <= 1
    assert long["sst"]["train"].keys() == {"accuracy", "loss"} and "attack" not in long["sst"]
    assert long["sst"]["epochs"] == [pytest.approx(found["accuracy"])]
    with np.load(question.predictions(run)) as kept:
        assert kept["sst attack"].shape == (4, 20) and kept["sst logits"].shape == (20, 5)
    assert table(question).count("| sst | plain | 1 |") == 2


def expected_calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """Straight from its definition: ten bins of confidence, |accuracy - confidence|, weighted by rows."""
    probabilities = np.exp(logits.astype(float) - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    confidence, right = probabilities.max(1), logits.argmax(1) == labels
    bins = np.ceil(10 * confidence)
    parts = [(bins == i, (bins == i).mean()) for i in np.unique(bins)]
    return sum(share * abs(right[rows].mean() - confidence[rows].mean()) for rows, share in parts)


def test_the_committed_predictions_give_the_committed_lines():
    """Guards against a line that is edited, or that is of other rows than the rest of its table."""
    rows: dict[str, np.ndarray] = {}
    for line in QUESTION.lines():
        ((name, found),) = line["dev"].items()
        with np.load(QUESTION.predictions(Run(line["arm"], (name,), line["seed"], (), 0))) as kept:
            arrays = dict(kept)
        metric = TASKS[name].main_metric
        if "attack" in found:
            labels = arrays[f"{name} attacked labels"]
            assert np.array_equal(rows.setdefault(name, labels), labels)
            for kind in ("attack", "noise"):
                for predicted, said in zip(arrays[f"{name} {kind}"], found[kind], strict=True):
                    measured = np.corrcoef(predicted, labels)[0, 1] if name == "sts" else predicted == labels
                    assert measured.mean() == pytest.approx(said[metric], abs=1e-6)
        if name == "sst" and "calibration" in found:
            error = expected_calibration_error(arrays["sst logits"], arrays["sst labels"])
            assert error == pytest.approx(found["calibration"]["before"]["error"], abs=1e-6)
            assert (arrays["sst"] == arrays["sst labels"]).mean() == pytest.approx(found["accuracy"])


def test_one_pair_of_seeds_has_no_verdict(tmp_path):
    """Guards against a first pair that is judged, or called exploratory: it waits for a second."""
    lines = [line_of("plain", 300, 0.2), line_of("SMART", 300, 0.3)]
    assert (
        table(written(tmp_path, lines)).count("| +0.100 (one seed has no interval) | 1 of 10 seeds so far |")
        == 1
    )


@pytest.mark.slow
def test_the_question_on_real_data(tmp_path, course_data):
    """Guards against a grid that fails on the course's files or with the real encoder: each task, tiny."""
    runs = [run.quick() for run in grid() if run.seed == SEEDS[0] and run.arm.startswith("SMART")]
    question = dataclasses.replace(QUESTION, folder=tmp_path)
    run_grid(question, runs, course_data, tmp_path / "work")
    found = {line["name"]: line["dev"][line["tasks"][0]] for line in question.lines()}
    assert list(found) == [f"SMART{name}-300" for name in ("-sst", "-sts", "-para", "_10_epochs-sst")]
    *short, long = found.values()
    assert all(len(each["attack"]) == 4 and each["attack"][0] == each["noise"][0] for each in short)
    assert short[1]["attack"][-1]["squared_error"] > short[1]["noise"][-1]["squared_error"]
    assert len(long["epochs"]) == EPOCHS and long["train"]["loss"] < 2 and len(plot(question)) == 6
