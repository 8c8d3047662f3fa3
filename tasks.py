"""The table of tasks, a record each: how a task is read, learned, scored and written.

Adding a task is adding a record.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import evaluation
import mysmartloss
from datasets import Task, class_label, score_label


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (B,C), class numbers (B,) -> scalar."""
    return F.cross_entropy(logits.float(), labels.long())


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (B,1), 0 or 1 (B,) -> scalar."""
    return F.binary_cross_entropy_with_logits(logits.float().squeeze(-1), labels)


def mean_squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Outputs (B,1), scores (B,) -> scalar."""
    return F.mse_loss(logits.float().squeeze(-1), labels)


def largest_logit(logits: Tensor) -> Tensor:
    """Logits (B,C) -> class numbers (B,)."""
    return logits.argmax(-1)


def positive_logit(logits: Tensor) -> Tensor:
    """Logits (B,1) -> 0.0 or 1.0 (B,): 1 where the probability is above one half."""
    return (logits.squeeze(-1) > 0).float()


def softmax_probabilities(logits: Tensor) -> Tensor:
    """Logits (B,C) -> the probability of each class (B,C), in fp32."""
    return logits.float().softmax(-1)


def sigmoid_probabilities(logits: Tensor) -> Tensor:
    """Logits (B,1) -> the probabilities of 0 and of 1 (B,2), in fp32."""
    return torch.cat([-logits, logits], dim=-1).float().sigmoid()


def cosines_themselves(train: np.ndarray, labels: np.ndarray, dev: np.ndarray) -> np.ndarray:
    """The cosines as scores: a correlation does not look at their range."""
    return dev


def cosines_above_threshold(train: np.ndarray, labels: np.ndarray, dev: np.ndarray) -> np.ndarray:
    """1 where the cosine is above the threshold that is right for most of the training pairs, else 0."""
    order = np.argsort(train)
    cosines, positive = train[order], labels[order] == 1
    # with the threshold below the i-th cosine: negatives before it, positives from it on
    right = np.concatenate([[0], np.cumsum(~positive)]) + np.concatenate(
        [np.cumsum(positive[::-1])[::-1], [0]]
    )
    between = np.concatenate([[-np.inf], (cosines[1:] + cosines[:-1]) / 2, [np.inf]])
    return (dev > between[right.argmax()]).astype(np.float32)


def output_itself(logits: Tensor) -> Tensor:
    """Outputs (B,1) -> scores (B,)."""
    return logits.squeeze(-1).float()


CLASS_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": evaluation.accuracy,
    "macro_f1": evaluation.macro_f1,
}
PAIR = ("sentence1", "sentence2")
RECORDS = (
    Task(
        name="sst",
        file_stem="ids-sst",
        text_columns=("sentence",),
        label_column="sentiment",
        parse_label=class_label(5),
        label_names=("very negative", "negative", "neutral", "positive", "very positive"),
        num_outputs=5,
        loss=cross_entropy,
        divergence=mysmartloss.sym_kl_loss,
        predict=largest_logit,
        metrics=CLASS_METRICS,
        probabilities=softmax_probabilities,
        prediction_column="Predicted_Sentiment",
    ),
    Task(
        name="para",
        file_stem="quora",
        text_columns=PAIR,
        label_column="is_duplicate",
        parse_label=class_label(2),
        label_names=("not a paraphrase", "paraphrase"),
        num_outputs=1,
        loss=binary_cross_entropy,
        divergence=mysmartloss.bernoulli_sym_kl_loss,
        predict=positive_logit,
        metrics=CLASS_METRICS,
        probabilities=sigmoid_probabilities,
        prediction_column="Predicted_Is_Paraphrase",
        from_cosines=cosines_above_threshold,
        alike_label=1.0,
    ),
    Task(
        name="sts",
        file_stem="sts",
        text_columns=PAIR,
        label_column="similarity",
        parse_label=score_label(0, 5),
        num_outputs=1,
        loss=mean_squared_error,
        divergence=mysmartloss.squared_error,
        predict=output_itself,
        metrics={"pearson": evaluation.pearson, "spearman": evaluation.spearman},
        prediction_column="Predicted_Similiary",  # spelled as the course spells it
        first_output=2.5,
        from_cosines=cosines_themselves,
        cosine_scale=5.0,
    ),
    Task(
        name="cfimdb",
        file_stem="ids-cfimdb",
        text_columns=("sentence",),
        label_column="sentiment",
        parse_label=class_label(2),
        label_names=("negative", "positive"),
        num_outputs=2,
        loss=cross_entropy,
        divergence=mysmartloss.sym_kl_loss,
        predict=largest_logit,
        metrics=CLASS_METRICS,
        probabilities=softmax_probabilities,
        prediction_column="Predicted_Sentiment",
    ),
)
TASKS = {task.name: task for task in RECORDS}
