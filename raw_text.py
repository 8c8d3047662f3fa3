"""Raw text in, a JSON line for each text out: `--option predict` with `--task`.

    1. blocks_of_lines    --input or standard input -> lists of lines, as many as are there
    2. read_question      a line -> id and texts, or what is wrong with it
    3. answer_all         lists of questions -> evaluation.answers -> JSON lines, in their order

One list of lines is held at a time, so memory does not grow with the input: its peak with a tiny BERT is
342 MiB, for 1,000 lines and for a million. A list is answered together, its rows sorted by length. Beside
batches in the order of the lines, that takes half the time for sst and three quarters for para (MiniLM, fp32,
one core).

Layouts: a line is one text; for a pair task two texts with one tab between them; or, where it starts with
`{"`, a JSON object such as `{"id": "a7", "text": "...", "text_pair": "..."}`. If the first line that is not
blank is JSON, or the file's name ends in .json or .jsonl, then every line must be. There is no header and no
quoting. A byte-order mark is skipped, and lines may end in CR LF.
Not handled: other encodings than UTF-8, lines over 1 MiB.
"""

import contextlib
import json
import logging
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

from tokenizers import Tokenizer
from torch import nn
from tqdm import tqdm

from config import TrainConfig
from datasets import Task
from evaluation import answers, checked_texts
from support import parallel
from support.errors import UserError
from support.files import PART, check_writable, parse_json, stream_of, sync_folder
from tasks import TASKS

log = logging.getLogger("smart_bert")
READ_BYTES = 2**18  # of one read
LONGEST_LINE = 2**20  # bytes
MOST_BATCHES = 16  # of one list of lines
JSON_START = re.compile(rb'\s*\{\s*["}]')
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
CLOSED_PIPE = 141  # the shell's status of a program that SIGPIPE has ended
# texts by row -> answers by row, and how many texts were cut
Answer = Callable[[list[tuple[str, ...]]], tuple[list[dict[str, Any]], int]]


class Question(NamedTuple):
    """One line. id: its own, or the number of the line; error: why there are no texts, or empty."""

    number: int
    id: int | str
    texts: tuple[str, ...]
    error: str = ""


# ------------------------------------------------------------------------------------------ reading


def blocks_of_lines(stream: BinaryIO, batch_size: int) -> Iterator[list[bytes]]:
    """The lines without their ends, in lists of what one read of the stream gives.

    A slow pipe or a keyboard gives few lines at a time, which are answered at once. The first list is one
    batch at most, so that answers come early; later ones are longer, for sorting by length.
    Of a line over LONGEST_LINE bytes only the beginning is kept, one byte more than that.
    """
    limit = batch_size
    rest = b""
    while block := stream.read1(READ_BYTES):  # type: ignore[attr-defined]
        *lines, rest = (rest + block).split(b"\n")
        rest = rest[: LONGEST_LINE + 1]
        while lines:
            yield lines[:limit]
            del lines[:limit]
            limit = min(2 * limit, MOST_BATCHES * batch_size)
    if rest.removeprefix(BYTE_ORDER_MARK):  # an editor's empty file may hold the mark alone
        yield [rest]


def read_question(task: Task, number: int, line: bytes, as_json: bool) -> Question:
    """The id and the texts of a line, or what is wrong with it."""
    id: int | str = number
    try:
        if len(line) > LONGEST_LINE:
            raise ValueError(f"longer than {LONGEST_LINE:,} bytes")
        if not as_json:
            return Question(number, id, checked_texts(task, line.decode().split("\t")))
        record = parse_json("the line", line)
        given = record.get("id")
        if given is not None and (isinstance(given, bool) or not isinstance(given, (int, str))):
            raise ValueError("its id must be a text or a whole number")
        id = number if given is None else given
        texts = [record[name] for name in ("text", "text_pair") if record.get(name) is not None]
        if record.get("text") is None:
            raise ValueError('there is no "text"')
        return Question(number, id, checked_texts(task, texts))
    except UnicodeDecodeError as error:
        return Question(number, id, (), f"not UTF-8 (byte 0x{error.object[error.start]:02x})")
    except ValueError as error:
        return Question(number, id, (), str(error))


def read_questions(
    task: Task, blocks: Iterable[list[bytes]], only_json: bool = False
) -> Iterator[list[Question]]:
    """The questions of lists of lines. only_json: every line must be JSON, whatever the first one is."""
    number = 0
    begun = only_json  # whether the first line that is not blank was seen
    for lines in blocks:
        questions = []
        for line in lines:
            number += 1
            if number == 1:
                line = line.removeprefix(BYTE_ORDER_MARK)
            line = line.removesuffix(b"\r")
            is_json = JSON_START.match(line) is not None
            if not begun and line.strip():
                begun = True
                only_json = is_json
            questions.append(read_question(task, number, line, only_json or is_json))
        yield questions


def count_lines(stream: BinaryIO) -> int | None:
    """The number of lines of a regular file from where it stands; None of anything else."""
    try:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            return None
        begin = stream.tell()
        count = sum(block.count(b"\n") for block in iter(lambda: stream.read(READ_BYTES), b""))
        stream.seek(begin)
        return count
    except OSError:
        return None


def given_questions(task: Task, texts: Sequence[str], seconds: Sequence[str]) -> list[Question]:
    """The questions of --text and --text_pair. Raises UserError that names the flag."""
    if seconds and len(task.text_columns) == 1:
        raise UserError(f"--text_pair: {task.name} takes single texts")
    if len(task.text_columns) == 2 and len(seconds) != len(texts):
        counts = f"there are {len(texts)} --text and {len(seconds)} --text_pair"
        raise UserError(f"--text_pair: {task.name} takes pairs, so give one for each --text; {counts}")
    rows = list(zip(texts, seconds, strict=True)) if seconds else [(text,) for text in texts]
    questions = []
    for number, row in enumerate(rows, start=1):
        try:
            questions.append(Question(number, number, checked_texts(task, row)))
        except ValueError as error:
            raise UserError(f"--text number {number}: {error}") from None
    return questions


