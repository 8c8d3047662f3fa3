"""From the course's files to batches, and which batch each step takes.

    1. read_examples     *.csv, *.tsv, *.jsonl -> list of Example
    2. tokenize          list of Example -> TokenizedDataset, token ids of all rows
    3. length_buckets    lengths of the rows -> row numbers of each batch of an epoch
    4. collate           TokenizedDataset, row numbers -> Batch
    5. Batch             input_ids, token_type_ids, attention_mask (B,T), labels (B,)
    6. plan_steps        Loader of each task -> the batches of each step, by a schedule

`Loader` does steps 3 and 4 for training, `evaluation_batches` for evaluation.

Shapes: B batch, T tokens, H hidden, C outputs; rows are all rows of a data set.
Not handled: streaming from disk, files without a header.
Hugging Face's `datasets` has the same name: `support/two_datasets.py` lets both be imported.
"""

import re
import statistics
from collections import Counter, abc
from dataclasses import dataclass, field, replace
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from support import two_datasets
from support.errors import UserError, did_you_mean
from support.schedules import SCHEDULES, RunLength
from support.shapes import text_shape
from support.tables import Table, has_csv_quotes, read_table, read_utf8
from tasks import TASKS, Task, UnknownLabel, own_record

log = getLogger("smart_bert")
MAX_STEPS = 10**7  # months of training; a longer plan would not fit into memory
HELD_OUT = 10  # one in so many training rows is for dev, where a task has no dev file
MAX_BAD_SHARE = 0.01  # of a labelled file's rows; with more bad rows the file is probably another file


class Example(NamedTuple):
    """One row of a file. label is None in an unlabelled file."""

    id: str
    texts: tuple[str, ...]
    label: float | None


# ---------------------------------------------------------------------------- the name's other owner

__path__: list[str] = []  # Python imports `datasets.x` of a module with a path alone; `Finder` finds it


def __getattr__(name: str) -> Any:
    """What Hugging Face's `datasets` has and this module has not, `Sequence` for example."""
    return two_datasets.attribute(name)


# ------------------------------------------------------------------------------------------ reading


def read_examples(path: str | Path, task: Task, labelled: bool = True) -> list[Example]:
    """The rows of a file in the course's layout: a header, fields separated by tabs or commas, CSV quoting.

    A .jsonl or .json file holds an object a row, with the columns' names. Columns may have the names of the
    task's `other_columns`; GLUE's files, of those with tabs, have no quoting.
    A column `id` is optional. Without it the id of a row is its number: 1 for the first row below the header,
    blank lines not counted, bad rows counted. Repeated ids give a warning.
    Bad rows have another number of fields than the header, a bad id, or, if `labelled`, an empty text or a
    bad label. Labelled: they are skipped with one warning. Unlabelled: every row needs a prediction, so the
    first bad row is an error.
    Raises UserError with file and line if the file is missing, empty or not UTF-8, if a needed column is
    missing or occurs twice, if a quote is never closed, or if more than 1 % of the rows are bad.
    """
    table, columns = _open_table(path, task, labelled)
    where = f"{path}:{table.header_line}"
    width = len(table.header)
    examples: list[Example] = []
    bad: list[tuple[int, ValueError]] = []  # with the line number
    repeated: list[str] = []
    ids: set[str] = set()
    for number, (line, row) in enumerate(table.rows, start=1):
        try:
            if len(row) < width or any(row[width:]):  # empty fields at the end do no harm
                quotes = f"; a text that holds a {table.separator} must stand in quotes"
                hint = quotes if table.strict and len(row) > width else ""
                raise ValueError(f"{len(row)} fields, not {width}{hint}")
            example = _read_row(row, str(number), columns, task, labelled)
        except ValueError as problem:
            if not labelled or isinstance(problem, UnknownLabel):
                raise UserError(f"{path}:{line}: {problem}") from None
            bad.append((line, problem))
            continue
        if example.id in ids:
            repeated.append(f"line {line}, {example.id!r:.40}")
        ids.add(example.id)
        examples.append(example)
    total = len(examples) + len(bad)
    if not total:
        raise UserError(f"{where}: a header but no rows")
    if repeated:
        found = f"{len(repeated)} rows have the id of an earlier row (first: {repeated[0]})"
        log.warning("%s: %s; their predictions cannot be told apart", path, found)
    if bad:
        lines = ", ".join(str(line) for line, _ in bad[:3]) + (", ..." if len(bad) > 3 else "")
        found = f"{len(bad)} of {total} rows cannot be used (line {lines}; first: {bad[0][1]})"
        if len(bad) > MAX_BAD_SHARE * total:
            raise UserError(f"{path}:{bad[0][0]}: {found}; at most 1 % may be")
        log.warning("%s: %s; skipped", path, found)
    return _rescaled(path, examples, table, task, labelled)


