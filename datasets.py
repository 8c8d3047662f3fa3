"""From the course's files to batches.

    1. read_examples     *.csv -> list of Example
    2. tokenize          list of Example -> TokenizedDataset, token ids of all rows
    3. length_buckets    lengths of the rows -> row numbers of each batch of an epoch
    4. collate           TokenizedDataset, row numbers -> Batch
    5. Batch             input_ids, token_type_ids, attention_mask (B,T), labels (B,)

`Loader` does steps 3 and 4 for training, `evaluation_batches` for evaluation.

Shapes: B batch, T tokens, H hidden, C outputs; rows are all rows of a data set.
Not handled: streaming from disk, other layouts than the course's (tab-separated, CSV quoting, a header).
The name hides Hugging Face's `datasets`, which nothing in this project imports.
"""

import csv
import io
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from support.errors import UserError
from support.files import read_bytes

log = logging.getLogger("smart_bert")
MAX_BAD_SHARE = 0.01  # of a labelled file's rows; with more bad rows the file is probably another file


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
    first_output: float = 0.0  # output of a new head: 0, or the middle of a score's range
    # logits (B,C) -> probabilities (B,classes) in the order of `label_names`; None for regression
    probabilities: Callable[[Tensor], Tensor] | None = None

    @property
    def main_metric(self) -> str:
        """Name of the metric that enters the mean dev score."""
        return next(iter(self.metrics))

    def filename(self, split: str) -> str:
        """Name of the file of a split: train, dev or test."""
        return f"{self.file_stem}-{'test-student' if split == 'test' else split}.csv"


def _parser(valid: Callable[[float], bool]) -> Callable[[str], float]:
    """A parser for numbers as the course writes them. It raises ValueError where `valid` is false."""

    def parse(text: str) -> float:
        # Python's float also reads texts that are no numbers here: `0_1` and digits of other scripts.
        value = float(text) if text.isascii() and "_" not in text else math.nan
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


class Example(NamedTuple):
    """One row of a file. label is None in an unlabelled file."""

    id: str
    texts: tuple[str, ...]
    label: float | None


# ------------------------------------------------------------------------------------------ reading


def read_examples(path: str | Path, task: Task, labelled: bool = True) -> list[Example]:
    """The rows of a course file.

    Labelled: rows without a usable label, text or id are skipped, with one warning. Unlabelled: every row is
    kept and must have an id that fits in a prediction file. Repeated ids give a warning.
    Raises UserError with file and line if the file is missing, empty or not UTF-8, if a needed column is
    missing or occurs twice, if a quote is never closed, or if more than 1 % of the rows cannot be used.
    """
    rows = _read_rows(path)
    header_line, header = next(rows, (1, None))
    if header is None:
        raise UserError(f"{path}:1: the file is empty")
    columns = _find_columns(f"{path}:{header_line}", header, task, labelled)
    parse = _parse_labelled if labelled else _parse_unlabelled
    numbered: list[tuple[int, Example]] = []  # with the line number of each row
    bad: list[tuple[int, ValueError]] = []
    shifted: list[int] = []  # lines of unlabelled rows with more fields than the header
    for line, row in rows:
        try:
            numbered.append((line, parse(task, row, columns, len(header))))
        except ValueError as problem:
            bad.append((line, problem))
        if not labelled and any(row[len(header) :]):
            shifted.append(line)
    if bad and not labelled:
        raise UserError(f"{path}:{bad[0][0]}: {bad[0][1]}")
    if shifted:
        found = f"{len(shifted)} rows have more fields than the header (first: line {shifted[0]})"
        log.warning("%s: %s; what follows a stray tab is not read", path, found)
    _warn_of_repeated_ids(path, numbered)
    if not numbered and not bad:
        raise UserError(f"{path}:{header_line}: a header but no rows")
    if bad:
        _report_bad_rows(path, bad, len(numbered) + len(bad))
    return [example for _, example in numbered]


def _find_columns(where: str, header: list[str], task: Task, labelled: bool) -> list[int]:
    """Positions of the columns for id, texts and, if `labelled`, label. UserError if one is missing."""
    names = [name.strip() for name in header]
    wanted = ("id", *task.text_columns, *([task.label_column] if labelled else []))
    for name in wanted:
        if name not in names:
            found = ", ".join(map(repr, names))[:200]
            raise UserError(f"{where}: no column {name!r} in the header (it has {found})")
        if names.count(name) > 1:
            raise UserError(f"{where}: {names.count(name)} columns named {name!r} in the header")
    return [names.index(name) for name in wanted]


