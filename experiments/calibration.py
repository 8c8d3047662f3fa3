"""Does a model know how often it is right? Expected calibration error, before and after temperature scaling.

    logits (rows,C), labels (rows,) ─ calibration ─> error, loss, temperature, bins of a reliability diagram

A temperature T divides the logits (Guo et al. 2017). It is fitted on one half of the rows and applied to the
other, and the other way round: no row is scored with a temperature that has seen it.
"""

from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from datasets import Task

BINS = 10  # of the confidence, the largest probability of a row


def fitted_temperature(task: Task, logits: Tensor, labels: Tensor) -> float:
    """The T between 1/20 and 20 with the smallest loss of logits / T: (rows,C), (rows,) -> T."""

    def loss(log_t: float) -> float:
        return float(task.loss(logits / np.exp(log_t), labels))

    limit = float(np.log(20))
    return float(np.exp(minimize_scalar(loss, bounds=(-limit, limit), method="bounded").x))


def cross_fitted(task: Task, logits: Tensor, labels: Tensor) -> tuple[Tensor, list[float]]:
    """Logits / T (rows,C), each half by the T of the other, and both T. The halves are the same for all."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    scaled = torch.empty_like(logits)
    temperatures = []
    for fitted, scored in (halves, halves[::-1]):
        temperatures.append(fitted_temperature(task, logits[fitted], labels[fitted]))
        scaled[scored] = logits[scored] / temperatures[-1]
    return scaled, temperatures


def reliability(probabilities: Tensor, labels: Tensor) -> list[tuple[int, float, float]]:
    """Of each bin of confidence its rows, their mean confidence and accuracy: (rows,C), (rows,) -> BINS."""
    confidence, predicted = probabilities.max(-1)
    right = (predicted == labels).double()
    which = (confidence * BINS).long().clamp_max(BINS - 1)
    bins = []
    for number in range(BINS):
        inside = which == number
        count = int(inside.sum())
        means = [float(values[inside].mean()) if count else 0.0 for values in (confidence, right)]
        bins.append((count, round(means[0], 5), round(means[1], 5)))
    return bins


def described(task: Task, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Expected calibration error, loss (negative log-likelihood) and bins of logits (rows,C)."""
    # imported here, because it is of requirements-dev.txt, and tables are made without it
    from torchmetrics.functional.classification import multiclass_calibration_error

    assert task.probabilities is not None, "a regression has no probabilities"
    probabilities = task.probabilities(logits)
    error = multiclass_calibration_error(probabilities, labels.long(), probabilities.shape[1], n_bins=BINS)
    loss = float(task.loss(logits, labels))
    return {"error": float(error), "loss": loss, "bins": reliability(probabilities, labels)}


def calibration(task: Task, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """What is known of the calibration before and after temperature scaling, and both temperatures."""
    scaled, temperatures = cross_fitted(task, logits, labels)
    return {
        "before": described(task, logits, labels),
        "after": described(task, scaled, labels),
        "temperatures": temperatures,
    }
