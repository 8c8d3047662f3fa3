"""The fourth and fifth comparisons: their measures, their rule and their grids."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch

from datasets import Example, read_examples
from experiments import all_data, records, wrong_labels
from experiments.calibration import measures_of
from experiments.inference import exact_p, holm
from experiments.runner import Run, draw_rows, write_examples
from experiments.tuned import SEEDS
from helpers import SAMPLE, run_program
from support.errors import UserError
from tasks import TASKS


def test_measures_by_hand():
    """Guards against a Brier score of one class, an error of the least sure rows, and a temperature that has
    seen the rows that it is applied to."""
    sure = torch.tensor([[4.0, 0, 0, 0, 0], [3.0, 0, 0, 0, 0], [0, 2.0, 0, 0, 0], [0, 0, 1.0, 0, 0]])
    found = measures_of(sure, torch.tensor([0.0, 1, 1, 2]))
    probabilities = sure.double().softmax(-1)
    errors = [((p - torch.eye(5)[k]) ** 2).sum() for p, k in zip(probabilities, (0, 1, 1, 2), strict=True)]
    assert found["accuracy"] == 0.75 and found["brier"] == pytest.approx(float(sum(errors)) / 4)
    assert found["surest_half"] == 0.5  # of the two surest rows the second is wrong
    assert found["risk_coverage"] == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert found["nll"] == pytest.approx(-float(probabilities[range(4), [0, 1, 1, 2]].log().mean()), rel=1e-5)
    many = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.multinomial((many / 3).softmax(-1), 1).squeeze(1).float()  # the right temperature is 3
    found = measures_of(many, labels)
    assert found["nll_scaled"] < found["nll"]
    assert found["nll_scaled"] == pytest.approx(float(TASKS["sst"].loss(many / 3, labels)), abs=0.02)


def test_p_of_all_signs_and_holm():
    """Guards against a p that depends on random draws, and secondary measures without a correction."""
    first, second = [0.0] * 4, [0.3, 0.1, 0.2, -0.1]
    sums = [abs(np.dot(signs, second)) for signs in itertools.product([1, -1], repeat=4)]
    assert exact_p(first, second) == np.mean([value >= 0.5 - 1e-9 for value in sums]) == 6 / 16
    assert exact_p([0.0] * 20, [0.01] * 20) == exact_p([0.01] * 20, [0.0] * 20) == 2 / 2**20
    assert exact_p([0.0, 0.0], [0.1, -0.1]) == 1
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm's own procedure


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_wrong_labels_are_neighbours_and_as_many_as_said(tmp_path, rate):
    """Guards against labels drawn anew, which are right by chance, and rows that the rate changes."""
    run = Run("a", ("sst",), 600, (), 1, 100, rate)
    clean = read_examples(draw_rows("sst", run, SAMPLE, tmp_path / "clean"), TASKS["sst"])
    whole = {
        row.id: row.label for row in read_examples(SAMPLE / TASKS["sst"].filename("train"), TASKS["sst"])
    }
    moved = [abs(row.label - whole[row.id]) for row in clean]
    assert len(clean) == 100 and moved.count(1) == round(100 * rate) and set(moved) <= {0, 1}
    right = draw_rows("sst", Run("a", ("sst",), 600, (), 1, 100), SAMPLE, tmp_path / "right")
    assert [row.id for row in read_examples(right, TASKS["sst"])] == [row.id for row in clean]


def test_the_winner_is_the_calmest_of_the_best():
    """Guards against a winner by a difference that is noise."""

    def lines(passes, rate, accuracy, nll):
        arm = f"plain {passes} passes lr {rate}"
        spread = zip((500, 501, 502), (-0.01, 0.0, 0.01), strict=True)
        return [
            {
                "arm": arm,
                "tasks": ["sst"],
                "seed": seed,
                "dev": {"sst": {"accuracy": accuracy + d, "nll": nll}},
            }
            for seed, d in spread
        ]

    found = []
    for passes in (2, 3, 6):
        for rate in ("5e-5", "1e-4", "2e-4"):
            found += lines(passes, rate, 0.4, 1.0)
    found += []
    for passes, rate, accuracy, nll in [
        (2, "1e-4", 0.5, 1.3),
        (3, "1e-4", 0.496, 1.2),
        (6, "2e-4", 0.49, 1.1),
    ]:
        arm = f"plain {passes} passes lr {rate}"
        found = [line for line in found if line["arm"] != arm] + lines(passes, rate, accuracy, nll)
    # a standard error is .01 / √3 = .0058: the third is outside
    assert all_data.STUDY.winner(found, "plain") == {"passes": 3, "lr": "1e-4"}


def test_grids_are_those_that_were_fixed():
    """Guards against a side with more settings than the other, and a comparison of unequal seeds."""
    for study, passes in (
        (all_data.STUDY, {"plain": (2, 3, 6), "SMART": (2, 3, 5)}),
        (wrong_labels.STUDY, None),
    ):
        tuning = study.tuning_grid()
        assert len(tuning) == 54 and len({run.name for run in tuning}) == 54
        assert passes is None or study.passes == passes
        grid = study.comparison_grid(
            {"plain": {"passes": 3, "lr": "1e-4"}, "SMART": {"passes": 2, "lr": "5e-5"}}
        )
        assert len({run.name for run in grid}) == len(grid)
        for wrong in study.comparison_wrong:
            for arm in ("plain", "SMART"):
                seeds = [run.seed for run in grid if run.arm == study.label(arm, wrong)]
                assert seeds == list(SEEDS) == list(range(600, 620))
    smart = next(
        run
        for run in all_data.STUDY.comparison_grid(
            {"plain": {"passes": 3, "lr": "1e-4"}, "SMART": {"passes": 2, "lr": "5e-5"}}
        )
        if run.arm == "SMART"
    )
    assert smart.steps == 2 * 267 and smart.flags[-1] == "5e-5"


def test_a_model_is_measured(tmp_path, encoder, no_course_data):
    """Guards against a measurement that fails after hours of training."""
    run = Run("SMART", ("sst",), 600, (), 2)
    folder = tmp_path / run.name
    flags = (
        "--tasks sst --use_smart --epochs 1 --steps_per_epoch 2 --batch_size 4 --no_report --precision fp32"
    )
    assert run_program(*flags.split(), "--model_name_or_path", encoder, "--output_dir", folder) == 0
    data = tmp_path / "data"
    shutil.copytree(SAMPLE, data)
    reviews = [Example("a", ("good " * 600,), 1.0), Example("b", ("bad",), 0.0), Example("c", ("fine",), 1.0)]
    for split in ("train", "dev"):
        write_examples(data / TASKS["cfimdb"].filename(split), TASKS["cfimdb"], reviews)
    dev, arrays = all_data.STUDY.outcome(run, data, folder)
    assert {"accuracy", "nll_scaled", "smart", "ascent_gain", "cfimdb_auroc", "under_attack"} <= dev[
        "sst"
    ].keys()
    assert {"cfimdb", "cfimdb labels", "sst attacked", "sst attacked labels"} <= arrays.keys()
    assert json.dumps(dev) and arrays["sst dev"].shape == (len(arrays["sst labels"]), 5)
    assert arrays["sst test"].shape[1] == 5


def test_a_record_is_checked_by_running_it(tmp_path, encoder, monkeypatch, capsys):
    """Guards against a script that believes what the record says, and a seed that does not reach the run."""
    size = "--tasks sst --max_train_samples 16 --max_eval_samples 8 --epochs 1 --steps_per_epoch 2"
    record = {
        "dev": {"sst": 0.0},
        "command": f"python multitask_classifier.py {size} --model_name_or_path {encoder}",
    }
    monkeypatch.setattr(records, "records", lambda: [record])
    records.check(1, SAMPLE, seed=3)
    assert "seed 3: 0." in capsys.readouterr().out
    record["dev"] = {"sst": 1.5}
    with pytest.raises(UserError, match="not reproduced"):
        records.check(1, SAMPLE, seed=3)
