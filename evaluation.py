"""Scores, predictions for whole data sets, and the course's prediction files.

    1. model_outputs        model, TokenizedDataset -> logits (rows,C)
    2. predict              logits (rows,C) -> predictions (rows,), by Task.predict
    3. score                predictions, labels (rows,) -> {metric: value}, by Task.metrics
    4. evaluate             steps 1 to 3 for every task -> Evaluation
    5. write_predictions    predictions (rows,) -> predictions/*.csv

    answers                 raw texts -> label, name and probabilities, or value, of each (steps 1 and 2)

Shapes: C outputs; rows are all rows of a data set. Metrics take predictions and labels of the same length.
Not handled: confidence intervals, calibration.
"""

import logging
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

from datasets import Batch, Example, TokenizedDataset, collate, evaluation_batches, split_pairs, tokenize
from support import devices, parallel
from support.errors import UserError
from support.files import write_text
from tasks import Task, score

log = logging.getLogger("smart_bert")
COSINE_ROWS = 500  # of training pairs, for the threshold of `untrained_scores`


def outputs(
    logits_fn: Callable[[Batch], Tensor],
    dataset: TokenizedDataset,
    batch_size: int,
    device: torch.device,
    bar: bool = True,
) -> Tensor:
    """The logits (rows,C) of every row, in file order, on the CPU. The caller puts the model in eval mode.

    Under torchrun the ranks divide the batches, and each returns the logits of all rows.
    """

    # inference_mode is set per thread
    @torch.inference_mode()
    def logits_of(batch: Batch) -> Tensor:
        return logits_fn(batch.to(device)).float()

    batches = evaluation_batches(dataset, batch_size)[parallel.rank() :: parallel.size()]
    with devices.mapper(device) as apply:
        parts = list(
            tqdm(
                apply(logits_of, batches),
                desc=f"predicting {dataset.task.name}",
                total=len(batches),
                leave=False,
                disable=parallel.bar_disabled() if bar else True,
            )
        )
    rows = np.concatenate([np.zeros(0, int), *(batch.rows for batch in batches)])  # of this rank
    # one copy from the device, since each syncs a GPU
    values = torch.cat(parts).cpu() if parts else torch.zeros(0, dataset.task.num_outputs)
    logits = torch.empty(len(dataset), dataset.task.num_outputs)  # (rows,C)
    for part_rows, part_values in parallel.gather((rows, values)):
        logits[torch.from_numpy(part_rows)] = part_values
    return logits


class Evaluation(NamedTuple):
    """Scores and predictions of a model on labelled data.

    scores: task -> metric -> value; "trained" is False for a task that the model was not trained on.
    predictions: task -> (rows,), in file order.
    logits: task -> (rows,C), in file order.
    dev_mean: mean of the main metrics of all evaluated tasks.
    selection_mean: mean over the trained tasks, or all if none of them was trained, of `select_by`, or of the
        main metric. It picks the best epoch, so untrained tasks are ignored there.
    select_by: a metric that takes the main one's place in `selection_mean`, for the tasks that have it.
    """

    scores: dict[str, dict[str, float]]
    predictions: dict[str, np.ndarray]
    logits: dict[str, Tensor]
    dev_mean: float
    selection_mean: float
    select_by: str | None = None

    @property
    def main_scores(self) -> dict[str, float]:
        """Main metric of each task, and as `mean` the one that picks the best epoch.

        With `select_by` a task that has this metric has both, under `sst accuracy` and `sst macro_f1`.
        """
        shown: dict[str, float] = {}
        for name, values in self.scores.items():
            main = next(iter(values))
            if self.select_by in values and self.select_by != main:
                shown |= {f"{name} {metric}": values[metric] for metric in (main, self.select_by)}
            else:
                shown[name] = values[main]
        return shown | {"mean": self.selection_mean}


