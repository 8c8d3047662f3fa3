"""Tables in text files: a header line and rows of fields, separated by tabs or commas, with CSV quoting.

    file ─ read_table ─> Table(separator, header, rows)

A file whose name ends in .jsonl or .json holds a JSON object a row instead, or a list of them.
Knows no task. Not handled: other separators, other encodings than UTF-8.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from support.errors import UserError, one_line
from support.files import parse_json, read_bytes
from support.shapes import binary_shape, text_shape

JSON_ENDINGS = (".jsonl", ".json")
SEPARATORS = {"tab": "\t", "comma": ","}


class Table(NamedTuple):
    """A file's header and its rows, without blank lines.

    separator: "tab" or "comma", or "" of a JSON file. strict: quoting must be proper, and a quoted text may
    hold the separator; files with a tab in the header, the course's, are read more loosely.
    rows: (line number where the row starts, its fields); iterating raises UserError with file and line at an
    open quote.
    """

    separator: str
    strict: bool
    header_line: int
    header: list[str]
    rows: Iterator[tuple[int, list[str]]]


def read_utf8(path: str | Path) -> str:
    """The text of a file, without a byte-order mark.

    Raises UserError that says what the file is instead, or which line is not UTF-8.
    """
    data = read_bytes(path)
    if other := binary_shape(data):
        raise UserError(f"{path}:1: {other}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start]  # without the byte-order mark
        line = 1 + before.count(b"\n") + before.count(b"\r") - before.count(b"\r\n")
        wrong = f"not UTF-8 (byte 0x{error.object[error.start]:02x})"
        raise UserError(f"{path}:{line}: {wrong}; save it in UTF-8") from None


def read_table(path: str | Path, quoting: bool = True) -> Table:
    """The table in a file. The header decides: tabs separate if one is in it, else commas if one is in it.

    A file of one column counts as tab-separated, so its texts may hold commas without quotes.
    quoting: without it a quote is a letter like others where tabs separate.
    Raises UserError with file and line if the file cannot be read, is empty or has another shape.
    """
    text = read_utf8(path)
    if str(path).lower().endswith(JSON_ENDINGS):
        return _json_table(path, text)
    if other := text_shape(text):
        raise UserError(f"{path}:1: {other}")
    csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters is too small for long documents
    names: list[str] = next(filter(None, csv.reader(io.StringIO(text, newline=""))), [])
    strict = not any("\t" in name for name in names)
    separator = "comma" if strict and len(names) > 1 else "tab"
    rows = _rows(path, text, separator, strict, quoting or strict)
    header_line, header = next(rows, (1, None))
    if header is None:
        raise UserError(f"{path}:1: the file is empty")
    return Table(separator, strict, header_line, header, rows)


def has_csv_quotes(path: str | Path) -> bool:
    """Whether every quote in a tab-separated file is CSV's: GLUE's files have others, which mean nothing."""
    reader = csv.reader(io.StringIO(read_utf8(path), newline=""), delimiter="\t", strict=True)
    try:
        return not any("\t" in field for row in reader for field in row)
    except csv.Error:
        return False


def _json_table(path: str | Path, text: str) -> Table:
    """The objects of a JSON file as rows; the header holds every name that one of them has."""
    if text.lstrip().startswith("["):
        try:
            objects = list(enumerate(json.loads(text), start=1))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not JSON ({one_line(error)})") from None
        if wrong := next((n for n, value in objects if not isinstance(value, dict)), None):
            raise UserError(f"{path}: entry {wrong} of its list is not an object")
    else:
        lines = enumerate(text.split("\n"), start=1)
        objects = [(n, parse_json(f"{path}:{n}", line.encode())) for n, line in lines if line.strip()]
    if not objects:
        raise UserError(f"{path}:1: the file is empty")
    header = list(dict.fromkeys(name for _, value in objects for name in value))
    rows = ((line, [_json_field(value.get(name)) for name in header]) for line, value in objects)
    return Table("", False, 1, header, rows)


def _json_field(value: Any) -> str:
    """A JSON value as a field of a table; a list or an object stays JSON, null is empty."""
    if isinstance(value, str):  # half of a surrogate pair, which JSON can hold, is no UTF-8
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return "" if value is None else json.dumps(value)


def _rows(
    path: str | Path, text: str, separator: str, strict: bool, quoting: bool = True
) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number where the row starts, fields), the header first, without blank lines.

    Raises UserError with file and line at an open quote.
    """
    lines = list(io.StringIO(text, newline=""))
    reader = csv.reader(
        lines,
        delimiter=SEPARATORS[separator],
        quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE,
        strict=strict,  # an error if text follows a closing quote, or the file ends within quotes
        skipinitialspace=strict,  # `1, "a text, with a comma"`
    )
    line = 1
    width = 0  # number of fields in the header
    try:
        for row in reader:
            width = width or len(row)
            # an open quote joins lines, so the row has more fields than the header
            swallowed = reader.line_num > line and any(row[width:])
            if swallowed:
                raise csv.Error
            if not strict and any("\t" in field for field in row):
                _check_quotes(lines[line - 1 : reader.line_num])
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error:
        quotes = "a quote is not closed or not doubled"
        hint = f", or a text that holds a {separator} is not in quotes" if strict else ""
        raise UserError(f"{path}:{line}: {quotes}{hint}") from None


def _check_quotes(lines: list[str]) -> None:
    """Raises csv.Error if the lines of a row with a tab in a field are not one line with proper quotes.

    A tab and a line break together are more often an open quote that a later row closes.
    """
    if len(lines) > 1:
        raise csv.Error
    next(csv.reader(lines, delimiter="\t", strict=True))