class Source(NamedTuple):
    """Where questions come from. total: how many there are, None if unknown; name: for messages."""

    questions: Iterable[list[Question]]
    total: int | None
    name: str


@contextlib.contextmanager
def open_source(config: TrainConfig) -> Iterator[Source]:
    """The questions of --text, --input or standard input. Raises UserError if they can't be read."""
    assert config.task is not None
    task = TASKS[config.task]
    if config.text is not None:
        listed = given_questions(task, config.text, config.text_pair or ())
        yield Source([listed], len(listed), "--text")
        return
    if config.input is None:
        if sys.stdin is None:
            raise UserError("--task: standard input is closed; give --text or --input")
        if sys.stdin.isatty():
            log.warning("reading texts from the keyboard, one a line; Ctrl-D ends")
        opened: contextlib.AbstractContextManager[Any] = contextlib.nullcontext(sys.stdin.buffer)
        name = "standard input"
    else:
        try:
            opened = open(config.input, "rb")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise UserError(f"--input {config.input}: cannot be read ({error.strerror})") from None
        name = config.input
    with opened as stream:
        only_json = Path(name).suffix.lower() in (".json", ".jsonl")
        total = count_lines(stream) if sys.stderr.isatty() else None
        yield Source(read_questions(task, blocks_of_lines(stream, config.batch_size), only_json), total, name)


# ------------------------------------------------------------------------------------------ writing


@contextlib.contextmanager
def open_target(path: str | None, source: str) -> Iterator[TextIO]:
    """Where answers go: the screen, or a file that is replaced when all of them are there.

    They are written to `<path>.part`, which is renamed at the end and removed after an error. A pipe or
    /dev/stdout is written to directly. Raises UserError if nothing can be written there, and if that is the
    `source`, the file that is read.
    """
    if path is None:
        if sys.stdout is None:
            raise UserError("--task: standard output is closed; name a file with --output")
        yield sys.stdout
        return
    check_writable(path, "--output")
    stream = stream_of(path)
    if stream is not None:
        with open(os.dup(stream) if isinstance(stream, int) else stream, "w", encoding="utf-8") as reader:
            yield reader
        return
    real = os.path.realpath(path)  # a link stays a link
    part = f"{real}{PART}"
    if os.path.realpath(source) in (real, part):
        raise UserError(f"--output {path}: would be written over --input")
    try:
        os.makedirs(os.path.dirname(real), exist_ok=True)
        file = open(part, "w", encoding="utf-8")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written ({error.strerror})") from None
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, real)
        sync_folder(Path(real).parent)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def _write(out: TextIO, lines: list[str]) -> None:
    """Write the lines and wait until they are out. Raises BrokenPipeError, or UserError for another cause."""
    try:
        out.write("".join(lines))
        out.flush()
    except OSError as error:
        # what the buffer still holds would fail once more at exit
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        where = "standard output" if out is sys.stdout else f"--output {out.name}"
        raise UserError(f"{where}: cannot be written ({error.strerror or error})") from None


def answer_all(
    config: TrainConfig,
    open_checkpoint: Callable[[TrainConfig], tuple[TrainConfig, nn.Module, Tokenizer, dict]],
) -> int:
    """Write a JSON line for each text, in order. Returns the exit status.

    It is 0, or 1 if a text had no answer, or that of a closed pipe. A line is `{"id": ..., ...}` with what
    `evaluation.answers` says, or with `error`. Source and target are opened before the model, which takes
    seconds. Raises UserError if one of the three can't be.
    """
    if parallel.size() > 1:
        raise UserError("--task: one process answers; start it without torchrun")
    try:
        with open_source(config) as source, open_target(config.output, source.name) as out:
            config, model, tokenizer, _ = open_checkpoint(config)
            task = TASKS[str(config.task)]
            answer = partial(answers, model, tokenizer, task, config.max_length, config.batch_size)
            return 1 if answer_source(source, answer, out) else 0
    except BrokenPipeError:
        return CLOSED_PIPE


def answer_source(source: Source, answer: Answer, out: TextIO) -> int:
    """Answer every question of the source. Returns how many had no answer, which a warning says, too."""
    total = 0
    num_cut = 0
    num_bad = 0
    first_bad: Question | None = None
    silent = parallel.bar_disabled() if source.total is not None and not out.isatty() else True
    with tqdm(desc="answering", total=source.total, unit="text", disable=silent, leave=False) as bar:
        for questions in source.questions:
            found, cut = answer([question.texts for question in questions if not question.error])
            good = iter(found)
            said = [{"error": question.error} if question.error else next(good) for question in questions]
            pairs = zip(questions, said, strict=True)
            _write(out, [json.dumps({"id": question.id, **answered}) + "\n" for question, answered in pairs])
            bad = [question for question in questions if question.error]
            first_bad = first_bad or (bad[0] if bad else None)
            num_bad += len(bad)
            num_cut += cut
            total += len(questions)
            bar.update(len(questions))
    if not total:
        log.warning("%s: no text, so no answer", source.name)
    if num_cut:
        log.warning("%s: %d of %d texts were cut to max_length", source.name, num_cut, total)
    if first_bad:
        words = "%s:%d: %s; %d of %d lines have an error in place of an answer"
        log.warning(words, source.name, first_bad.number, first_bad.error, num_bad, total)
    return num_bad
