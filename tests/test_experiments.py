"""The experiments: rows drawn by the seed, interrupted grids, statistics, tables from lines alone."""

import json
import math
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from scipy.special import softmax
from sklearn.metrics import f1_score, roc_auc_score

from config import parse_arguments
from datasets import read_examples
from experiments import (
    all_data,
    best,
    distance,
    pages,
    pictures,
    robustness,
    runner,
    smart,
    table1,
    tables,
    toy,
    unlabelled,
    wrong_labels,
)
from experiments.calibration import MEASURES
from experiments.inference import bootstrap, paired, verdict
from experiments.runner import Run, draw_rows, run_grid
from experiments.tables import HERE, Question
from helpers import SAMPLE
from support.errors import UserError
from tasks import TASKS

# ------------------------------------------------------------------------------------------- runner


@pytest.mark.parametrize("task", ["sst", "para", "sts"])
def test_a_seed_draws_the_rows(tmp_path, task):
    """Guards against arms of one seed that train on other rows, and rows that are changed on the way."""
    first = draw_rows(task, Run("a", (task,), 1, (), 1, 30), SAMPLE, tmp_path / "a").read_bytes()
    assert draw_rows(task, Run("a", (task,), 1, (), 1, 30), SAMPLE, tmp_path / "b").read_bytes() == first
    other = read_examples(
        draw_rows(task, Run("a", (task,), 2, (), 1, 30), SAMPLE, tmp_path / "c"), TASKS[task]
    )
    drawn = read_examples(
        draw_rows(task, Run("a", (task,), 1, (), 1, 30), SAMPLE, tmp_path / "d"), TASKS[task]
    )
    everything = set(read_examples(SAMPLE / TASKS[task].filename("train"), TASKS[task]))
    assert len(drawn) == len(set(drawn)) == 30 and set(drawn) <= everything and set(drawn) != set(other)


def grid_of(encoder: str) -> list[Run]:
    """Plain; SMART over two epochs, of which the last step's weights are scored."""
    flags = ("--model_name_or_path", encoder, "--batch_size", "4", "--precision", "fp32")
    more = (*flags, "--use_smart", "--epochs", "2", "--steps_per_epoch", "2")
    return [Run("plain", ("sst",), 7, flags, 4, 20), Run("SMART", ("sst",), 7, more, 4, 20)]


def without_clock(question: Question) -> list[dict]:
    clock = ("seconds", "commit")
    return [{name: value for name, value in line.items() if name not in clock} for line in question.lines()]


@pytest.mark.slow
def test_an_interrupted_grid_gives_the_same_lines(tmp_path, encoder, monkeypatch):
    """Guards against lines that are lost or doubled, and against a resumed run with other numbers."""
    grid = grid_of(encoder)
    whole = Question("whole", folder=tmp_path)
    run_grid(whole, grid, SAMPLE, tmp_path / "work")

    broken = Question("broken", folder=tmp_path)
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
    for line in whole.lines():
        ours, theirs = (question.load_predictions(line, "sst")[0] for question in (broken, whole))
        assert np.array_equal(ours, theirs) and len(ours) == 50
        assert line["precision"] == "fp32" and line["dev"]["sst"]["loss"] > 0 and line["train_rows"] == 20


def test_lines_of_another_commit(tmp_path):
    """Guards against a comparison of two programs."""
    question = Question("mixed", folder=tmp_path)
    question.file.write_text('{"name": "plain-sst-0", "commit": "older"}\n')
    with pytest.raises(UserError, match="of commit older"):
        run_grid(question, [Run("plain", ("sst",), 0, (), 4)], SAMPLE, tmp_path)


# --------------------------------------------------------------------------------------- statistics


def test_paired_differences_by_hand():
    """Guards against an interval of unpaired runs: the differences .1 and .3 give .2 ± 12.706 x .1."""
    found = paired([0.5, 0.6], [0.6, 0.9])
    assert found == pytest.approx((0.2, 0.2 - 1.2706205, 0.2 + 1.2706205), abs=1e-6)
    assert paired([1.0, 2.0], [2.0, 3.0]) == (1.0, 1.0, 1.0)
    one, *ends = paired([1.0], [2.0])
    assert one == 1.0 and all(math.isnan(end) for end in ends)


