"""Real data from the Hugging Face hub, in the course's layout.

    python -m data.download

    find_commit ─> commit ─ fetch ─> *.jsonl or *.tsv, in the hub's own cache
    ─ read_records ─> records ─ course_file ─> the text of <data_dir>/<stem>-<split>.csv
    and <data_dir>/download.json, which says where each file is from

A file that is there already is kept, so the same command goes on after a break. data/README.md says which
rows differ from the course's. Fields, labels and numbers of rows were looked up on 2026-11-27, on the stored
pages of the data sets. Not handled: private data sets.
"""

import csv
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from config import Parser, did_you_mean
from run_files import RECORD
from support.errors import UserError, exit_status, one_line
from support.files import check_writable, parse_json, read_json, write_text
from support.tables import read_utf8
from tasks import TASKS, Task

SPLITS = ("train", "dev", "test")
Record = dict[str, Any]  # a row of a data set, by the names of its fields

# ------------------------------------------------------------------------------------------ sources


class Source(NamedTuple):
    """A data set of the hub that has the rows of a task."""

    dataset: str
    commit: str  # the commit whose rows were counted, or how it begins
    files: tuple[str, str, str]  # of train, dev, test
    rows: tuple[int, int, int]  # of train, dev, test at that commit
    text_fields: tuple[str, ...]  # one for each text column of the task
    label_field: str
    label: Callable[[Any], str]  # the field's value -> label as the course writes it; raises ValueError
    names: tuple[str, ...] = ()  # what the field label_text calls the classes, where there is such a field
    test_limit: int | None = None  # only so many test rows are taken, the first ones


def classes(count: int, as_written: type = int) -> Callable[[Any], str]:
    """A label that is one of the whole numbers below `count`, written as an int or as a float."""

    def label(value: Any) -> str:
        if isinstance(value, bool) or value not in range(count):
            raise ValueError(f"label {value!r:.40} is not one of 0 to {count - 1}")
        return str(as_written(value))

    return label


def sts_label(value: Any) -> str:
    """0.0 to 5.0. The hub has 3.8 as the 32-bit float 3.7999999523; the benchmark has three decimals."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 5:
        raise ValueError(f"label {value!r:.40} is not a number from 0 to 5")
    return str(round(float(value), 3))


def cfimdb_label(value: Any) -> str:
    """0 (negative) or 1 (positive)."""
    if value not in ("Negative", "Positive"):
        raise ValueError(f"Sentiment {value!r:.40} is not Negative or Positive")
    return "1" if value == "Positive" else "0"


JSON_LINES = ("train.jsonl", "validation.jsonl", "test.jsonl")
SOURCES = {
    "sst": Source(
        "SetFit/sst5",
        "e51bdcd8cd3a30da231967c1a249ba59361279a3",
        ("train.jsonl", "dev.jsonl", "test.jsonl"),
        (8544, 1101, 2210),
        ("text",),
        "label",
        classes(5),
        TASKS["sst"].label_names,
    ),
    "sts": Source(
        "SetFit/stsb",
        "77bd85cf73a244d4503e477ce6de81196187839f",
        JSON_LINES,
        (5749, 1500, 1379),
        ("text1", "text2"),
        "label",
        sts_label,
    ),
    "cfimdb": Source(
        "tasksource/counterfactually-augmented-imdb",
        "fd42efb815508d02beb7d478eae41a8a2e7100a3",
        ("train.tsv", "dev.tsv", "test.tsv"),
        (1707, 245, 488),
        ("Text",),
        "Sentiment",
        cfimdb_label,
    ),
    "para": Source(  # the largest comes last
        "SetFit/qqp",
        "df33eff",
        JSON_LINES,
        (363846, 40430, 390965),
        ("text1", "text2"),
        "label",
        classes(2, float),
        ("not duplicate", "duplicate"),
        test_limit=40431,  # as many as the course's; all would take an hour to predict on a CPU
    ),
}

# ------------------------------------------------------------------------------------------ the hub


def find_commit(dataset: str, revision: str) -> str:
    """The commit that a revision of a data set stands for. Raises UserError if the hub has none."""
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        # without a network this fails at once; a download would retry for a minute
        sha = huggingface_hub.HfApi(_endpoint()).dataset_info(dataset, revision=revision, timeout=10).sha
    except RevisionNotFoundError:
        hint = "each data set has commits of its own: --tasks sst --revision COMMIT"
        raise UserError(f"--revision {revision}: {dataset} has no such revision; {hint}") from None
    except RepositoryNotFoundError:
        raise UserError(f"{dataset}: {_endpoint()} has no such public data set") from None
    except Exception as error:  # no network, HF_HUB_OFFLINE, a proxy's answer: the user has to act
        raise _unreachable(dataset, error) from None
    assert sha is not None
    return sha


def fetch(dataset: str, file: str, commit: str) -> Path:
    """Path of a data set's file in the hub's cache; an interrupted download is continued.

    Raises UserError if it cannot be fetched.
    """
    import huggingface_hub

    try:
        path = huggingface_hub.hf_hub_download(
            dataset, file, repo_type="dataset", revision=commit, endpoint=_endpoint()
        )
    except Exception as error:  # as above, no such file, or a full disk
        raise _unreachable(f"{dataset}, {file} at commit {commit:.7}", error) from None
    return Path(path)


def _endpoint() -> str:
    """Address of the hub. The library reads HF_ENDPOINT once, when it is imported; this reads it now."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def _unreachable(what: str, error: Exception) -> UserError:
    why = f"{type(error).__name__}: {one_line(error):.150}"
    mend = "what is written stays; the same command goes on"
    return UserError(f"{what}: cannot be fetched from {_endpoint()} ({why}); {mend}")


