"""Tables in text files: a header line and rows of fields, separated by tabs or commas, with CSV quoting.

    file ─ read_table ─> Table(separator, header, rows)

Knows no task. Not handled: other separators, other encodings than UTF-8.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from support.errors import UserError
from support.files import read_bytes
from support.shapes import binary_shape, text_shape

SEPARATORS = {"tab": "\t", "comma": ","}


class Table(NamedTuple):
    """A file's header and its rows, without blank lines.

    separator: "tab" or "comma". strict: quoting must be proper, and a quoted text may hold the separator;
    files with a tab in the header, the course's, are read more loosely. rows: (line number where the row
    starts, its fields); iterating raises UserError with file and line at an open quote.
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


def read_table(path: str | Path) -> Table:
    """The table in a file. The header decides: tabs separate if one is in it, else commas if one is in it.

    A file of one column counts as tab-separated, so its texts may hold commas without quotes.
    Raises UserError with file and line if the file cannot be read, is empty or has another shape.
    """
    text = read_utf8(path)
    if other := text_shape(text):
        raise UserError(f"{path}:1: {other}")
    csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters is too small for long documents
    names: list[str] = next(filter(None, csv.reader(io.StringIO(text, newline=""))), [])
    strict = not any("\t" in name for name in names)
    separator = "comma" if strict and len(names) > 1 else "tab"
    rows = _rows(path, text, separator, strict)
    header_line, header = next(rows, (1, None))
    if header is None:
        raise UserError(f"{path}:1: the file is empty")
    return Table(separator, strict, header_line, header, rows)


def _rows(path: str | Path, text: str, separator: str, strict: bool) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number where the row starts, fields), the header first, without blank lines.

    Raises UserError with file and line at an open quote.
    """
    lines = list(io.StringIO(text, newline=""))
    reader = csv.reader(
        lines,
        delimiter=SEPARATORS[separator],
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
