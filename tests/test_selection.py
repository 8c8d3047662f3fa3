"""Which scores choose the best epoch."""

import json

import numpy as np
import pytest
import torch

import evaluation
import multitask_classifier
from datasets import TokenizedDataset
from evaluation import Evaluation, evaluate
from helpers import FAST, SAMPLE
from support.progress import Progress
from tasks import TASKS


@pytest.fixture
def evaluated(monkeypatch):
    """Evaluates, on rows of one token with these labels, a model that gives these outputs."""

    def scores(outputs: dict[str, list], labels: dict[str, list], *settings) -> Evaluation:
        given = {task: torch.tensor(values).float() for task, values in outputs.items()}
        monkeypatch.setattr(evaluation, "model_outputs", lambda _, dataset, size: given[dataset.task.name])
        dev = []
        for task, values in labels.items():
            count = len(values)
            ids = [f"id{i}" for i in range(count)]
            tokens = (np.zeros(count, np.int32), np.arange(count + 1), np.ones(count, np.int64))
            dev.append(TokenizedDataset(TASKS[task], ids, torch.tensor(values).float(), *tokens, 0))
        return evaluate(torch.nn.Identity(), dev, 2, *settings)

    return scores


@pytest.mark.parametrize(
    ("trained", "selection"), [(["sst"], 0.75), (["sst", "sts"], (0.75 - 1) / 2), (["para"], (0.75 - 1) / 2)]
)
def test_untrained_heads_do_not_choose(evaluated, trained, selection):
    """Guards against the chance score of an untrained head (here a correlation of -1) moving the choice."""
    outputs = {"sst": np.eye(5)[[1, 2, 3, 0]], "sts": [[5], [3], [1], [0]]}
    result = evaluated(outputs, {"sst": [1, 2, 3, 4], "sts": [0, 2, 4, 5]}, trained)
    assert result.dev_mean == pytest.approx((0.75 - 1) / 2, abs=1e-6)
    assert result.selection_mean == pytest.approx(selection, abs=1e-6)
    assert result.main_scores == pytest.approx({"sst": 0.75, "sts": -1.0, "mean": selection})


@pytest.mark.parametrize(
    ("answers", "accuracy", "macro_f1"),
    [([1] * 100, 0.97, 194 / 197 / 2), ([1] * 91 + [-1] * 9, 0.94, (182 / 188 + 6 / 12) / 2)],
    ids=["constant", "model"],
)
def test_rare_classes_choose_by_macro_f1(evaluated, answers, accuracy, macro_f1):
    """Guards against 97 rows of a class and 3 of another, where a constant answer has the best accuracy.

    By hand: the constant has F1 194/197 and 0; a model with 6 rows wrong and all 3 rare ones right has F1
    182/188 and 6/12. A task without the metric keeps its main one.
    """
    outputs = {"para": [[answer] for answer in answers], "sts": [[1], [2], [3]]}
    labels = {"para": [1] * 97 + [0] * 3, "sts": [1, 2, 3]}
    default, by_f1 = (evaluated(outputs, labels, list(labels), name) for name in (None, "macro_f1"))
    assert default.selection_mean == pytest.approx((accuracy + 1) / 2)
    assert by_f1.selection_mean == pytest.approx((macro_f1 + 1) / 2)
    assert by_f1.dev_mean == default.dev_mean == pytest.approx((accuracy + 1) / 2)
    assert default.main_scores.keys() == {"para", "sts", "mean"}
    shown = {"para accuracy": accuracy, "para macro_f1": macro_f1, "sts": 1.0, "mean": (macro_f1 + 1) / 2}
    assert by_f1.main_scores == pytest.approx(shown)


def test_select_by_is_what_the_run_asks_for(main, tmp_path, monkeypatch, capsys):
    """Guards against a flag that no evaluation reads, a screen with one of the two metrics, and scores
    of an untrained head that look like results."""
    asked = []

    def noted(*arguments):
        asked.append(arguments[4])
        return evaluate(*arguments)

    monkeypatch.setattr(multitask_classifier, "evaluate", noted)
    flags = [*FAST, "--tasks", "sst", "--eval_tasks", "sst,sts", "--no_report", "--output_dir"]
    assert main(*flags, tmp_path / "run", "--select_by", "macro_f1") == 0
    said = capsys.readouterr().out
    assert asked == ["macro_f1"] and "best by macro_f1" in said and "chosen by macro_f1)" in said
    assert "\nsst accuracy " in said and "\nsst macro_f1 " in said
    assert main("--resume", "--output_dir", tmp_path / "run", "--select_by", "accuracy") == 2
    own = ["--train_file", SAMPLE / "sts-train.csv", "--text_column", "sentence1", "sentence2"]
    own += ["--label_column", "similarity", "--output_dir", tmp_path / "own", "--select_by", "macro_f1"]
    assert main(*FAST, *own) == 2 and not (tmp_path / "own").exists()
    assert "no metric of own" in capsys.readouterr().err
    dev = json.loads((tmp_path / "run" / "results.json").read_text())["dev"]
    assert dev["sts"]["trained"] is False and "trained" not in dev["sst"]


def scored(mean: float) -> Evaluation:
    return Evaluation({"sst": {"accuracy": mean}}, {}, {}, dev_mean=1 - mean, selection_mean=mean)


def test_progress_keeps_the_best_epoch_by_its_selection_mean(capsys):
    """Guards against the last epoch, or the one with the best dev_mean, that is kept instead of the best; and
    against the better role that is saved although the other was asked for."""
    progress = Progress()
    kept = []
    for progress.step, means in enumerate([(0.3, 0.2), (0.4, 0.5), (0.45, 0.5), (0.1, 0.2)], start=1):
        results = dict(zip(("student", "teacher"), map(scored, means), strict=True))
        kept.append(progress.take_scores(results, "best", f"{progress.step}"))
    assert kept == ["student", "teacher", None, None] and progress.stale == 2
    best = progress.best
    assert (best["best_step"], best["kept"], best["selection_mean"]) == (2, "teacher", 0.5)
    assert best["dev_student"] == {"sst": {"accuracy": 0.4}}
    assert "best so far: 0.500 after step 2" in capsys.readouterr().out
    for keep, better in {"student": "teacher", "teacher": "student"}.items():
        assert Progress().take_scores({keep: scored(0.2), better: scored(0.5)}, keep, "epoch") == keep