def _rescaled(
    path: str | Path, examples: list[Example], table: Table, task: Task, labelled: bool
) -> list[Example]:
    """The examples; scores times 5 if they are those of sentence-transformers' STS-B, from 0 to 1."""
    other = task.other_columns.get(task.label_column)
    header = [name.strip() for name in table.header]
    if not (labelled and examples and task.cosine_scale and other in header and "genre" not in header):
        return examples
    scores = [cast(float, example.label) for example in examples]
    if max(scores) > 1 or {*scores} <= {0.0, 1.0}:
        return examples
    log.warning("%s: scores from 0 to 1, read as %g times as much", path, task.cosine_scale)
    factor = task.cosine_scale
    return [example._replace(label=factor * score) for example, score in zip(examples, scores, strict=True)]


def read_unlabelled(path: str | Path, task: Task) -> list[Example]:
    """Texts without labels: a text a line, or two with a tab between them; or a file in the course's layout.

    The file has the course's layout if its first line names the columns of the task's texts; labels there are
    not read. Blank lines are skipped. Raises UserError with file and line if the file is empty, JSON or not
    UTF-8, or if a line has more or fewer texts than the task.
    """
    text = read_utf8(path)
    if other := text_shape(text):
        what = "JSON; texts without labels stand a text a line" if other.startswith("JSON") else other
        raise UserError(f"{path}:1: {what}")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"{path}:1: the file is empty")
    if set(task.text_columns) <= {name.strip() for name in re.split(r"[\t,]", lines[0][1])}:
        return read_examples(path, task, labelled=False)
    examples = []
    for number, line in lines:
        texts = tuple(text.strip() for text in line.split("\t"))
        if len(texts) != len(task.text_columns) or not all(texts):
            wanted = "one text" if len(task.text_columns) == 1 else "two texts with a tab between them"
            raise UserError(f"{path}:{number}: not {wanted}, as {task.name} has")
        examples.append(Example(str(number), texts, None))
    return examples


def _open_table(path: str | Path, task: Task, labelled: bool) -> tuple[Table, dict[str, int]]:
    """The table in a file, and the position of each column that is read; see `_find_columns`."""
    table = read_table(path)
    columns = _find_columns(f"{path}:{table.header_line}", table, task, labelled)
    if table.separator == "tab":
        used = {table.header[place].strip() for place in columns.values()}
        of_glue = used & {*task.other_columns.values()} or {"index", "genre"} <= {*table.header}
        if of_glue or (task.name not in TASKS and not has_csv_quotes(path)):
            table = read_table(path, quoting=False)
    return table, columns


def _find_columns(where: str, table: Table, task: Task, labelled: bool) -> dict[str, int]:
    """Position of each column that is read, by its name here; `id` is left out where the header has none.

    Raises UserError if a column is missing or occurs twice.
    """
    names = ["id" if name.strip().lower() == "id" else name.strip() for name in table.header]
    needed = [*task.text_columns, *([task.label_column] if labelled else [])]
    columns = {}
    for name in ("id", *needed):
        found = name if name in names else task.other_columns.get(name, name)
        if found in names:
            columns[name] = names.index(found)
        elif name in needed:
            raise UserError(f"{where}: {_missing(name, names, table, task)}")
        if names.count(found) > 1:
            raise UserError(f"{where}: {names.count(found)} columns named {found!r} in the header")
    return columns


