"""Which scores choose the best epoch."""

import numpy as np
import pytest
import torch

import evaluation
from datasets import TokenizedDataset
from evaluation import Evaluation, evaluate
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