def _warn_of_repeated_ids(path: str | Path, numbered: list[tuple[int, Example]]) -> None:
    """One warning for all rows that have the id of an earlier row."""
    first_lines: dict[str, int] = {}  # by id
    lines = ((line, example.id) for line, example in numbered)
    repeated = [(line, id) for line, id in lines if first_lines.setdefault(id, line) != line]
    if repeated:
        line, id = repeated[0]
        found = (
            f"{len(repeated)} rows have the id of an earlier row (first: line {line}, {id!r:.40} as in line"
        )
        log.warning("%s: %s %d); their predictions cannot be told apart", path, found, first_lines[id])


def _report_bad_rows(path: str | Path, bad: list[tuple[int, ValueError]], total: int) -> None:
    """One warning for the rows of a labelled file that are skipped. Raises UserError if they are too many."""
    lines = ", ".join(str(line) for line, _ in bad[:3]) + (", ..." if len(bad) > 3 else "")
    first_line, first_problem = bad[0]
    what = f"{len(bad)} of {total} rows cannot be used (line {lines}; first: {first_problem})"
    if len(bad) > MAX_BAD_SHARE * total:
        raise UserError(f"{path}:{first_line}: {what}; at most 1 % may be")
    log.warning("%s: %s; skipped", path, what)