def _missing(name: str, names: list[str], table: Table, task: Task | None) -> str:
    """What is wrong with a header that lacks a column, and how to mend it. task: one of TASKS, or None."""
    found = ", ".join(map(repr, names))[:200]
    hint = did_you_mean(name, names)
    if task:  # which of the user's columns is meant is the user's to say
        hint = "; rename the column, or train a task of its own: --train_file FILE --text_column ..."
    if table.separator and (len(names) == 1 or any(";" in other for other in names)):
        hint = "; columns must be separated by tabs or commas"
    elif task and name == task.label_column and "label" in names:
        place = names.index("label")
        values = len({row[place] for _, row in table.rows if len(row) > place})
        texts = " ".join(task.text_columns)
        mend = f"--train_file FILE --text_column {texts} --label_column label"
        kind = f"{len(task.label_names)} classes" if task.label_names else "scores"
        hint = f"; 'label' has {values} values and {task.name} {kind}: train a task of its own, {mend}"
    return f"no column {name!r} in the header (it has {found}){hint}"


def _read_row(row: list[str], number: str, columns: dict[str, int], task: Task, labelled: bool) -> Example:
    """The example in a row as long as the header. number: its id where there is no such column.

    Raises ValueError that says why the row cannot be used.
    """
    fields = {name: row[column].strip() for name, column in columns.items()}
    id = fields.get("id", number)
    if id.splitlines() != [id] or " ," in id:  # a line of a prediction file is `ID , VALUE `
        raise ValueError(f"the id {id[:20]!r} is empty or holds ' ,' or a line break")
    texts = tuple(fields[name] for name in task.text_columns)
    if not labelled:
        return Example(id, texts, None)
    if not all(texts):
        raise ValueError("empty text")
    return Example(id, texts, task.read_label(fields[task.label_column]))


