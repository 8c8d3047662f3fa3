"""Texts in, a JSON line for each text out: `--option predict` with `--task`.

    1. open_source    --text, --input or standard input -> a stream of lines
    2. read_line      a line -> id and texts, or what is wrong with it
    3. answer_all     lines -> evaluation.answers -> JSON lines, in their order

A line is one text; for a pair task two texts with a tab between them; or a JSON object such as
`{"id": "a7", "text": "...", "text_pair": "..."}`. All lines are JSON if the first one is, or if the
file's name ends in .json or .jsonl. One list of lines is held at a time: memory does not grow with the input.
Not handled: other encodings than UTF-8.
"""

import codecs
import contextlib
import io
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from torch import nn
from tqdm import tqdm

from config import TrainConfig
from datasets import Task
from evaluation import answers, checked_texts
from support import parallel
from support.errors import UserError
from support.files import atomic_write, check_writable, parse_json
from support.shapes import binary_shape
from tasks import task_table

log = logging.getLogger("smart_bert")
READ_BYTES = 2**18  # of one read
BATCHES = 16  # of one list of lines, whose rows are sorted by length
CLOSED_PIPE = 141  # the shell's status of a program that SIGPIPE has ended


class Question(NamedTuple):
    """One line. id: its own, or the number of the line; error: why there are no texts, or empty."""

    id: object
    texts: tuple[str, ...]
    error: str = ""


@contextlib.contextmanager
def open_source(config: TrainConfig, task: Task) -> Iterator[tuple[str, Any, bool]]:
    """A name for messages, the stream of lines, and whether all of them must be JSON."""
    if config.text:
        pairs = itertools.zip_longest(config.text, config.text_pair or ())
        lines = [json.dumps({"text": text, "text_pair": pair}) for text, pair in pairs]
        for line in lines:  # a mistake on the command line costs no model
            if problem := read_line(task, 1, line.encode(), True).error:
                raise UserError(f"--text: {problem}")
        yield "--text", io.BytesIO("\n".join(lines).encode()), True
    elif config.input:
        with open(config.input, "rb") as stream:
            if other := binary_shape(stream.peek()):
                raise UserError(f"--input {config.input}: {other}")
            yield config.input, stream, config.input.lower().endswith((".json", ".jsonl"))
    else:
        if sys.stdin.isatty():
            log.warning("reading texts from the keyboard, one a line; Ctrl-D ends")
        yield "standard input", sys.stdin.buffer, False


def blocks_of_lines(stream: Any, count: int) -> Iterator[list[bytes]]:
    """The lines, at most `count` in a list. A slow pipe gives few at a time, which are answered at once."""
    rest = b""
    while block := stream.read1(READ_BYTES):
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


def read_questions(task: Task, stream: Any, is_json: bool, count: int) -> Iterator[list[Question]]:
    """The questions of a stream of lines, at most `count` in a list."""
    number = 0
    for lines in blocks_of_lines(stream, count):
        if number == 0:
            lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
            first = next(filter(bytes.strip, lines), b"")  # that is not blank
            is_json = is_json or first.replace(b" ", b"").startswith(b'{"')
        yield [read_line(task, n, line, is_json) for n, line in enumerate(lines, start=number + 1)]
        number += len(lines)


def answer_all(
    config: TrainConfig,
    open_checkpoint: Callable[[TrainConfig], tuple[TrainConfig, nn.Module, Tokenizer, dict]],
) -> int:
    """Write a JSON line for each text, in order, to --output or the screen. Returns the exit status.

    It is 0, or 1 if a text had no answer, or that of a closed pipe. A line is `{"id": ..., ...}` with what
    `evaluation.answers` says, or with `error`. Source and target are opened before the model, which takes
    seconds. Raises UserError or OSError if one of the three can't be.
    """
    if parallel.size() > 1:
        raise UserError("--task: one process answers; start it without torchrun")
    task = task_table(config.own)[str(config.task)]
    if config.output:
        check_writable(config.output, "--output")
        if config.input and os.path.realpath(config.input) == os.path.realpath(config.output):
            raise UserError(f"--output {config.output}: would be written over --input")
    target = atomic_write(config.output, "w") if config.output else contextlib.nullcontext(sys.stdout)
    total = num_cut = num_bad = 0
    first_bad = ""
    try:
        with open_source(config, task) as (source, stream, is_json), target as out:
            config, model, tokenizer, _ = open_checkpoint(config)
            # a bar where stderr is a terminal and the answers go elsewhere
            bar = tqdm(desc="answering", unit="text", disable=out.isatty() or None, leave=False)
            for block in read_questions(task, stream, is_json, BATCHES * config.batch_size):
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
    except BrokenPipeError:  # `| head` has ended
        # what the screen's buffer still holds would fail once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    if not total:
        log.warning("%s: no text, so no answer", source)
    if num_cut:
        log.warning("%s: %d of %d texts were cut to max_length", source, num_cut, total)
    if num_bad:
        log.warning("%s; %d of %d lines have an error in place of an answer", first_bad, num_bad, total)
    return 1 if num_bad else 0