def model_outputs(model: nn.Module, dataset: TokenizedDataset, batch_size: int, bar: bool = True) -> Tensor:
    """Logits (rows,C) in file order, on the CPU, without dropout. The model stays in eval mode."""
    model.eval()

    def logits(batch: Batch) -> Tensor:
        return model(dataset.task.name, *batch.inputs)

    device = next(model.parameters()).device
    return outputs(logits, dataset, rows_at_a_time(batch_size, device), device, bar)


def rows_at_a_time(batch_size: int, device: torch.device) -> int:
    """Batch size of evaluation: twice that of training on a GPU, which keeps no activations for backward.

    On a CPU larger batches would overflow its caches.
    """
    return batch_size * (1 if device.type == "cpu" else 2)


def predicting_seconds(model: nn.Module, dataset: TokenizedDataset, batch_size: int) -> float:
    """About what `predict` will take, from a batch of typical length; sets eval mode."""
    device = next(model.parameters()).device
    off = abs(dataset.lengths - dataset.lengths.mean())
    rows = np.argsort(off, kind="stable")[: rows_at_a_time(batch_size, device)]  # of typical length
    batch = collate(dataset, rows).to(device)
    model.eval()
    begin = time.perf_counter()
    with torch.inference_mode():
        model(dataset.task.name, *batch.inputs).cpu()  # syncs a GPU
    return (time.perf_counter() - begin) * len(dataset) / len(batch.rows) / parallel.size()


def predict(model: nn.Module, dataset: TokenizedDataset, batch_size: int) -> np.ndarray:
    """Predictions (rows,) in file order."""
    return dataset.task.predict(model_outputs(model, dataset, batch_size)).numpy()


def evaluate(
    model: nn.Module,
    datasets: list[TokenizedDataset],
    batch_size: int,
    trained: Collection[str],
    select_by: str | None = None,
) -> Evaluation:
    """Scores and predictions on labelled data. `trained` names the tasks that the model was trained on.

    select_by: metric that picks the best epoch, for the tasks that have it; by default each task's main one.
    """
    scores: dict[str, dict[str, float]] = {}
    predictions: dict[str, np.ndarray] = {}
    logits: dict[str, Tensor] = {}
    main: dict[str, float] = {}  # task -> its main metric
    selecting: dict[str, float] = {}  # task -> the metric that picks the best epoch
    for dataset in datasets:
        assert dataset.labels is not None  # evaluation files are read with labels
        name = dataset.task.name
        logits[name] = model_outputs(model, dataset, batch_size)
        predictions[name] = dataset.task.predict(logits[name]).numpy()
        scores[name] = score(dataset.task, predictions[name], dataset.labels.numpy())
        main[name] = scores[name][dataset.task.main_metric]
        selecting[name] = scores[name].get(select_by or "", main[name])
        if name not in trained:
            scores[name]["trained"] = False
    selected = [value for name, value in selecting.items() if name in trained]
    return Evaluation(
        scores=scores,
        predictions=predictions,
        logits=logits,
        dev_mean=statistics.fmean(main.values()),
        selection_mean=statistics.fmean(selected or selecting.values()),
        select_by=select_by,
    )


def cosines(model: nn.Module, dataset: TokenizedDataset, batch_size: int) -> np.ndarray:
    """Cosine of the two texts' mean vectors, of each pair (rows,), in file order; sets eval mode."""
    model.eval()

    def cosine(batch: Batch) -> Tensor:
        vectors = cast(Any, model).sentence_vectors(*split_pairs(*batch.inputs))  # (2B,H)
        return F.cosine_similarity(vectors[0::2], vectors[1::2])[:, None]

    device = next(model.parameters()).device
    return outputs(cosine, dataset, rows_at_a_time(batch_size, device), device).squeeze(1).numpy()