def test_the_intervals_cover_what_they_should():
    """Guards against intervals that are too narrow, or for these dev rows only: 95 % must hold the truth."""
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        first = random.normal(0, 1, 10)
        _, low, high = paired(first, first + random.normal(0.3, 0.5, 10))
        hits += low <= 0.3 <= high
    assert abs(hits / 2000 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 2000)
    hits = 0
    for _ in range(150):
        noise = random.normal(0, 0.4, 150) + random.normal(0, 0.1, (12, 1))  # of rows, of seeds
        first = random.normal(0, 0.3, (12, 150))
        low, high = bootstrap(first, first + 0.2 + noise, draws=400)
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
    zeros = np.zeros(len(differences))
    assert verdict(zeros, differences).startswith(said)
    if said == "gain":  # by the stricter rule other dev rows count, too
        assert verdict(zeros, differences, (0.001, 0.06)).startswith("gain")
        assert verdict(zeros, differences, (-0.001, 0.06)).startswith("not decided")
        assert verdict(zeros, differences, (-0.001, 0.009)).startswith("no gain")


# ------------------------------------------------------------------------------------------- tables


def test_a_table_by_hand():
    """Guards against a gain over another seed, and one in the wrong unit: .02 and .04 are 3 points, the
    interval of two pairs is 12.7062 of their standard error, .01. Seed 402 has no plain."""
    scores = [("plain", 400, 0.40), ("plain", 401, 0.30)]
    scores += [("SMART", 402, 0.90), ("SMART", 401, 0.34), ("SMART", 400, 0.42)]
    lines = [
        {"arm": arm, "seed": seed, "tasks": ["sst"], "dev": {"sst": {"accuracy": score}}}
        for arm, seed, score in scores
    ]
    plain, ours = (tables.of_arm(lines, arm) for arm in ("plain", "SMART"))
    passes = tables.cost_column(lambda line: 9 if line["arm"] == "SMART" else 3)
    columns = [*tables.scores({"accuracy": "score", "not measured": "loss"}), passes]
    rows = [tables.beside(("plain",), plain), tables.beside(("SMART",), ours, plain)]
    assert tables.table(("arm",), rows, columns).splitlines() == [
        "| arm | seeds | accuracy | not measured | cost |",
        "|---|---|---|---|---|",
        "| plain | 2 | 0.3500 |  | 1 |",
        "| SMART | 2 | 0.3800, +0.0300 (-0.0971 to +0.1571) |  | 3 |",
    ]
    said = tables.finding("gain", "by hand", rows[1], lambda line: 1, {"accuracy": "score"}).sentence()
    assert said == "**Gain** by hand: accuracy +3.00 (-9.71 to +15.71), cost ×1"


def test_a_loss_curve_by_hand():
    """Guards against a last point that is the loss of one batch, and a task in turns that looks noisier than
    one alone: 50 steps of a task make a point in both."""
    alone = [(50, 3.0), (100, 2.0), (102, 9.0)]
    assert table1.smoothed(alone, 1) == ([50, 100], [3.0, 2.0])
    turns = [(50, 3.0), (100, 2.0), (150, 1.0), (200, 5.0), (202, 9.0)]
    assert table1.smoothed(turns, 3) == ([50], [2.0])


# --------------------------------------------------------------------------------- what is committed

KEPT = sorted(path.name for path in (HERE / "predictions").iterdir() if path.is_dir())


