"""Does a model know how often it is right? NLL, Brier score, accuracy where it is sure, temperature scaling.

    logits (rows,5), labels (rows,) ─ measures_of ─> every measure of SST

A temperature T divides the logits (Guo et al. 2017). It is fitted on one half of the rows and applied to the
other, and the other way round: no row is scored with a temperature that has seen it.
"""

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from datasets import Task
from tasks import TASKS, score

SST = TASKS["sst"]
NEUTRAL = 2  # the class in the middle
MEASURES = {  # by head of a column; the first decides
    "accuracy": "score",
    "macro F1": "macro_f1",
    "NLL": "nll",
    "NLL, one temperature": "nll_scaled",
    "Brier score": "brier",
    "surest half": "surest_half",
    "risk-coverage": "risk_coverage",
    "answers neutral": "neutral",
}
SECONDARY = ("macro F1", "NLL, one temperature", "Brier score", "surest half", "risk-coverage")


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


def measures_of(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Every measure of SST's logits (rows,5) with labels (rows,).

    nll_scaled: NLL after one temperature, fitted on half of the rows and applied to the other (Guo et al.
    2017). brier: sum over the classes, mean over the rows. surest_half: accuracy on the half of the rows with
    the largest probability. risk_coverage: area under the error among the surest rows (Geifman et al. 2019).
    neutral: share of rows that get the class in the middle.
    """
    probabilities = logits.softmax(-1).double()
    confidence, predicted = probabilities.max(-1)
    wrong = (predicted != labels).double()[confidence.argsort(descending=True, stable=True)]
    scaled, _ = cross_fitted(SST, logits, labels)
    one_hot = F.one_hot(labels.long(), logits.shape[1])
    return {
        **score(SST, predicted.numpy(), labels.numpy()),
        "nll": float(SST.loss(logits, labels)),
        "nll_scaled": float(SST.loss(scaled, labels)),
        "brier": float((probabilities - one_hot).square().sum(-1).mean()),
        "surest_half": 1 - float(wrong[: len(wrong) // 2].mean()),
        "risk_coverage": float((wrong.cumsum(0) / torch.arange(1, len(wrong) + 1)).mean()),
        "neutral": float((predicted == NEUTRAL).double().mean()),
    }