def untrained_scores(
    model: nn.Module, pairs: Iterable[tuple[TokenizedDataset, TokenizedDataset]], batch_size: int
) -> dict[str, float]:
    """The main metric of the untrained encoder's cosine on dev, by task: what a trained model should beat.

    pairs: training and dev rows of each task that has `from_cosines`; a threshold is fitted on the first
    COSINE_ROWS training rows.
    """
    scores = {}
    for train, dev in pairs:
        task = dev.task
        assert task.from_cosines and train.labels is not None and dev.labels is not None
        some = replace(train, ids=train.ids[:COSINE_ROWS], starts=train.starts[: COSINE_ROWS + 1])
        labels = train.labels[:COSINE_ROWS].numpy()
        found = task.from_cosines(cosines(model, some, batch_size), labels, cosines(model, dev, batch_size))
        scores[task.name] = task.metrics[task.main_metric](found, dev.labels.numpy())
    return scores


def checked_texts(task: Task, texts: Sequence[object]) -> tuple[str, ...]:
    """The texts of one row, one or a pair, stripped. Raises ValueError that says what is wrong with them."""
    wanted = len(task.text_columns)
    if len(texts) != wanted:
        words = "one text" if wanted == 1 else "a pair of texts"
        raise ValueError(f"{task.name} takes {words}, not {len(texts)}")
    checked = []
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"a text must be a string, not {type(text).__name__}")
        if not text.strip():
            raise ValueError("empty text")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError("not UTF-8 (half of a surrogate pair)")
        checked.append(text.strip())
    return tuple(checked)


def checked_rows(task: Task, texts: Iterable[str | Sequence[str]]) -> list[tuple[str, ...]]:
    """The texts, or pairs of texts, as `answers` takes them.

    Raises UserError, which names the index of the first wrong one.
    """
    if isinstance(texts, str):
        raise UserError("a list of texts is needed, not a single one")
    rows = []
    for index, row in enumerate(texts):
        try:
            rows.append(checked_texts(task, [row] if isinstance(row, str) else row))
        except (ValueError, TypeError) as error:  # TypeError: neither a text nor a sequence
            raise UserError(f"texts[{index}]: {error}") from None
    return rows


def answers(
    model: nn.Module,
    tokenizer: Tokenizer,
    task: Task,
    max_length: int,
    batch_size: int,
    rows: Sequence[tuple[str, ...]],
) -> tuple[list[dict[str, Any]], int]:
    """An answer to each row of texts, in their order, and how many rows were cut to `max_length` tokens.

    An answer is `{"label": 4, "name": "very positive", "probabilities": {"very negative": 0.01, ...}}`, or
    `{"value": 3.2}` of a regression; numbers have 6 digits. The model stays in eval mode.
    Raises UserError if an output is NaN or inf.
    """
    dataset = tokenize([Example("", texts, None) for texts in rows], task, tokenizer, max_length)
    # every core gets rows, also of a single batch
    batch_size = max(1, min(batch_size, -(-len(rows) // torch.get_num_threads())))
    logits = model_outputs(model, dataset, batch_size, bar=False)  # (rows,C)
    if not torch.isfinite(logits).all():
        raise UserError("the model's outputs are not finite; try --precision fp32, or another model")
    predictions = task.predict(logits).tolist()
    if not task.label_names:
        return [{"value": six_digits(value)} for value in predictions], dataset.num_truncated
    found: list[dict[str, Any]] = [
        {"label": task.written(int(label)), "name": task.label_names[int(label)]} for label in predictions
    ]
    if task.probabilities is not None:
        for answer, row in zip(found, task.probabilities(logits).tolist(), strict=True):
            answer["probabilities"] = dict(zip(task.label_names, map(six_digits, row), strict=True))
    return found, dataset.num_truncated


def six_digits(value: float) -> float:
    """The number with six significant digits; fp32 has about seven."""
    return float(f"{value:.6g}")


def write_predictions(
    path: str | Path, column: str, ids: Iterable[str], predictions: np.ndarray | Sequence[Any]
) -> None:
    """Write the course's prediction file: the header `id \\t COLUMN `, then a line `ID , VALUE ` a row.

    The file is replaced completely or not at all. Raises UserError if it cannot be written.
    """
    rows = [f"{id} , {value!s} \n" for id, value in zip(ids, predictions, strict=True)]
    write_text(path, "".join([f"id \t {column} \n", *rows]))