def _read_rows(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number where the row starts, fields), the header first, without blank lines.

    Raises UserError with file and line if the file cannot be read, is not UTF-8 or has an open quote.
    """
    data = read_bytes(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start]  # without the BOM
        byte = error.object[error.start]
        line = 1 + before.count(b"\n") + before.count(b"\r") - before.count(b"\r\n")
        raise UserError(f"{path}:{line}: not UTF-8 (byte 0x{byte:02x})") from None
    csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters is too small for long documents
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
    line = 1
    width = 0  # number of fields in the header
    try:
        for row in reader:
            width = width or len(row)
            # An open quote joins lines, so the row has more fields than the header.
            swallowed = reader.line_num > line and any(row[width:])
            if swallowed or any("\t" in field for field in row):
                raise UserError(
                    f"{path}:{line}: a field opens with a quote that is not closed before the next tab"
                )
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{line}: {error}") from None


def _check_id(id: str) -> None:
    """Raises ValueError for an id that would break the lines of a prediction file, `ID , VALUE `."""
    if not id:
        raise ValueError("a row without an id, so its prediction could not be told from others")
    if id.splitlines() != [id] or " ," in id:
        raise ValueError(
            f"the id {id[:20]!r} holds a line break or ' ,', so its prediction could not be read back"
        )


def _parse_labelled(task: Task, row: list[str], columns: list[int], width: int) -> Example:
    """The example of a row. Raises ValueError, which says why the row cannot be used."""
    if len(row) < width or any(row[width:]):  # with too many fields an unquoted tab has shifted the columns
        raise ValueError(f"{len(row)} fields, not {width}")
    id, *texts, label = (row[column].strip() for column in columns)
    _check_id(id)
    if not all(texts):
        raise ValueError("empty text")
    if not label:
        raise ValueError("no label")
    try:
        return Example(id, tuple(texts), task.parse_label(label))
    except ValueError:
        raise ValueError(f"{task.label_column} {label[:20]!r} is out of range or not a number") from None


def _parse_unlabelled(task: Task, row: list[str], columns: list[int], width: int) -> Example:
    """The example of a row, whatever its texts. Raises ValueError only for an id that cannot be used."""
    id, *texts = (row[column].strip() if column < len(row) else "" for column in columns)
    _check_id(id)
    return Example(id, tuple(texts), None)


def sample_rows(examples: list[Example], limit: int | None) -> list[Example]:
    """`limit` random examples, or all, in file order. Every run gets the same ones, whatever its seed."""
    if limit is None or limit >= len(examples):
        return examples
    chosen = np.random.default_rng(0).choice(len(examples), limit, replace=False)
    return [examples[i] for i in np.sort(chosen)]


# --------------------------------------------------------------------------------------- tokenising


@dataclass(frozen=True)
class TokenizedDataset:
    """One task's examples in file order, in flat arrays: a list of lists would take ten times the memory."""

    task: Task
    ids: list[str]  # one for each row
    labels: Tensor | None  # (rows,) fp32
    tokens: np.ndarray  # int32, the tokens of all rows, one row after the other
    starts: np.ndarray  # (rows + 1,), position in `tokens` where each row starts, and the end of the last row
    segment_starts: np.ndarray  # (rows,), position in the row where segment 1 starts, or the row's length
    num_truncated: int  # rows that were longer than max_length

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each row, (rows,)."""
        return np.diff(self.starts)


def tokenize(
    examples: Sequence[Example], task: Task, tokenizer: Tokenizer, max_length: int
) -> TokenizedDataset:
    """`[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]` for every example, at most `max_length` tokens.

    The longer text of a pair is cut first.
    """
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    rows: list[np.ndarray] = []
    segment_starts: list[int] = []
    num_truncated = 0
    for begin in range(0, len(examples), 1024):  # blocks limit the memory of the tokenizer's own records
        texts = [
            example.texts if len(example.texts) > 1 else example.texts[0]
            for example in examples[begin : begin + 1024]
        ]
        for encoding in tokenizer.encode_batch_fast(texts):
            ids = encoding.ids
            rows.append(np.array(ids, dtype=np.int32))
            segment_starts.append(len(ids) - sum(encoding.type_ids))
            num_truncated += len(ids) == max_length and bool(encoding.overflowing)
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    labels = None
    if examples and examples[0].label is not None:
        labels = torch.tensor([example.label for example in examples], dtype=torch.float32)
    return TokenizedDataset(
        task=task,
        ids=[example.id for example in examples],
        labels=labels,
        tokens=np.concatenate(rows) if rows else np.zeros(0, np.int32),
        starts=np.concatenate([[0], np.cumsum(lengths)]),
        segment_starts=np.array(segment_starts, dtype=np.int64),
        num_truncated=num_truncated,
    )


# ----------------------------------------------------------------------------------------- batching


@dataclass(frozen=True)
class Batch:
    """Rows of similar length, padded on the right."""

    rows: np.ndarray  # (B,), positions in the dataset, also of the rows that other processes hold
    input_ids: Tensor  # (B,T) int64
    token_type_ids: Tensor | None  # (B,T) int64; None if all are 0
    attention_mask: Tensor | None  # (B,T) bool, True for real tokens; None if no row is padded
    labels: Tensor | None  # (B,); None if the file has no labels
    num_tokens: int  # real tokens, without padding
    seed: int = 0  # seed of `noise`
    part: slice = field(default_factory=lambda: slice(None))  # the entries of `rows` that the tensors hold
    weight: float = 1.0  # factor on this part's mean, so that the mean over the processes is that of all rows

    @property
    def inputs(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Token ids, mask and segment ids (B,T), the arguments of a model's forward."""
        return self.input_ids, self.attention_mask, self.token_type_ids

    def share(self, rank: int, size: int) -> "Batch":
        """The part of the batch that process `rank` of `size` computes: every size-th row.

        A process without rows gets the first row with weight 0.
        """
        if size == 1:
            return self
        part = slice(rank, None, size)
        count = len(self.rows[part])
        part = part if count else slice(0, 1)
        return replace(
            self._each(lambda tensor: tensor[part]), part=part, weight=size * count / len(self.rows)
        )

    def noise(self, embeddings: Tensor) -> Tensor:
        """Standard normal noise for embeddings (B,T,H), fp32 or wider, the same for a row in any process."""
        generator = None if embeddings.is_meta else torch.Generator(embeddings.device).manual_seed(self.seed)
        shape = (len(self.rows), *embeddings.shape[1:])  # for the rows of all processes
        dtype = torch.promote_types(embeddings.dtype, torch.float32)
        return torch.randn(shape, generator=generator, dtype=dtype, device=embeddings.device)[self.part]

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device. The host does not wait for a copy to CUDA."""
        if device.type == "cpu":
            return self
        pinned = device.type == "cuda"
        return self._each(
            lambda tensor: (tensor.pin_memory() if pinned else tensor).to(device, non_blocking=True)
        )

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with the function applied to each of its tensors."""
        names = ("input_ids", "token_type_ids", "attention_mask", "labels")
        tensors = {name: tensor for name in names if (tensor := getattr(self, name)) is not None}
        changed: dict[str, Any] = {name: function(tensor) for name, tensor in tensors.items()}
        return replace(self, **changed)


