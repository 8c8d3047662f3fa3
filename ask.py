"""Texts in, a JSON line for each text out: `--option predict` with `--task`.

    1. open_source    --text, --input or standard input -> lists of lines, as many as are there
    2. read_line      a line -> id and texts, or what is wrong with it
    3. answer_all     lists of lines -> evaluation.answers -> JSON lines, in their order

A line is one text; for a pair task two texts with a tab between them; or a JSON object such as
`{"id": "a7", "text": "...", "text_pair": "..."}`. All lines are JSON if the first one is, or if the
file's name ends in .json or .jsonl. One list of lines is held at a time: memory does not grow with the input.
Not handled: other encodings than UTF-8.
"""

import codecs
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

from tokenizers import Tokenizer
from torch import nn
from tqdm import tqdm

from config import TrainConfig
from datasets import Task
from evaluation import answers, checked_texts
from support import parallel
from support.errors import UserError
from support.files import atomic_write, check_writable, parse_json
from tasks import TASKS

log = logging.getLogger("smart_bert")
READ_BYTES = 2**18  # of one read
BATCHES = 16  # of one list of lines, whose rows are sorted by length
CLOSED_PIPE = 141  # the shell's status of a program that SIGPIPE has ended


class Question(NamedTuple):
    """One line. id: its own, or the number of the line; error: why there are no texts, or empty."""

    id: object
    texts: tuple[str, ...]
    error: str = ""


def blocks_of_lines(stream: BinaryIO, count: int) -> Iterator[list[bytes]]:
    """The lines, at most `count` in a list. A slow pipe gives few at a time, which are answered at once."""
    rest = b""
    while block := stream.read1(READ_BYTES):  # type: ignore[attr-defined]
        *lines, rest = (rest + block).split(b"\n")
        for begin in range(0, len(lines), count):
            yield lines[begin : begin + count]
    if rest:
        yield [rest]


def read_line(task: Task, number: int, line: bytes, is_json: bool) -> Question:
    """The id and the texts of a line, or what is wrong with it."""
    id: object = number
    try:
        if not is_json:
            return Question(id, checked_texts(task, line.decode().split("\t")))
        record = parse_json("the line", line)
        id = number if record.get("id") is None else record["id"]
        second = [] if record.get("text_pair") is None else [record["text_pair"]]
        return Question(id, checked_texts(task, [record.get("text"), *second]))
    except ValueError as error:
        return Question(id, (), str(error))


def read_questions(task: Task, stream: BinaryIO, count: int, is_json: bool) -> Iterator[list[Question]]:
    """The questions of a stream of lines. is_json: every line must be JSON, whatever the first one is."""
    number = 0
    for lines in blocks_of_lines(stream, count):
        if number == 0:
            lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
            first = next(filter(bytes.strip, lines), b"")  # that is not blank
            is_json = is_json or first.replace(b" ", b"").startswith(b'{"')
        yield [read_line(task, n, line, is_json) for n, line in enumerate(lines, start=number + 1)]
        number += len(lines)


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
            questions.append(Question(number, checked_texts(task, row)))
        except ValueError as error:
            raise UserError(f"--text number {number}: {error}") from None
    return questions


@contextlib.contextmanager
def open_source(config: TrainConfig, task: Task) -> Iterator[tuple[str, Iterator[list[Question]]]]:
    """A name for messages and the questions of --text, --input or standard input. Raises UserError."""
    if config.text is not None:
        yield "--text", iter([given_questions(task, config.text, config.text_pair or ())])
        return
    count = BATCHES * config.batch_size
    if config.input is None:
        if sys.stdin.isatty():
            log.warning("reading texts from the keyboard, one a line; Ctrl-D ends")
        yield "standard input", read_questions(task, sys.stdin.buffer, count, is_json=False)
        return
    try:
        stream = open(config.input, "rb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UserError(f"--input {config.input}: cannot be read ({error.strerror})") from None
    with stream:
        is_json = config.input.lower().endswith((".json", ".jsonl"))
        yield config.input, read_questions(task, stream, count, is_json)


def answer_all(
    config: TrainConfig,
    open_checkpoint: Callable[[TrainConfig], tuple[TrainConfig, nn.Module, Tokenizer, dict]],
) -> int:
    """Write a JSON line for each text, in order, to --output or the screen. Returns the exit status.

    It is 0, or 1 if a text had no answer, or that of a closed pipe. A line is `{"id": ..., ...}` with what
    `evaluation.answers` says, or with `error`. Source and target are opened before the model, which takes
    seconds. Raises UserError if one of the three can't be.
    """
    if parallel.size() > 1:
        raise UserError("--task: one process answers; start it without torchrun")
    task = TASKS[str(config.task)]
    if config.output is not None:
        check_writable(config.output, "--output")
        if config.input and os.path.realpath(config.input) == os.path.realpath(config.output):
            raise UserError(f"--output {config.output}: would be written over --input")
    target = atomic_write(config.output, "w") if config.output else contextlib.nullcontext(sys.stdout)
    total = num_cut = num_bad = 0
    first_bad = ""
    try:
        with open_source(config, task) as (source, questions), target as out:
            config, model, tokenizer, _ = open_checkpoint(config)
            # a bar where stderr is a terminal and the answers go elsewhere
            bar = tqdm(desc="answering", unit="text", disable=out.isatty() or None, leave=False)
            for block in questions:
                good = [question.texts for question in block if not question.error]
                found, cut = answers(model, tokenizer, task, config.max_length, config.batch_size, good)
                answer = iter(found)
                for number, question in enumerate(block, start=total + 1):
                    said = {"error": question.error} if question.error else next(answer)
                    out.write(json.dumps({"id": question.id, **said}) + "\n")
                    if question.error:
                        num_bad += 1
                        first_bad = first_bad or f"{source}:{number}: {question.error}"
                out.flush()
                total += len(block)
                num_cut += cut
                bar.update(len(block))
            bar.close()
    except OSError as error:
        # what the buffer of the screen still holds would fail once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise
        return CLOSED_PIPE
    if not total:
        log.warning("%s: no text, so no answer", source)
    if num_cut:
        log.warning("%s: %d of %d texts were cut to max_length", source, num_cut, total)
    if num_bad:
        log.warning("%s; %d of %d lines have an error in place of an answer", first_bad, num_bad, total)
    return 1 if num_bad else 0
