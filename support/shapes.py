"""What a file is that holds no table: said in a few words, with a way to make a table of it.

bytes ─ binary_shape ─> "an Excel workbook, not a text; ..." or None
text  ─ text_shape ──> "JSON lines with ..., not a table; ..." or None
"""

import json
import re

PANDAS = "in pandas: {}.to_csv('rows.csv', index=False)"
EXCEL = "save the sheet as 'CSV UTF-8 (comma delimited)'"
UNPACK = "unpack it"
BINARY = (  # first bytes, what the file is, how to mend it
    ((b"PAR1",), "a Parquet file", PANDAS.format("read_parquet(path)")),
    ((b"ARROW1",), "a Feather (Arrow) file", PANDAS.format("read_feather(path)")),
    ((b"\xff\xff\xff\xff",), "an Arrow file", "write it by to_csv of Hugging Face's Dataset"),
    ((b"\xd0\xcf\x11\xe0",), "an old Excel or Word file", EXCEL),
    ((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"(\xb5/\xfd"), "a compressed file", UNPACK),
    ((b"\x80\x03", b"\x80\x04", b"\x80\x05"), "a Python pickle", PANDAS.format("read_pickle(path)")),
    ((b"%PDF",), "a PDF", "copy its table into a text file"),
)
ZIPPED = (  # a name within a zip archive, what the file is, how to mend it
    (b"xl/", "an Excel workbook", EXCEL),
    (b"word/", "a Word document", "copy its table into a text file"),
    (b"opendocument.spreadsheet", "an OpenDocument spreadsheet", "save the sheet as CSV in UTF-8"),
    (b"", "a zip archive", UNPACK),
)


def binary_shape(data: bytes) -> str | None:
    """What the content of a file is, if it is no UTF-8 text."""
    if data.startswith(b"PK\x03\x04"):
        _, what, mend = next(row for row in ZIPPED if row[0] in data)
        return f"{what}, not a text file; {mend}"
    for starts, what, mend in BINARY:
        if data.startswith(starts):
            return f"{what}, not a text file; {mend}"
    zeros = [data[first:2000:2].count(0) for first in (0, 1)]
    # without a byte-order mark: every second byte of most alphabets is 0
    half = min(len(data), 2000) / 2
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or max(zeros) > 0.6 * half > 3 > 10 * min(zeros):
        return "a text in UTF-16, not in UTF-8; save it in UTF-8, or run: iconv -f UTF-16 -t UTF-8"
    return None


def text_shape(text: str) -> str | None:
    """What a text is, if it is no table: JSON or a web page."""
    start = text.lstrip()
    if re.match(r"<(!doctype|html|\?xml)", start[:20], re.IGNORECASE):
        return "a web page or XML, not a table; download the file itself, not the page that shows it"
    if not re.match(r'(\{|\[\s*[\[{])\s*"', start[:200]):
        return None
    try:
        rows = json.loads(start.partition("\n")[0])
    except (ValueError, RecursionError):
        rows = None
    if isinstance(rows, dict):
        keys = ", ".join(map(repr, rows))[:150]
        return f"JSON lines with {keys}, in a file whose name does not say so; rename it to .jsonl"
    way = PANDAS.format("read_json(path)")
    return f"JSON, not a table; rename it to .json if it is a list of objects, or {way}"
