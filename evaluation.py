"""Scores, predictions for whole data sets, and the course's prediction files.

Metrics take two equally long arrays, predictions and labels. Not handled: confidence intervals, calibration.
"""

import logging
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from datasets import Batch, Task, TokenizedDataset, evaluation_batches
from support import devices, parallel
from support.files import write_text

log = logging.getLogger("smart_bert")


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of predictions that equal the label. Raises ValueError if the shapes differ, which would be
    broadcast."""
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape:
        raise ValueError(f"accuracy: shapes {predictions.shape} and {labels.shape}")
    return float(np.mean(predictions == labels))


def macro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Unweighted mean of F1 over the classes that occur in predictions or labels."""
    from sklearn.metrics import (
        f1_score,
    )  # imported late: a second of start-up that most of a run doesn't need

    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Pearson correlation; 0, with a warning, where it is undefined."""
    return _correlation("pearsonr", predictions, labels)


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Spearman rank correlation; 0, with a warning, where it is undefined."""
    return _correlation("spearmanr", predictions, labels)


def _correlation(name: str, predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy import stats

    predictions, labels = (np.asarray(values, dtype=np.float64) for values in (predictions, labels))
    for what, values in {"predictions": predictions, "labels": labels}.items():
        if len(values) < 2 or np.ptp(values) == 0 or not np.isfinite(values).all():
            log.warning("correlation is undefined, the %s are constant or not finite; counted as 0", what)
            return 0.0
    return float(getattr(stats, name)(predictions, labels).statistic)


def outputs(
    logits_fn: Callable[[Batch], Tensor], dataset: TokenizedDataset, batch_size: int, device: torch.device
) -> Tensor:
    """The logits (rows,C) of every row, in file order, on the CPU. The caller puts the model in eval mode.

    Several processes take turns at the batches, and each returns the logits for all.
    """

    @torch.inference_mode()  # in the thread that does the work
    def logits_of(batch: Batch) -> Tensor:
        return logits_fn(batch.to(device)).float()

    batches = evaluation_batches(dataset, batch_size)[parallel.rank() :: parallel.size()]
    what, silent = f"predicting {dataset.task.name}", parallel.bar_disabled()
    with devices.mapper(device) as apply:
        parts = list(
            tqdm(apply(logits_of, batches), desc=what, total=len(batches), leave=False, disable=silent)
        )
    rows = np.concatenate([np.zeros(0, int), *(batch.rows for batch in batches)])
    mine = (
        torch.cat(parts).cpu() if parts else torch.zeros(0, dataset.task.num_outputs)
    )  # one copy from the device, at the end
    logits = torch.empty(len(dataset), dataset.task.num_outputs)
    for where, values in parallel.gather((rows, mine)):
        logits[torch.from_numpy(where)] = values
    return logits


def score(task: Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every metric of the task by name, the main one first."""
    return {name: metric(predictions, labels) for name, metric in task.metrics.items()}


class Evaluation(NamedTuple):
    """Dev scores of a model.

    scores: by task, then by metric, the main one first. predictions: by task, in file order.
    dev_mean: mean of the main metrics. selection_mean: mean over the tasks that the model was trained on, or
    dev_mean where none of these was evaluated. It picks the best epoch: the chance score of an untrained head
    must not move the choice.
    """

    scores: dict[str, dict]
    predictions: dict[str, np.ndarray]
    dev_mean: float
    selection_mean: float

    @property
    def main_scores(self) -> dict[str, float]:
        """Main metric of each task, and as `mean` the one that picks the best epoch."""
        main = {name: next(iter(values.values())) for name, values in self.scores.items()}
        return main | {"mean": self.selection_mean}


def model_outputs(model: nn.Module, dataset: TokenizedDataset, batch_size: int) -> Tensor:
    """Logits (rows,C) in file order, on the CPU, without dropout; the model is left in eval mode."""
    model.eval()

    def logits(batch: Batch) -> Tensor:
        return model(dataset.task.name, *batch.inputs)

    device = next(model.parameters()).device
    # a GPU has room for more rows without gradients, a CPU's caches have not
    rows = batch_size * (1 if device.type == "cpu" else 2)
    return outputs(logits, dataset, rows, device)


def predict(model: nn.Module, dataset: TokenizedDataset, batch_size: int) -> np.ndarray:
    """Predictions (rows,) in file order."""
    return dataset.task.predict(model_outputs(model, dataset, batch_size)).numpy()


def evaluate(
    model: nn.Module, datasets: list[TokenizedDataset], batch_size: int, trained: Sequence[str]
) -> Evaluation:
    """Scores and predictions on labelled data; tasks that the model was not trained on are marked."""
    scores, predictions = {}, {}
    for dataset in datasets:
        name = dataset.task.name
        predictions[name] = predict(model, dataset, batch_size)
        scores[name] = score(dataset.task, predictions[name], dataset.labels.numpy())
        if name not in trained:
            scores[name]["trained"] = False
    main = {dataset.task.name: scores[dataset.task.name][dataset.task.main_metric] for dataset in datasets}
    dev_mean = statistics.fmean(main.values())
    of_trained = [value for name, value in main.items() if name in trained]
    return Evaluation(scores, predictions, dev_mean, statistics.fmean(of_trained) if of_trained else dev_mean)


def write_predictions(path: str | Path, column: str, ids: Iterable[str], predictions: np.ndarray) -> None:
    """The course's prediction file: `id \\t COLUMN ` and then `ID , VALUE `, a line a row. Replaces the file
    at once or not at all.

    Raises UserError if it cannot be written.
    """
    rows = [f"{id} , {value!s} \n" for id, value in zip(ids, predictions, strict=True)]
    write_text(path, "".join([f"id \t {column} \n", *rows]))