def read_own_record(
    path: str | Path,
    name: str,
    text_columns: abc.Sequence[str] | None,
    label_column: str,
    regression: bool | None,
) -> dict[str, Any]:
    """The record of a task from its training file alone, for `tasks.own_task`: its columns, its labels.

    text_columns: by default the only column beside the label's and `id`; names joined by a comma are two.
    Raises UserError with the file if a column is missing or the labels don't make a task.
    """
    table = read_table(path)
    if table.separator == "tab" and not has_csv_quotes(path):
        table = read_table(path, quoting=False)
    names = [field.strip() for field in table.header]
    where = f"{path}:{table.header_line}"

    def columns(flag: str, given: abc.Sequence[str]) -> list[str]:
        found = [] if set(given) <= set(names) else [part.strip() for part in ",".join(given).split(",")]
        for column in found:
            if column not in names:
                raise UserError(f"{where}: {flag}: {_missing(column, names, table, None)}")
        return found or list(given)

    labels = columns("--label_column", [label_column])
    if len(labels) > 1:
        raise UserError(
            f"--label_column {label_column}: several labels at once are not handled; name one column"
        )
    others = [column for column in names if column not in labels and column.lower() not in ("id", "")]
    if not text_columns and len(others) != 1:
        raise UserError(f"{where}: --text_column must name the column of texts; it has {', '.join(names)}")
    texts = columns("--text_column", text_columns or others)
    if len(texts) > 2 or len({*texts, *labels}) < len(texts) + 1:
        why = "one column, or two for pairs, each other than the label's"
        raise UserError(f"--text_column {' '.join(texts)}: must be {why}")
    place = names.index(labels[0])
    try:
        fields = [row[place] for _, row in table.rows if len(row) > place]
        return own_record(name, texts, labels[0], fields, regression)
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def held_out(examples: list[Example]) -> dict[str, list[Example]]:
    """The rows of a file as `train` and `dev`: one in HELD_OUT at random, of each label its share.

    Every run gets the same ones, whatever its seed.
    """
    order = np.random.default_rng(0).permutation(len(examples)).tolist()
    order.sort(key=lambda place: cast(float, examples[place].label))
    chosen = {*order[min(HELD_OUT, len(order)) // 2 :: HELD_OUT]}
    train = [example for place, example in enumerate(examples) if place not in chosen]
    return {"train": train, "dev": [examples[place] for place in sorted(chosen)]}


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
    texts: list[tuple[str, ...]] = field(default_factory=list)  # of each row; kept for dev files alone

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each row, (rows,)."""
        return np.diff(self.starts)


def tokenize(
    examples: abc.Sequence[Example], task: Task, tokenizer: Tokenizer, max_length: int
) -> TokenizedDataset:
    """`[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]` for every example, at most `max_length` tokens.

    The longer text of a pair is cut first.
    """
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    rows: list[np.ndarray] = []
    segment_starts: list[int] = []
    num_truncated = 0
    pairs = len(task.text_columns) > 1
    texts = [example.texts if pairs else example.texts[0] for example in examples]
    for begin in range(0, len(texts), 1024):  # blocks limit the memory of the tokenizer's own records
        for encoding in tokenizer.encode_batch_fast(texts[begin : begin + 1024]):
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

    rows: np.ndarray  # (B,), positions in the dataset, of all ranks' rows
    input_ids: Tensor  # (B,T) int64
    token_type_ids: Tensor | None  # (B,T) int64; None if all are 0
    attention_mask: Tensor | None  # (B,T) bool, True for real tokens; None if no row is padded
    labels: Tensor | None  # (B,); None if the file has no labels
    num_tokens: int  # real tokens, without padding
    seed: int = 0  # seed of `noise`
    number: int = 0  # of the task's batches in this run: 0, 1, ...
    part: slice = field(default_factory=lambda: slice(None))  # the entries of `rows` that the tensors hold
    weight: float = 1.0  # of this rank's loss: its share of the rows times the number of ranks
    batch_weight: float = 1.0  # factor on the loss: rows / batch size, where --max_tokens allows fewer rows

    @property
    def inputs(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Token ids, mask and segment ids (B,T), the arguments of a model's forward."""
        return self.input_ids, self.attention_mask, self.token_type_ids

    def share(self, rank: int, size: int) -> "Batch":
        """The part of the batch that rank `rank` of `size` computes: every size-th row.

        A rank without rows gets the first row with weight 0.
        """
        if size == 1:
            return self
        count = len(self.rows[rank::size])
        part = slice(rank, None, size) if count else slice(0, 1)
        batch = self._each(lambda tensor: tensor[part])
        return replace(batch, part=part, weight=size * count / len(self.rows))

    def noise(self, embeddings: Tensor) -> Tensor:
        """Standard normal noise for embeddings (B,T,H), fp32 or wider; a row's is the same on every rank.

        Also for embeddings (2B,S,H) after `split_pairs`, where S may differ between the parts of a batch.
        """
        generator = None if embeddings.is_meta else torch.Generator(embeddings.device).manual_seed(self.seed)
        sequences = len(embeddings) // len(self.input_ids)  # per row: 2 after `split_pairs`
        _, tokens, hidden = embeddings.shape
        shape = (len(self.rows), sequences, self.input_ids.shape[1], hidden)  # all ranks' rows
        dtype = torch.promote_types(embeddings.dtype, torch.float32)
        noise = torch.randn(shape, generator=generator, dtype=dtype, device=embeddings.device)
        return noise[self.part, :, :tokens].flatten(0, 1)

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device. Copies to CUDA are asynchronous, from pinned memory."""
        if device.type == "cpu":
            return self
        pinned = device.type == "cuda"
        return self._each(
            lambda tensor: (tensor.pin_memory() if pinned else tensor).to(device, non_blocking=True)
        )

    def _each(self, function: abc.Callable[[Tensor], Tensor]) -> "Batch":
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


def split_pairs(
    input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Each text of the pairs `[CLS] a [SEP] b [SEP]` as a sequence of its own, with a [CLS] before it.

    Ids, mask and segment ids (B,T) -> ids (2B,S) and mask (2B,S); the texts of pair i are rows 2i and 2i+1.
    """
    rows, width = input_ids.shape
    real = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
    second = real.new_zeros(rows) if token_type_ids is None else (token_type_ids * real).sum(1)  # b [SEP]
    first = real.sum(1) - second  # [CLS] a [SEP]
    lengths = torch.stack([first, second + 1], 1)  # (B,2)
    if input_ids.device.type == "cpu":  # reading the number would sync a GPU
        width = int(lengths.max())
    positions = torch.arange(width, device=input_ids.device)  # (S,)
    begins = torch.stack([torch.zeros_like(first), first - 1], 1)  # (B,2)
    sources = begins[:, :, None] + positions  # (B,2,S)
    sources[:, :, 0] = 0  # [CLS]
    mask = positions < lengths[:, :, None]
    ids = input_ids.gather(1, sources.clamp_max(input_ids.shape[1] - 1).flatten(1)).view_as(sources)
    return (ids * mask).flatten(0, 1), mask.flatten(0, 1)


def length_buckets(
    lengths: np.ndarray,
    batch_size: int,
    seed: abc.Sequence[int],
    max_tokens: int | None = None,
    shares: int = 1,
) -> list[np.ndarray]:
    """The batches of one epoch as arrays of row numbers, in random order. Each row occurs once.

    Rows are shuffled and sorted by length, the sorted list is cut into batches, and the batches are shuffled.
    With `max_tokens`, batches of long rows have as many rows as that allows in each of `shares` parts.
    Without, rows that do not fill a batch are taken out before sorting and make a smaller batch: otherwise
    the longest rows would be in it, and have a larger weight in every epoch.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(lengths))
    num_left = 0 if max_tokens else len(order) % batch_size
    left, rest = order[:num_left], order[num_left:]
    rest = rest[np.argsort(lengths[rest], kind="stable")]
    batches = []
    begin = 0
    for end in range(1, len(rest) + 1):
        count = end - begin
        full = count == batch_size or end == len(rest)
        if full or (max_tokens and -(-(count + 1) // shares) * lengths[rest[end]] > max_tokens):
            batches.append(rest[begin:end])
            begin = end
    if num_left:
        batches.append(left)
    return [batches[i] for i in random.permutation(len(batches))]


class Loader:
    """Training batches of one task, numbered 0, 1, 2, ... without end.

    Batch k depends only on the seed and k, so a run can resume at any batch.
    batch_size: rows of the whole batch, which is cut into `shares` parts (ranks, gradient accumulation).
    max_tokens: limit on the padded tokens of a part. Batches with fewer rows get a smaller weight, so every
    row counts the same. Raises UserError if a row is longer than max_tokens.
    """

    def __init__(
        self,
        dataset: TokenizedDataset,
        batch_size: int,
        seed: abc.Sequence[int],
        max_tokens: int | None = None,
        shares: int = 1,
    ):
        longest = int(dataset.lengths.max(initial=0))
        if max_tokens and longest > max_tokens:
            found = f"a row of {dataset.task.name} has {longest} tokens"
            mend = f"take {longest} or more, or cut rows by --max_length {max_tokens}"
            raise UserError(f"--max_tokens {max_tokens}: {found}; {mend}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self.shares = shares
        self.seed = tuple(seed)
        self._epoch: int | None = None  # the epoch of `_batches`
        self._batches: list[np.ndarray] = []
        # the same number in every epoch: it depends on the rows, or on their sorted lengths
        self.batches_per_epoch = len(self.epoch_batches(0)) if max_tokens else -(-len(dataset) // batch_size)

    def epoch_batches(self, epoch: int) -> list[np.ndarray]:
        """Row numbers of each batch of epoch 0, 1, ..."""
        if self._epoch != epoch:
            self._epoch = epoch
            seed = (*self.seed, epoch)
            self._batches = length_buckets(
                self.dataset.lengths, self.batch_size, seed, self.max_tokens, self.shares
            )
        return self._batches

    def padding(self) -> float:
        """Share of padding in the tokens of the first epoch."""
        lengths = self.dataset.lengths
        padded = sum(lengths[rows].max() * len(rows) for rows in self.epoch_batches(0))
        return 1 - lengths.sum() / padded

    def largest_batch(self) -> Batch:
        """The longest rows, as many as a part of a batch can have."""
        longest = int(self.dataset.lengths.max())
        rows = -(-self.batch_size // self.shares)
        if self.max_tokens:
            rows = min(rows, self.max_tokens // longest)
        return collate(self.dataset, np.argsort(-self.dataset.lengths, kind="stable")[:rows])

    def typical_batch(self) -> Batch:
        """A part of that batch of the first epoch whose number of padded tokens is nearest to the mean."""
        batches = self.epoch_batches(0)
        padded = np.array([len(rows) * self.dataset.lengths[rows].max() for rows in batches])
        rows = batches[abs(padded - padded.mean()).argmin()]
        return collate(self.dataset, rows).share(0, self.shares)

    def __getitem__(self, k: int) -> Batch:
        epoch, position = divmod(k, self.batches_per_epoch)
        noise_seed = int(np.random.default_rng((*self.seed, epoch, position)).integers(2**63))
        rows = self.epoch_batches(epoch)[position]
        batch = replace(collate(self.dataset, rows, noise_seed), number=k)
        return replace(batch, batch_weight=len(rows) / self.batch_size) if self.max_tokens else batch


def evaluation_batches(dataset: TokenizedDataset, batch_size: int) -> list[Batch]:
    """All rows once, the longest first: if the first batch fits in memory, all batches do."""
    order = np.argsort(-dataset.lengths, kind="stable")
    return [collate(dataset, order[begin : begin + batch_size]) for begin in range(0, len(order), batch_size)]


# ----------------------------------------------------------------------------------------- the plan


class Plan(NamedTuple):
    """Which batches each step takes.

    steps: of each step of the run the tasks that it trains, each with the number of the task's batch.
    per_epoch: steps of an epoch.
    """

    steps: list[tuple[tuple[str, int], ...]]
    per_epoch: int


def plan_steps(
    loaders: dict[str, Loader],
    tasks: abc.Sequence[str],
    schedule: str,
    epochs: int,
    per_epoch: int | None,
    seed: int,
) -> Plan:
    """The plan of a run.

    Epoch length: batches of the median-sized one of `tasks` times the number of loaders, unless `per_epoch`
    says another. Raises UserError for a plan of more than MAX_STEPS.
    """
    median = round(statistics.median(loaders[name].batches_per_epoch for name in tasks))
    per_epoch = per_epoch or median * (1 if schedule == "joint" else len(loaders))
    if epochs * per_epoch > MAX_STEPS:
        raise UserError(f"--epochs {epochs}: with {per_epoch} steps each, more than {MAX_STEPS:,} steps")
    rows = tuple(len(loader.dataset) for loader in loaders.values())
    length = RunLength(rows, epochs, per_epoch, seed)
    names = tuple(loaders)
    taken: Counter[str] = Counter()
    steps = []
    for epoch in range(epochs):
        for numbers in SCHEDULES[schedule](length, epoch):
            chosen = [names[number] for number in numbers]
            steps.append(tuple((name, taken[name]) for name in chosen))
            taken.update(chosen)
    return Plan(steps, per_epoch)