def collate(dataset: TokenizedDataset, rows: np.ndarray, seed: int = 0) -> Batch:
    """The given rows (B,), padded on the right to the longest of them. `seed` is for `Batch.noise`."""
    lengths = dataset.starts[rows + 1] - dataset.starts[rows]  # (B,)
    positions = np.arange(lengths.max())  # (T,)
    real = positions < lengths[:, None]  # (B,T)
    sources = np.where(real, dataset.starts[rows][:, None] + positions, 0)  # (B,T), positions in `tokens`
    ids = np.where(real, dataset.tokens[sources], 0).astype(np.int64)
    types = real & (positions >= dataset.segment_starts[rows][:, None])
    return Batch(
        rows=rows,
        input_ids=torch.from_numpy(ids),
        token_type_ids=torch.from_numpy(types.astype(np.int64)) if types.any() else None,
        attention_mask=None if real.all() else torch.from_numpy(real),
        labels=None if dataset.labels is None else dataset.labels[torch.from_numpy(rows)],
        num_tokens=int(lengths.sum()),
        seed=seed,
    )


def length_buckets(lengths: np.ndarray, batch_size: int, seed: Sequence[int]) -> list[np.ndarray]:
    """The batches of one epoch as arrays of row numbers, in random order. Each row occurs once.

    Rows are shuffled and sorted by length, the sorted list is cut into batches, and the batches are shuffled.
    Rows that do not fill a batch are taken out before sorting and make a smaller batch. Otherwise the longest
    rows would be in the smaller batch and have a larger weight in every epoch.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(lengths))
    num_left = len(order) % batch_size
    rest = order[:num_left]
    sortable = order[num_left:]
    batches = list(sortable[np.argsort(lengths[sortable], kind="stable")].reshape(-1, batch_size))
    if num_left:
        batches.append(rest)
    return [batches[i] for i in random.permutation(len(batches))]


class Loader:
    """Training batches of one task, numbered 0, 1, 2, ... without end.

    Batch k depends only on the seed and k, so a run can resume at any batch.
    """

    def __init__(self, dataset: TokenizedDataset, batch_size: int, seed: Sequence[int]):
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = tuple(seed)
        self.batches_per_epoch = -(-len(dataset) // batch_size)
        self._epoch: int | None = None  # the epoch of `_batches`
        self._batches: list[np.ndarray] = []

    def epoch_batches(self, epoch: int) -> list[np.ndarray]:
        """Row numbers of each batch of epoch 0, 1, ..."""
        if self._epoch != epoch:
            self._epoch = epoch
            self._batches = length_buckets(self.dataset.lengths, self.batch_size, (*self.seed, epoch))
        return self._batches

    def __getitem__(self, k: int) -> Batch:
        epoch, position = divmod(k, self.batches_per_epoch)
        noise_seed = int(np.random.default_rng((*self.seed, epoch, position)).integers(2**63))
        return collate(self.dataset, self.epoch_batches(epoch)[position], noise_seed)


def evaluation_batches(dataset: TokenizedDataset, batch_size: int) -> list[Batch]:
    """All rows once, the longest first: if the first batch fits in memory, all batches do."""
    order = np.argsort(-dataset.lengths, kind="stable")
    return [collate(dataset, order[begin : begin + batch_size]) for begin in range(0, len(order), batch_size)]


def round_robin(step: int, steps_per_epoch: int, num_tasks: int) -> int:
    """Number of the task that step 0, 1, ... trains: one batch of each task in turn."""
    return step % num_tasks


def one_after_another(step: int, steps_per_epoch: int, num_tasks: int) -> int:
    """Number of the task that step 0, 1, ... trains: an equal block of steps for each task in every epoch."""
    return step % steps_per_epoch * num_tasks // steps_per_epoch


SCHEDULES = {"interleaved": round_robin, "sequential": one_after_another}
