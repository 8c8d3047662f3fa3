"""Course files in, batches out: reading, tokenising, length buckets, collating.

One path serves one sentence or two, with labels or without.

B batch, T tokens. Not handled: streaming from disk, any layout but the course's (tab-separated with CSV
quoting and a header).
The name shadows Hugging Face's `datasets`, which nothing in this project imports.
"""

import csv
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from support.errors import UserError
from support.files import read_bytes

log = logging.getLogger("smart_bert")
MAX_BAD_SHARE = 0.01  # of a labelled file's rows; above it the file is not what it claims to be


@dataclass(frozen=True)
class Task:
    """All that distinguishes one task from another, so that no code asks which task it has.

    loss(logits (B,C), labels (B,)) and divergence(logits, logits) are batch means; predict turns logits (B,C)
    into (B,) values;
    metrics are functions of (predictions, labels), the first of them the one that counts in the mean dev
    score.
    """

    name: str
    text_columns: tuple[str, ...]
    label_column: str
    parse_label: Callable[[str], float]
    num_outputs: int  # C
    loss: Callable[[Tensor, Tensor], Tensor]
    divergence: Callable[[Tensor, Tensor], Tensor]
    predict: Callable[[Tensor], Tensor]
    metrics: dict[str, Callable[[np.ndarray, np.ndarray], float]]
    file_stem: str  # <stem>-train.csv, <stem>-dev.csv, <stem>-test-student.csv
    prediction_column: str  # header of prediction files
    first_output: float = 0.0  # what a new head gives: 0, or the middle of a score's range

    @property
    def main_metric(self) -> str:
        return next(iter(self.metrics))

    def filename(self, split: str) -> str:
        return f"{self.file_stem}-{'test-student' if split == 'test' else split}.csv"


def _number(text: str) -> float:
    """A number as the course writes it. Raises ValueError for what only Python takes for one, such as `0_1`
    or digits of other scripts."""
    if "_" in text or not text.isascii():
        raise ValueError
    return float(text)


def class_label(count: int) -> Callable[[str], float]:
    """Parser of a class index in [0, count), written as an integer or as a float such as `1.0`."""

    def parse(text: str) -> float:
        value = _number(text)
        if value not in range(count):
            raise ValueError
        return value

    return parse