def measure(task: str, predicted: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy or Pearson correlation, by numpy."""
    found = np.corrcoef(predicted, labels)[0, 1] if task == "sts" else predicted == labels
    return float(np.mean(found))


def by_hand(task: str, arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """Every measure that predictions and logits give, by numpy and scikit-learn."""
    labels = arrays[f"{task} labels"]
    logits = arrays.get(f"{task} dev", arrays.get(f"{task} logits"))
    predicted = arrays[task] if task in arrays else logits.argmax(1)
    found = {TASKS[task].main_metric: measure(task, predicted, labels)}
    if task == "sts":
        return found | {"loss": np.square(predicted.astype(float) - labels).mean()}
    found["macro_f1"] = f1_score(labels, predicted, average="macro")
    if logits is None:
        return found
    if logits.shape[1] == 1:
        return found | {"loss": np.logaddexp(0, (1 - 2 * labels) * logits[:, 0].astype(float)).mean()}
    probabilities = softmax(logits.astype(float), axis=1)
    right = probabilities[np.arange(len(labels)), labels.astype(int)]
    surest = (predicted == labels)[np.argsort(-probabilities.max(1), kind="stable")]
    found["loss"] = found["nll"] = -np.log(right).mean()
    found["brier"] = (np.square(probabilities).sum(1) - 2 * right + 1).mean()
    found["neutral"] = (predicted == 2).mean()
    found["surest_half"] = surest[: len(surest) - len(surest) // 2 - len(surest) % 2].mean()
    found["risk_coverage"] = (np.cumsum(~surest) / np.arange(1, len(surest) + 1)).mean()
    if "sst attacked" in arrays:
        found["under_attack"] = measure("sst", arrays["sst attacked"], arrays["sst attacked labels"])
    if "cfimdb labels" in arrays:
        found["cfimdb_auroc"] = roc_auc_score(arrays["cfimdb labels"], arrays["cfimdb"])
    return found


@pytest.mark.parametrize("name", KEPT)
def test_the_committed_predictions_give_the_committed_lines(name):
    """Guards against a line that is edited, predictions that are another run's, lines of two programs in one
    table, arms of a seed on two types of processor, an attack on other rows than the rest of its table, and
    a claim of smoothness from an attack that is no better than noise."""
    question = Question(name)
    lines = question.lines()
    assert len({line["name"] for line in lines}) == len(lines) > 0
    assert len({line["commit"] for line in lines}) == 1
    processors: dict[tuple, str] = {}
    attacked_rows: dict[str, np.ndarray] = {}
    if name == "robustness":
        lines = robustness.with_scores(lines)
    for line in lines:
        key = (tuple(line["tasks"]), line["seed"], line.get("train_rows"))
        processor = line["processor"]
        assert processor in line["arm"] or processors.setdefault(key, processor) == processor
        with np.load(question.predictions(line["name"])) as kept:
            arrays = dict(kept)
        for task, said in line["dev"].items():
            metric = TASKS[task].main_metric
            labels = arrays[f"{task} labels"]
            found = by_hand(task, arrays)
            known = found.keys() & said.keys()
            assert metric in known and (task == "sts" or "macro_f1" in known)
            assert {key: said[key] for key in known} == pytest.approx(
                {key: found[key] for key in known},
                abs=1e-5,  # equal confidences in fp32
            )
            if "teacher" in said:
                found = by_hand(task, {task: arrays[f"{task} teacher"], f"{task} labels": labels})
                assert said["teacher"] | found == pytest.approx(said["teacher"], abs=1e-6)
            if "attack" in said:
                rows = arrays[f"{task} attacked labels"]
                assert np.array_equal(attacked_rows.setdefault(task, rows), rows)
                for kind in ("attack", "noise"):
                    for place, (predicted, level) in enumerate(
                        zip(arrays[f"{task} {kind}"], said[kind], strict=True)
                    ):
                        assert measure(task, predicted, rows) == pytest.approx(level[metric], abs=1e-6)
                        assert said[f"{kind} {place}"] == pytest.approx(level[metric], abs=1e-6)
                levels = zip(said["attack"][1:], said["noise"][1:], strict=True)
                assert all(attack[metric] < noise[metric] for attack, noise in levels)
            if task == "sst" and "calibration" in said:
                error = calibration_error(arrays["sst logits"], labels)
                assert error == pytest.approx(said["calibration"]["before"]["error"], abs=1e-6)


def calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """Straight from its definition: ten bins of confidence, |accuracy - confidence|, weighted by rows."""
    probabilities = np.exp(logits.astype(float) - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    confidence, right = probabilities.max(1), logits.argmax(1) == labels
    bins = np.ceil(10 * confidence)
    parts = [(bins == i, (bins == i).mean()) for i in np.unique(bins)]
    return sum(share * abs(right[rows].mean() - confidence[rows].mean()) for rows, share in parts)


DRAWN = [
    (question, each)
    for question in pages.QUESTIONS.values()
    for each in question.pictures
    if each.draw and question.lines()
]


@pytest.mark.parametrize(("question", "picture"), DRAWN, ids=[picture.name for _, picture in DRAWN])
def test_the_pictures_come_from_lines_alone(question, picture, tmp_path):
    """Guards against a picture that needs its runs, or that is not as wide as the page."""
    for path in pictures.save(picture, partial(picture.draw, lines=question.lines()), tmp_path):
        assert imread(path).shape == imread(HERE / "pictures" / path.name).shape
        assert imread(path).shape[1] == 800


def test_the_attacks_picture_is_to_scale_and_has_the_constant_answer():
    """Guards against steps of ε that look alike and are not, arms that only colour tells apart, and a model
    that looks right where it is no better than one answer for all rows."""
    figure = Figure()
    robustness.curves(figure, robustness.QUESTION.lines())
    (axes,) = figure.axes
    assert axes.get_xticks() == pytest.approx([0, 0.004, 0.008, 0.016])
    # by hand: 80 of the 300 rows are "negative", the commonest label
    assert [line.get_ydata()[0] for line in axes.lines if "constant" in str(line.get_label())] == [80 / 300]
    markers = {container[0].get_marker() for container in axes.containers}
    assert len(markers) == 3


def test_the_toy_gives_its_committed_lines():
    """Guards against a picture and a table of another program than today's."""
    kept = {line.pop("training"): line for line in toy.QUESTION.lines()}
    found = {name: toy.measure(toy.train(weight)) for name, weight in toy.WEIGHTS.items()}
    for name, values in found.items():  # another processor moved two of the 100 points
        assert values == pytest.approx(kept[name], abs=0.03)
    assert found["with R_s"]["changed"] < found["plain"]["changed"]
    assert kept["with R_s"]["changed"] < kept["plain"]["changed"]


def test_how_far_the_nearest_word_is():
    """Guards against a committed distance that is typed, or of another encoder."""
    (line,) = distance.QUESTION.lines()
    assert distance.nearest(*distance.model_and_rows(), 2) == pytest.approx(line["nearest"][:2], abs=1e-4)
    assert len(line["nearest"]) == 200


# --------------------------------------------------------------------------------- single questions


@pytest.mark.parametrize("asked", [all_data.STUDY, wrong_labels.STUDY], ids=lambda asked: asked.name)
def test_a_tuned_comparison_is_shown_once_it_has_lines(asked, monkeypatch, tmp_path):
    """Guards against a page that fails after days of runs, and a gain over plain with other labels: SMART is
    one point ahead, and a wrong label costs both a tenth."""
    winners = {"plain": {"passes": 3, "lr": "1e-4"}, "SMART": {"passes": 2, "lr": "1e-4"}}
    grids = {"tuning": asked.tuning_grid(), "comparison": asked.comparison_grid(winners)}

    def lines(question):
        found = []
        for run in grids[question.name.removeprefix(f"{asked.name}_")]:
            accuracy = 0.4 + run.seed / 10_000 - run.wrong_labels / 3 + 0.01 * ("SMART" in run.arm)
            dev = dict.fromkeys(MEASURES.values(), 0.5) | {"accuracy": accuracy}
            line = {"dev": {"sst": dev}, "seconds": 60, "precision": "bf16", "processor": "", "commit": "abc"}
            found.append(asdict(run) | line)
        return found

    study = asked.study
    assert study.comparison.page().startswith("Not run yet: `python -m experiments.") and not study.finding()
    monkeypatch.setattr(Question, "lines", lines)
    monkeypatch.setattr(tables, "over_rows", lambda question, row: (0.005, 0.015))
    whole, grids["comparison"] = grids["comparison"], grids["comparison"][:30]
    assert "| unfinished |" in study.comparison.page() and not study.finding()
    grids["comparison"] = whole
    page = study.comparison.page()
    assert f"| {asked.judged} | 20 | 0." in page and "+0.0100 (+0.0100 to +0.0100)" in page
    assert "gain (p < 0.0001)" in page and "p by Holm: macro F1 1.0000" in page
    found = study.finding()
    assert (found.verdict, found.gains["accuracy"], found.price) == ("gain", "+1.00 (+1.00 to +1.00)", "2")
    assert study.tuning.page().count("\n| ") == 18
    for question in (study.tuning, study.comparison):
        (picture,) = question.pictures
        pictures.save(picture, partial(picture.draw, lines=question.lines()), tmp_path)


@pytest.mark.parametrize("asked", [smart.STUDY, unlabelled.STUDY], ids=lambda asked: asked.name)
def test_both_sides_were_tuned_alike(asked):
    """Guards against a side that was tuned on more settings, or on the seeds that decide, a winner that was
    not the best of its side, and a comparison of other settings than the winners'."""
    tuned, compared = asked.tuning.lines(), asked.comparison.lines()
    winners = json.loads((HERE / f"{asked.name}_winners.json").read_text())
    assert not {line["seed"] for line in tuned} & {line["seed"] for line in compared}
    seeds = len({line["seed"] for line in tuned})
    for side in ("plain", asked.judged):
        kept = winners[f"{side} means"]
        means = {arm: np.mean([*map(tables.of("score"), tables.of_arm(tuned, arm))]) for arm in kept}
        assert means == pytest.approx(kept, abs=1e-6) and len(means) == 9
        assert max(means, key=means.get) == winners[side]
        runs = tables.of_arm(tuned, winners[side])
        assert len(runs) == seeds
        for line in tables.of_arm(compared, side):
            assert (line["flags"], line["steps"]) == (runs[0]["flags"], runs[0]["steps"])


def test_smarts_epsilon_is_the_largest_that_cost_no_accuracy():
    """Guards against a setting that was picked for what the attack says of it."""
    means = json.loads((HERE / "smart_winners.json").read_text())["SMART means"]
    near = [name for name, mean in means.items() if mean > max(means.values()) - 0.001]
    epsilon = max(float(name.split()[-1]) for name in near)
    assert f"SMART weight 1 epsilon {epsilon:g}" in near
    for line in tables.of_arm(robustness.QUESTION.lines(), "SMART", "sst"):
        assert line["flags"][line["flags"].index("--smart_epsilon") + 1] == f"{epsilon:g}"


def test_what_the_search_kept_and_recommends():
    """Guards against a trial that is called better than it was, and a command that trains another model than
    was scored."""
    scores = dict(zip(best.TRIALS, [0.5, 0.6, 0.55, 0.7, 0.6, 0.4, 0.65, 0.7, 0.1, 0.2, 0.6], strict=True))
    scores |= dict(zip(best.FINALS, [0.65, 0.8, 0.75], strict=True))
    lines = []
    for line in best.all_lines():
        dev = {task: {TASKS[task].main_metric: scores[line["arm"]]} for task in tables.NAMES}
        lines += [line | {"dev": dev}] if line["seed"] == 0 else []
    marks = dict.fromkeys(["base", "learning rate 5e-5", "16 rows a batch"], "kept")
    assert best.marks(lines) == marks | {"winner, two passes": "**highest**"}
    line = best.recommended_line(best.all_lines())
    config, _ = parse_arguments(best.command_of(line).split()[2:])
    ours, _ = parse_arguments(["--keep", "student", "--tasks", "sst,para,sts", *line["flags"]])
    assert config.steps_per_epoch == line["steps"] and config.epochs == line["epochs"] == 1
    names = ("tasks", "lr", "schedule", "batch_size", "pooling", "use_smart", "keep", "precision")
    assert all(getattr(config, name) == getattr(ours, name) for name in names)
