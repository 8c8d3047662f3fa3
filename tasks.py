"""All of a task in one place: how it is read, learned, scored and written. A new task is a new record.

    field of the label column ─ read_label ─> label ─ loss(logits, labels) ─> scalar
    logits (B,C) ─ predict ─> predictions (B,) ─ metrics ─> scores
    run.json's record of a task from a user's own file ─ own_task ─> Task

B batch, C outputs; rows are all rows of a data set. Losses and divergences are means over the batch.
"""

from __future__ import annotations  # names of types are not looked up

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from support.errors import UserError
from support.late import LateModule
from support.screen import cut

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    import mysmartloss
else:  # --help needs no more of the tasks than their names, and torch takes seconds
    torch = LateModule("torch")
    F = LateModule("torch.nn.functional")
    nn = LateModule("torch.nn")
    mysmartloss = LateModule("mysmartloss")

log = logging.getLogger("smart_bert")


class UnknownLabel(ValueError):
    """A class that the training file of an own task does not have."""


@dataclass(frozen=True)
class Task:
    """Everything that differs between tasks. No other code asks which task it works on."""

    name: str
    text_columns: tuple[str, ...]  # one column for sentences, two for pairs
    label_column: str
    parse_label: Callable[[str], float]  # field of the label column -> label; raises ValueError
    num_outputs: int  # C
    loss: Callable[[Tensor, Tensor], Tensor]  # logits (B,C), labels (B,) -> scalar, a mean over the batch
    divergence: Callable[[Tensor, Tensor], Tensor]  # logits (B,C) twice -> scalar, a mean over the batch
    predict: Callable[[Tensor], Tensor]  # logits (B,C) -> predictions (B,)
    metrics: dict[str, Callable[[np.ndarray, np.ndarray], float]]  # (rows,), (rows,) -> value; main one first
    file_stem: str  # <stem>-train.csv, <stem>-dev.csv, <stem>-test-student.csv
    prediction_column: str  # header of prediction files
    label_names: tuple[str, ...] = ()  # names of the classes, index = class; empty for regression
    # what the label column holds for each class, where that is not its index
    labels: tuple[int | str, ...] = ()
    # names that columns have in the data set's files elsewhere (GLUE, Kaggle), by the name here
    other_columns: Mapping[str, str] = field(default_factory=dict)
    first_output: float = 0.0  # bias of a new head: 0, or the middle of the scores' range
    # logits (B,C) -> probabilities (B,classes) in the order of label_names; None for regression
    probabilities: Callable[[Tensor], Tensor] | None = None
    cosine_scale: float | None = None  # score of two equal texts; None where no cosine can replace the head
    # baseline of the untrained encoder, for pairs: cosines and labels of training pairs, cosines of dev
    # pairs, each (rows,) -> predictions (rows,)
    from_cosines: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] | None = None
    alike_label: float | None = None  # label of pairs that mean the same; None if there is no such label

    @property
    def main_metric(self) -> str:
        """Name of the metric that enters the mean dev score."""
        return next(iter(self.metrics))

    def filename(self, split: str) -> str:
        """Name of the file of a split: train, dev or test."""
        return f"{self.file_stem}-{'test-student' if split == 'test' else split}.csv"

    def written(self, prediction: Any) -> Any:
        """A prediction as answers and prediction files have it: as the label column would."""
        return self.labels[int(prediction)] if self.labels else prediction

    def read_label(self, text: str) -> float:
        """The label that a field of the label column means: a number, or a class by its name in any case.

        Raises ValueError that lists the classes, UnknownLabel for a class that an own task lacks.
        """
        try:
            return self.parse_label(text)
        except ValueError:
            names = [name.casefold() for name in self.label_names]
            name = " ".join(text.split()).casefold()
            if name in names:
                return float(names.index(name))
        numbers = [] if self.labels else [f"{i} ({name})" for i, name in enumerate(self.label_names)]
        allowed = cut(", ".join(numbers or self.label_names), 200)
        allowed += ", the classes of the training file" if self.labels else ""
        problem = f"is not one of {allowed}" if allowed else "is out of range or not a number"
        kind = UnknownLabel if self.labels and text.strip() else ValueError
        raise kind(f"{self.label_column} {text[:20]!r} {problem}")


# -------------------------------------------------------------------------------------------- labels


def _parser(valid: Callable[[float], bool]) -> Callable[[str], float]:
    """A parser for numbers. It raises ValueError if the text is no number, or `valid` is false for it."""

    def parse(text: str) -> float:
        value = float(text)
        if not valid(value):
            raise ValueError
        return value

    return parse


def class_label(count: int) -> Callable[[str], float]:
    """A parser for a class index in [0, count), written as an integer or as a float such as `1.0`."""
    return _parser(lambda value: value in range(count))


def score_label(low: float, high: float) -> Callable[[str], float]:
    """A parser for a number in [low, high]."""
    return _parser(lambda value: low <= value <= high)


