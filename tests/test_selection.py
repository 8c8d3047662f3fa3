"""Which scores choose the best epoch."""

import numpy as np
import pytest
import torch

import evaluation
import multitask_classifier
from datasets import TokenizedDataset
from evaluation import Evaluation, evaluate
from helpers import FAST
from support.progress import Progress
from tasks import TASKS


def labelled(task: str, labels: list[float]) -> TokenizedDataset:
    """Rows of one token with these labels."""
    count = len(labels)
    tokens = np.zeros(count, np.int32)
    lengths = np.ones(count, np.int64)
    ids = [f"id{i}" for i in range(count)]
    return TokenizedDataset(TASKS[task], ids, torch.tensor(labels), tokens, np.arange(count + 1), lengths, 0)


@pytest.mark.parametrize(
    ("trained", "selection"), [(["sst"], 0.75), (["sst", "sts"], (0.75 - 1) / 2), (["para"], (0.75 - 1) / 2)]
)
def test_untrained_heads_do_not_choose(monkeypatch, trained, selection):
    """Guards against the chance score of an untrained head (here a correlation of -1) moving the choice."""
    given = {"sst": torch.eye(5)[[1, 2, 3, 0]], "sts": torch.tensor([[5.0], [3.0], [1.0], [0.0]])}
    monkeypatch.setattr(
        evaluation, "model_outputs", lambda model, dataset, batch_size: given[dataset.task.name]
    )
    dev = [labelled("sst", [1, 2, 3, 4]), labelled("sts", [0, 2, 4, 5])]
    result = evaluate(torch.nn.Identity(), dev, 2, trained)
    assert result.dev_mean == pytest.approx((0.75 - 1) / 2, abs=1e-6)
    assert result.selection_mean == pytest.approx(selection, abs=1e-6)
    assert result.main_scores == pytest.approx({"sst": 0.75, "sts": -1.0, "mean": selection})


def test_rare_classes_choose_by_macro_f1(monkeypatch):
    """Guards against 97 rows of a class and 3 of another, where a constant answer has the best accuracy.

    By hand: the constant has F1 194/197 and 0; a model with 6 rows wrong and all 3 rare ones right has F1
    182/188 and 6/12. A task without the metric keeps its main one.
    """
    labels = [1.0] * 97 + [0.0] * 3
    constant, model = torch.ones(100), torch.tensor([1.0] * 91 + [0.0] * 9)
    assert torch.equal(model != torch.tensor(labels), torch.arange(100).ge(91) & torch.arange(100).lt(97))
    results = {}
    for name, answers in {"constant": constant, "model": model}.items():
        given = {"para": 2 * answers[:, None] - 1, "sts": torch.tensor([[1.0], [2.0], [3.0]])}
        monkeypatch.setattr(
            evaluation, "model_outputs", lambda _, dataset, size, g=given: g[dataset.task.name]
        )
        dev = [labelled("para", labels), labelled("sts", [1, 2, 3])]
        results[name] = [
            evaluate(torch.nn.Identity(), dev, 2, ["para", "sts"], select_by)
            for select_by in (None, "macro_f1")
        ]
    by_hand = {"constant": (0.97, 194 / 197 / 2), "model": (0.94, (182 / 188 + 6 / 12) / 2)}
    for name, (accuracy, macro_f1) in by_hand.items():
        default, by_f1 = results[name]
        assert default.selection_mean == pytest.approx((accuracy + 1) / 2)
        assert by_f1.selection_mean == pytest.approx((macro_f1 + 1) / 2)
        assert by_f1.dev_mean == default.dev_mean == pytest.approx((accuracy + 1) / 2)
        assert default.main_scores.keys() == {"para", "sts", "mean"}
        shown = {"para accuracy": accuracy, "para macro_f1": macro_f1, "sts": 1.0, "mean": (macro_f1 + 1) / 2}
        assert by_f1.main_scores == pytest.approx(shown)


def test_select_by_is_what_the_run_asks_for(main, tmp_path, monkeypatch, capsys):
    """Guards against a flag that no evaluation reads, a screen with one of the two metrics, and a metric of
    no task."""
    asked = []

    def noted(*arguments):
        asked.append(arguments[4])
        return evaluate(*arguments)

    monkeypatch.setattr(multitask_classifier, "evaluate", noted)
    flags = [*FAST, "--tasks", "sst,sts", "--no_report", "--output_dir", tmp_path / "run"]
    assert main(*flags, "--select_by", "macro_f1") == 0
    said = capsys.readouterr().out
    assert asked == ["macro_f1"] and "best by macro_f1" in said and "chosen by macro_f1)" in said
    assert "\nsst accuracy " in said and "\nsst macro_f1 " in said
    assert main(*flags, "--tasks", "sts", "--select_by", "macro_f1", "--overwrite_output_dir") == 2
    assert "--select_by macro_f1: no metric of sts\n" in capsys.readouterr().err
    assert main("--resume", "--output_dir", tmp_path / "run", "--select_by", "accuracy") == 2


def scored(mean: float) -> Evaluation:
    return Evaluation({"sst": {"accuracy": mean}}, {}, {}, dev_mean=1 - mean, selection_mean=mean)


def test_progress_keeps_the_best_epoch_by_its_selection_mean(capsys):
    """Guards against the last epoch, or the one with the best dev_mean, that is kept in place of the best."""
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


@pytest.mark.parametrize("keep", ["student", "teacher"])
def test_keep_names_the_role(keep):
    """Guards against the better of the two that is saved although the other was asked for."""
    results = {"student": scored(0.2 if keep == "student" else 0.9), "teacher": scored(0.5)}
    assert Progress().take_scores(results, keep, "epoch") == keep