# --------------------------------------------------------------------------- the course's layout


def read_records(where: str, path: Path) -> Iterator[tuple[int, Record]]:
    """The records of a file of JSON lines, or of a .tsv with a header, each with its line number.

    where: what messages call the file.
    """
    text = read_utf8(path)
    if where.endswith(".tsv"):
        csv.field_size_limit(2**31 - 1)  # reviews are long
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t")
        yield from ((reader.line_num, record) for record in reader)
        return
    for line, row in enumerate(text.split("\n"), start=1):
        if row.strip():
            yield line, parse_json(f"{where}:{line}", row.encode())


def course_file(
    task: Task, source: Source, split: str, where: str, records: Iterable[tuple[int, Record]]
) -> tuple[str, int, int]:
    """A file of the hub in the course's layout, its rows, and how many rows the hub's file has.

    Raises UserError, with the line, for a row that has no such texts or label.
    """
    labelled = split != "test"
    rows: list[list[str]] = []
    count = 0
    for line, record in records:
        count += 1
        if not labelled and source.test_limit is not None and count > source.test_limit:
            continue
        try:
            texts = [_one_line(field, record[field]) for field in source.text_fields]
            label = [_label(source, record)] if labelled else []
        except KeyError as error:
            raise UserError(f"{where}:{line}: no field {error} (it has {', '.join(record)})") from None
        except ValueError as error:
            raise UserError(f"{where}:{line}: {error}") from None
        rows.append([str(len(rows)), course_id(task.name, split, len(rows), texts), *texts, *label])
    header = ["", "id", *task.text_columns, *([task.label_column] if labelled else [])]
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter="\t", lineterminator="\n").writerows([header, *rows])
    return buffer.getvalue(), len(rows), count


def _label(source: Source, record: Record) -> str:
    """The label as the course writes it, after a check that its name is the one that we know."""
    value = record[source.label_field]
    label = source.label(value)
    name = record.get("label_text")
    if source.names and name is not None and name.casefold() != source.names[int(value)]:
        raise ValueError(f"label {value} is called {name!r:.40}, not {source.names[int(value)]!r}")
    return label