def plain_label(text: str) -> str:
    """A label without extra spaces; a whole number without a dot or a zero in front: `1.0` is `1`."""
    text = " ".join(text.split())
    if re.fullmatch(r"[+-]?[0-9]{1,15}(\.0*)?", text):
        return str(int(float(text)))
    return text


def label_of(names: Sequence[str]) -> Callable[[str], float]:
    """A parser for the names of classes, index = class. It raises ValueError for other texts."""
    return lambda text: float(names.index(plain_label(text)))


# ------------------------------------------------------------------------------- losses, predictions


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (B,C), class numbers (B,) -> scalar."""
    return F.cross_entropy(logits.float(), labels.long())


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (B,1), 0 or 1 (B,) -> scalar."""
    return F.binary_cross_entropy_with_logits(logits.float().squeeze(-1), labels)


def mean_squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Outputs (B,1), scores (B,) -> scalar."""
    return F.mse_loss(logits.float().squeeze(-1), labels)


def in_batch_negatives(anchors: Tensor, positives: Tensor, scale: float = 20.0) -> Tensor:
    """Multiple negatives ranking: every anchor should be nearer to its own positive than to the others.

    anchors, positives (N,H) -> scalar: cross-entropy of `scale` times the cosines (N,N), where the own
    positive is the right class. Source: Henderson et al. 2017, section 4.4; sentence-transformers'
    MultipleNegativesRankingLoss.
    """
    cosines = F.normalize(anchors.float(), dim=-1) @ F.normalize(positives.float(), dim=-1).T
    return F.cross_entropy(scale * cosines, torch.arange(len(anchors), device=anchors.device))


def constant_loss(task: Task, labels: Tensor) -> float:
    """The lowest mean loss of a model that gives every row the same outputs; labels (rows,)."""
    from torch.optim import LBFGS  # imported here, as torch is late

    outputs = torch.zeros(1, task.num_outputs, requires_grad=True)
    optimizer = LBFGS([outputs], max_iter=100)

    def loss() -> float:
        optimizer.zero_grad()
        value = task.loss(outputs.expand(len(labels), -1), labels)
        value.backward()
        return float(value.detach())

    optimizer.step(loss)
    return loss()


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
    """The cosines as scores. Correlation is independent of their range."""
    return dev


def cosines_above_threshold(train: np.ndarray, labels: np.ndarray, dev: np.ndarray) -> np.ndarray:
    """1 where the cosine is above the threshold with the best training accuracy, else 0."""
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


# ------------------------------------------------------------------------------------------- metrics


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of predictions that equal the label; (rows,), (rows,) -> [0, 1]."""
    assert predictions.shape == labels.shape, "numpy would broadcast them"
    return float(np.mean(predictions == labels))


def macro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Unweighted mean of F1 over the classes that occur in either array; (rows,), (rows,) -> [0, 1]."""
    from sklearn.metrics import f1_score  # imported here, so that training starts sooner

    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Pearson correlation; (rows,), (rows,) -> [-1, 1]. Where it is undefined: 0 and a warning."""
    return _correlation("pearsonr", predictions, labels)


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Spearman rank correlation; (rows,), (rows,) -> [-1, 1]. Where it is undefined: 0 and a warning."""
    return _correlation("spearmanr", predictions, labels)


def _correlation(name: str, predictions: np.ndarray, labels: np.ndarray) -> float:
    """The correlation that scipy.stats has under this name, or 0 where it is undefined."""
    from scipy import stats  # imported here, so that training starts sooner

    predictions = np.asarray(predictions, dtype=np.float64)
    labels = np.asarray(labels, dtype=np.float64)
    for what, values in {"predictions": predictions, "labels": labels}.items():
        if len(values) < 2 or np.ptp(values) == 0 or not np.isfinite(values).all():
            log.warning("correlation is undefined, the %s are constant or not finite; counted as 0", what)
            return 0.0
    return float(getattr(stats, name)(predictions, labels).statistic)


def score(task: Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every metric of the task by name, the main metric first."""
    return {name: metric(predictions, labels) for name, metric in task.metrics.items()}


# ----------------------------------------------------------------------------------------- the table


CLASS_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
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
        other_columns={"sentence": "Phrase", "sentiment": "Sentiment", "id": "PhraseId"},  # Kaggle's
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
        other_columns={"sentence1": "question1", "sentence2": "question2", "id": "test_id"},  # QQP's
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
        metrics={"pearson": pearson, "spearman": spearman},
        prediction_column="Predicted_Similiary",  # spelled as the course spells it
        other_columns={"similarity": "score", "id": "index"},  # STS-B's
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


# ------------------------------------------------------------------------- a task from a file alone


OWN_RANGE = 5.0  # the scores of an own regression are learned on the scale from 0 to 5, as those of sts
MAX_CLASSES = 20  # more whole numbers than these are scores, unless the user says otherwise
NUMBERS_SHARE = 0.99  # of the labels of a regression; the rest is not usable