def score_label(low: float, high: float) -> Callable[[str], float]:
    """Parser of a number in [low, high]."""

    def parse(text: str) -> float:
        value = _number(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return parse


class Example(NamedTuple):
    """One row of a file. label is None in an unlabelled file."""

    id: str
    texts: tuple[str, ...]
    label: float | None


# ------------------------------------------------------------------------------------------ reading


def read_examples(path: str | Path, task: Task, labelled: bool = True) -> list[Example]:
    """The rows of a course file.

    Labelled: rows without a usable label, text or id are skipped and reported once, with the first line
    numbers.
    Unlabelled: every row is kept, whatever its text, and must have an id that a prediction can be filed
    under.
    An id that two rows share is reported.
    Raises UserError, with file and line, for a file that is missing, empty, not UTF-8, without a needed
    column or with two of it, for
    a quote that is never closed, and for more than 1 % of unusable rows.
    """
    rows = _read_rows(path)
    header_line, header = next(rows, (1, None))
    if header is None:
        raise UserError(f"{path}:1: the file is empty")
    names = [name.strip() for name in header]
    wanted = ("id", *task.text_columns, *([task.label_column] if labelled else []))
    for name in wanted:
        if name not in names:
            raise UserError(
                f"{path}:{header_line}: no column {name!r} in the header (it has"
                f" {', '.join(map(repr, names))[:200]})"
            )
        if names.count(name) > 1:
            raise UserError(f"{path}:{header_line}: {names.count(name)} columns named {name!r} in the header")
    columns = [names.index(name) for name in wanted]
    parse = _parse_labelled if labelled else _parse_unlabelled
    examples, bad, shifted, doubled, first_lines = [], [], [], [], {}  # the last: by id
    for line, row in rows:
        try:
            examples.append(parse(task, row, columns, len(names)))
        except ValueError as problem:
            bad.append((line, problem))
        else:
            if first_lines.setdefault(examples[-1].id, line) != line:
                doubled.append((line, examples[-1].id))
        if not labelled and any(row[len(names) :]):
            shifted.append(line)
    if bad and not labelled:
        raise UserError(f"{path}:{bad[0][0]}: {bad[0][1]}")
    if shifted:
        log.warning(
            "%s: %d rows have more fields than the header (first: line %d); what follows a stray"
            " tab is not read",
            path,
            len(shifted),
            shifted[0],
        )
    if doubled:
        line, id = doubled[0]
        log.warning(
            "%s: %d rows have the id of an earlier row (first: line %d, %.40r as in line %d);"
            " their predictions cannot be told apart",
            path,
            len(doubled),
            line,
            id,
            first_lines[id],
        )
    if not examples and not bad:
        raise UserError(f"{path}:{header_line}: a header but no rows")
    if bad:
        total, lines = len(examples) + len(bad), ", ".join(str(line) for line, _ in bad[:3])
        what = (
            f"{len(bad)} of {total} rows cannot be used (line"
            f" {lines}{', ...' if len(bad) > 3 else ''}; first: {bad[0][1]})"
        )
        if len(bad) > MAX_BAD_SHARE * total:
            raise UserError(f"{path}:{bad[0][0]}: {what}; at most 1 % may be")
        log.warning("%s: %s; skipped", path, what)
    return examples


def _read_rows(path: str | Path):
    """Yields (line number of the row's start, fields), header first, blank lines left out."""
    data = read_bytes(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before, byte = error.object[: error.start], error.object[error.start]  # without the BOM
        line = 1 + before.count(b"\n") + before.count(b"\r") - before.count(b"\r\n")
        raise UserError(f"{path}:{line}: not UTF-8 (byte 0x{byte:02x})") from None
    csv.field_size_limit(2**31 - 1)  # the default, 131,072 characters, is less than a long document
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
    line, width = 1, 0
    try:
        for row in reader:
            width = width or len(row)
            swallowed = reader.line_num > line and any(
                row[width:]
            )  # lines joined, and more fields than the header has
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
    """Raises ValueError for what would break the lines of a prediction file, `ID , VALUE `."""
    if not id:
        raise ValueError("a row without an id, so its prediction could not be told from others")
    if id.splitlines() != [id] or " ," in id:
        raise ValueError(
            f"the id {id[:20]!r} holds a line break or ' ,', so its prediction could not be read back"
        )


def _parse_labelled(task: Task, row: list[str], columns: list[int], width: int) -> Example:
    """Raises ValueError saying why the row cannot be used."""
    if len(row) < width or any(row[width:]):  # too many: an unquoted tab has shifted the columns
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
    """Raises ValueError only where there is no id that a prediction can be filed under."""
    id, *texts = (row[column].strip() if column < len(row) else "" for column in columns)
    _check_id(id)
    return Example(id, tuple(texts), None)


def sample_rows(examples: list[Example], limit: int | None) -> list[Example]:
    """`limit` random examples in file order, or all. Random, since files are often sorted; always the same,
    whatever the run's seed."""
    if limit is None or limit >= len(examples):
        return examples
    chosen = np.random.default_rng(0).choice(len(examples), limit, replace=False)
    return [examples[i] for i in np.sort(chosen)]


# --------------------------------------------------------------------------------------- tokenising


@dataclass(frozen=True)
class TokenizedDataset:
    """One task's examples as token ids, in file order. Flat arrays: a list of lists would take ten times the
    memory."""

    task: Task
    ids: list[str]  # of the rows
    labels: Tensor | None  # (rows,) fp32
    tokens: np.ndarray  # int32, all rows one after the other
    starts: np.ndarray  # (rows + 1,), where in `tokens` each row begins
    seconds: (
        np.ndarray
    )  # (rows,), position within the row at which segment 1 begins; the row's length if it has none
    num_truncated: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return np.diff(self.starts)


def tokenize(
    examples: Sequence[Example], task: Task, tokenizer: Tokenizer, max_length: int
) -> TokenizedDataset:
    """`[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]` for every example, cut to `max_length` tokens (the longer
    text first)."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    rows, seconds, truncated = [], [], 0
    for begin in range(0, len(examples), 1024):  # bounds the memory of the tokenizer's own records
        chunk = [
            example.texts if len(example.texts) > 1 else example.texts[0]
            for example in examples[begin : begin + 1024]
        ]
        for encoding in tokenizer.encode_batch_fast(chunk):
            ids = encoding.ids
            rows.append(np.array(ids, dtype=np.int32))
            types = encoding.type_ids
            seconds.append(len(ids) - sum(types))
            truncated += len(ids) == max_length and bool(encoding.overflowing)
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
        seconds=np.array(seconds, dtype=np.int64),
        num_truncated=truncated,
    )


# ----------------------------------------------------------------------------------------- batching


@dataclass(frozen=True)
class Batch:
    """Rows of similar length. attention_mask is None when no row is padded, labels when the file has none."""

    rows: np.ndarray  # (B,), the rows' places in the dataset; those of all processes
    input_ids: Tensor  # (B,T) int64
    token_type_ids: Tensor | None  # (B,T) int64, None where all are 0
    attention_mask: Tensor | None  # (B,T) bool
    labels: Tensor | None  # (B,)
    num_tokens: int  # real ones, without padding
    seed: int = 0  # of `noise`
    part: slice = field(default_factory=lambda: slice(None))  # which of `rows` the tensors hold
    weight: float = 1.0  # of a mean over this part, so that the parts' mean is that of all rows

    @property
    def inputs(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Ids, mask and segment ids, as a model's forward takes them."""
        return self.input_ids, self.attention_mask, self.token_type_ids

    def share(self, rank: int, size: int) -> "Batch":
        """What process `rank` of `size` computes of it: every size-th row, or where there are too few a row
        that weighs nothing."""
        if size == 1:
            return self
        part = slice(rank, None, size)
        count = len(self.rows[part])
        part = part if count else slice(0, 1)
        return replace(
            self._each(lambda tensor: tensor[part]), part=part, weight=size * count / len(self.rows)
        )

    def noise(self, embeddings: Tensor) -> Tensor:
        """Standard normal numbers, at least fp32, for embeddings (B,T,H): the same for a row whichever
        process holds it."""
        generator = None if embeddings.is_meta else torch.Generator(embeddings.device).manual_seed(self.seed)
        shape, dtype = (
            (len(self.rows), *embeddings.shape[1:]),
            torch.promote_types(embeddings.dtype, torch.float32),
        )
        return torch.randn(shape, generator=generator, dtype=dtype, device=embeddings.device)[self.part]

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device, copied without waiting for it where the device is CUDA."""
        if device.type == "cpu":
            return self

        pinned = device.type == "cuda"
        return self._each(
            lambda tensor: (tensor.pin_memory() if pinned else tensor).to(device, non_blocking=True)
        )

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with each of its tensors replaced by the function of it."""
        tensors = {
            name: getattr(self, name) for name in ("input_ids", "token_type_ids", "attention_mask", "labels")
        }
        return replace(
            self, **{name: function(tensor) for name, tensor in tensors.items() if tensor is not None}
        )


def collate(dataset: TokenizedDataset, rows: np.ndarray, seed: int = 0) -> Batch:
    """The given rows, padded on the right to the longest of them; `seed` is for `Batch.noise`."""
    lengths = dataset.starts[rows + 1] - dataset.starts[rows]
    positions = np.arange(lengths.max())  # (T,)
    real = positions < lengths[:, None]  # (B,T)
    places = np.where(real, dataset.starts[rows][:, None] + positions, 0)
    ids = np.where(real, dataset.tokens[places], 0).astype(np.int64)
    types = real & (positions >= dataset.seconds[rows][:, None])
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
    """One epoch's batches of row numbers: each row once, rows of similar length together, the order of
    everything random.

    Rows are shuffled, sorted by length, cut into batches, and the batches shuffled. Rows that don't fill a
    batch make one of their own,
    taken out before the sort: the longest rows, were it theirs, would count for more than others in every
    epoch.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(lengths))
    left = len(order) % batch_size
    rest, sortable = order[:left], order[left:]
    batches = list(sortable[np.argsort(lengths[sortable], kind="stable")].reshape(-1, batch_size)) + [
        rest
    ] * bool(left)
    return [batches[i] for i in random.permutation(len(batches))]


class Loader:
    """Training batches of one task, numbered without end: batch k is a function of the seed and k alone, so a
    run can resume anywhere."""

    def __init__(self, dataset: TokenizedDataset, batch_size: int, seed: Sequence[int]):
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = tuple(seed)
        self.batches_per_epoch = -(-len(dataset) // batch_size)
        self._epoch, self._batches = None, []

    def epoch_batches(self, epoch: int) -> list[np.ndarray]:
        """Row numbers of each batch of pass `epoch` over the data."""
        if self._epoch != epoch:
            self._epoch = epoch
            self._batches = length_buckets(self.dataset.lengths, self.batch_size, (*self.seed, epoch))
        return self._batches

    def __getitem__(self, k: int) -> Batch:
        epoch, place = divmod(k, self.batches_per_epoch)
        noise_seed = int(np.random.default_rng((*self.seed, epoch, place)).integers(2**63))
        return collate(self.dataset, self.epoch_batches(epoch)[place], noise_seed)


def evaluation_batches(dataset: TokenizedDataset, batch_size: int) -> list[Batch]:
    """All rows once, longest first, so that memory that suffices at the start suffices to the end."""
    order = np.argsort(-dataset.lengths, kind="stable")
    return [collate(dataset, order[begin : begin + batch_size]) for begin in range(0, len(order), batch_size)]


def round_robin(step: int, steps_per_epoch: int, num_tasks: int) -> int:
    """Which task step 0, 1, ... trains: one batch of each in turn."""
    return step % num_tasks


def one_after_another(step: int, steps_per_epoch: int, num_tasks: int) -> int:
    """Which task step 0, 1, ... trains: each epoch gives every task an equal block of steps, in order."""
    return step % steps_per_epoch * num_tasks // steps_per_epoch


SCHEDULES = {"interleaved": round_robin, "sequential": one_after_another}