def _one_line(field: str, text: object) -> str:
    """The text without the tabs and line breaks that would end a field of the course's files."""
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{field} {text!r:.40} is not a text")
    return re.sub(r"[\t\r\n]+", " ", text or "")


def course_id(*parts: object) -> str:
    """An id in the course's form, 25 hexadecimal digits, that is the same in every download."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:25]


# ------------------------------------------------------------------------------------------ program


def download(names: Sequence[str], folder: Path, revision: str) -> None:
    """Fetch what is missing of each task's files. Raises UserError; the files that are finished stay."""
    check_writable(folder / RECORD, "--data_dir")
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    for name in names:
        paths = {split: folder / TASKS[name].filename(split) for split in SPLITS}
        kept = [path for path in paths.values() if os.path.lexists(path)]
        for path in kept:
            entry = record.get(path.name)
            origin = (
                f"{entry['dataset']} at commit {entry['commit'][:12]}" if entry else "not from this program"
            )
            print(f"{path}: kept, {origin}")
        if len(kept) == len(paths):
            continue
        dataset = SOURCES[name].dataset
        commit = find_commit(dataset, revision)
        print(f"{name}: {dataset} at commit {commit}")
        if any(path.name not in record for path in kept):
            print(f"{name}: the kept files are from elsewhere, so rows of one file may be in another, too")
        for split, path in paths.items():
            if path not in kept:
                record[path.name] = write_split(name, split, commit, path)
                write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")


def write_split(name: str, split: str, commit: str, target: Path) -> Record:
    """Write one file. Returns what `download.json` says of it. Raises UserError."""
    source = SOURCES[name]
    file, expected = dict(zip(SPLITS, zip(source.files, source.rows, strict=True), strict=True))[split]
    where = f"{source.dataset}/{file}"
    records = read_records(where, fetch(source.dataset, file, commit))
    text, rows, count = course_file(TASKS[name], source, split, where, records)
    if count != expected:
        found = f"{where}: {count:,} rows, and {expected:,} at commit {source.commit[:7]}"
        if not count or commit.startswith(source.commit):
            raise UserError(f"{found}; the file is damaged, or is another")
        print(f"{found}: the data set has changed since this program was written")
    write_text(target, text)
    print(f"{target}: {rows:,} rows")
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"dataset": source.dataset, "file": file, "commit": commit, "rows": rows, "sha256": digest}


def task_names(words: Sequence[str]) -> list[str]:
    """The tasks that are named, separated by commas or spaces. Raises UserError for an unknown one."""
    names = re.split(r"[\s,]+", " ".join(words))
    for name in names:
        if name not in SOURCES:
            hint = did_you_mean(name, SOURCES)
            raise UserError(f"--tasks {name[:40]}: must be one or more of {', '.join(SOURCES)}{hint}")
    return list(dict.fromkeys(names))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    parser = Parser(
        prog="data.download",
        description="Fetch real data from the Hugging Face hub, and write them in the course's layout.",
        usage="python -m data.download [--flag value ...]",
    )
    tasks = f"of {', '.join(SOURCES)} (default: all)"
    parser.add_argument("--tasks", nargs="+", default=list(SOURCES), metavar="NAME", help=tasks)
    where = "where the files are written; those that are there are kept (default: data)"
    parser.add_argument("--data_dir", type=Path, default=Path("data"), metavar="FOLDER", help=where)
    which = "branch, tag or commit; a commit is one data set's, so name its task by --tasks (default: main)"
    parser.add_argument("--revision", default="main", metavar="REVISION", help=which)

    def program() -> int:
        given = parser.parse_args(arguments)
        download(task_names(given.tasks), given.data_dir, given.revision)
        print(f"{given.data_dir}: ready; {RECORD} says where each file is from, data/README.md what differs")
        return 0

    return exit_status("data.download", program)


if __name__ == "__main__":
    sys.exit(main())