def name_rule(name: str) -> str:
    """What is wrong with the name of a new task, or ""."""
    if name == "own":  # the default needs no check, which would import torch
        return ""
    if name.lower() in TASKS:
        return f"there is a task of that name already, as {', '.join(TASKS)} are; give another"
    # a head is found by its task's name, which must not be a method of torch's container
    plain = re.fullmatch(r"[A-Za-z]\w{0,39}", name, re.ASCII) and not hasattr(nn.ModuleDict(), name)
    reserved = ("mean", "unlabelled")
    return "" if plain and name not in reserved else "is not a plain word that is free, such as stars"


def own_record(
    name: str, text_columns: Sequence[str], label_column: str, labels: Sequence[str], regression: bool | None
) -> dict[str, Any]:
    """The record of a task, as JSON can hold it, from the fields of its label column: `own_task` makes it.

    Numbers are scores if one has a dot or there are more than MAX_CLASSES of them, or as `regression` says;
    other labels are classes, in sorted order. Raises UserError that says what is wrong with the labels.
    """
    counts = Counter(map(plain_label, labels))
    counts.pop("", None)
    numbers = {label: float(label) for label in counts if _is_number(label)}
    share = sum(counts[label] for label in numbers) / max(1, counts.total())
    if regression is None:
        dotted = any("." in label for label in labels if _is_number(label))
        regression = share >= NUMBERS_SHARE and (dotted or len(numbers) > MAX_CLASSES)
    shown = cut(", ".join(counts), 60)
    if not counts:
        raise UserError(f"no row has a label in {label_column!r}")
    if regression and share < NUMBERS_SHARE:
        other = next(label for label in counts if label not in numbers)
        raise UserError(f"--regression needs numbers, and {label_column!r} has {other[:20]!r}")
    if len(counts) < 2 or (regression and len({*numbers.values()}) < 2):
        raise UserError(f"{label_column!r} has one label ({shown}); a task needs two or more")
    record = {"name": name, "text_columns": list(text_columns), "label_column": label_column}
    if regression:
        return record | {"range": [min(numbers.values()), max(numbers.values())]}
    if listed := [label for label in counts if _lists_several(label, counts)]:
        found = f"{label_column!r} has several labels at once ({listed[0][:40]!r})"
        raise UserError(f"{found}; that is not handled, a row has one label")
    if len(counts) > max(MAX_CLASSES, counts.total() // 2):
        found = f"{label_column!r} has {len(counts):,} labels in {counts.total():,} rows ({shown})"
        raise UserError(f"{found}; is it the label column?")
    if len(numbers) == len(counts):
        names = sorted(counts, key=float)
        whole = all(label == str(int(value)) for label, value in numbers.items())
        return record | {"labels": [int(label) if whole else label for label in names]}
    return record | {"labels": sorted(counts)}


def _is_number(text: str) -> bool:
    """Whether the text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _lists_several(label: str, labels: Mapping[str, int]) -> bool:
    """Whether a label is a list, as JSON and pandas write it, or joins labels that occur alone as well."""
    parts = re.split(r"\s*[,;|]\s*", label)
    return (label[0] + label[-1] == "[]") or (len(parts) > 1 and all(part in labels for part in parts))


def own_task(record: Mapping[str, Any]) -> Task:
    """The task of a record that `own_record` made: softmax over classes, or squared error of scores."""
    common: dict[str, Any] = {
        "name": record["name"],
        "file_stem": record["name"],
        "text_columns": tuple(record["text_columns"]),
        "label_column": record["label_column"],
        "prediction_column": record["label_column"],
    }
    if "labels" in record:
        names = tuple(map(str, record["labels"]))
        return Task(
            **common,
            parse_label=label_of(names),
            label_names=names,
            labels=tuple(record["labels"]),
            num_outputs=len(names),
            loss=cross_entropy,
            divergence=mysmartloss.sym_kl_loss,
            predict=largest_logit,
            metrics=CLASS_METRICS,
            probabilities=softmax_probabilities,
        )
    low, high = record["range"]
    unit = (high - low) / OWN_RANGE
    return Task(
        **common,
        parse_label=_parser(math.isfinite),
        num_outputs=1,
        loss=lambda outputs, scores: mean_squared_error(outputs, (scores - low) / unit),
        divergence=mysmartloss.squared_error,
        predict=lambda outputs: output_itself(outputs) * unit + low,
        metrics={"pearson": pearson, "spearman": spearman},
        first_output=OWN_RANGE / 2,
        from_cosines=cosines_themselves if len(record["text_columns"]) > 1 else None,
    )


def task_table(record: Mapping[str, Any]) -> dict[str, Task]:
    """All tasks by name: those above, and that of the record, which may be empty."""
    return TASKS | ({record["name"]: own_task(record)} if record else {})
