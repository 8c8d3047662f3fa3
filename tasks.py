"""The table of tasks, a record each: how a task is read, learned, scored and written.

Adding a task is adding a record.
"""

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


CLASSES = {
    "loss": cross_entropy,
    "divergence": mysmartloss.sym_kl_loss,
    "predict": lambda logits: logits.argmax(-1),
    "metrics": {"accuracy": evaluation.accuracy, "macro_f1": evaluation.macro_f1},
}
SENTIMENT = {
    "text_columns": ("sentence",),
    "label_column": "sentiment",
    "prediction_column": "Predicted_Sentiment",
    **CLASSES,
}
PAIR = ("sentence1", "sentence2")
TASKS = {
    task.name: task
    for task in (
        Task(name="sst", parse_label=class_label(5), num_outputs=5, file_stem="ids-sst", **SENTIMENT),
        Task(
            name="para",
            text_columns=PAIR,
            label_column="is_duplicate",
            parse_label=class_label(2),
            num_outputs=1,
            loss=binary_cross_entropy,
            divergence=mysmartloss.bernoulli_sym_kl_loss,
            predict=lambda logits: (logits.squeeze(-1) > 0).float(),
            metrics={"accuracy": evaluation.accuracy, "macro_f1": evaluation.macro_f1},
            file_stem="quora",
            prediction_column="Predicted_Is_Paraphrase",
        ),
        Task(
            name="sts",
            text_columns=PAIR,
            label_column="similarity",
            parse_label=score_label(0, 5),
            num_outputs=1,
            loss=mean_squared_error,
            divergence=mysmartloss.squared_error,
            predict=lambda logits: logits.squeeze(-1).float(),
            metrics={"pearson": evaluation.pearson, "spearman": evaluation.spearman},
            file_stem="sts",
            prediction_column="Predicted_Similiary",  # spelled as the course spells it
            first_output=2.5,
        ),
        Task(name="cfimdb", parse_label=class_label(2), num_outputs=2, file_stem="ids-cfimdb", **SENTIMENT),
    )
}
