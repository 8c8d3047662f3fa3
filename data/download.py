"""Real data from the Hugging Face hub, in the course's layout.

    python -m data.download

    find_commit ─> commit, names of its files ─ fetch ─> *.jsonl or *.tsv, in the hub's own cache
    ─ read_records ─> records with their lines ─ course_file ─> the text of <data_dir>/<stem>-<split>.csv
    and <data_dir>/download.json, which says where each file is from

A file that is there already is kept, so the same command goes on after a break. data/README.md says which
rows differ from the course's. Not handled: private data sets.
"""

import csv
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from config import Parser, did_you_mean
from data.sources import SOURCES, Record, Source
from datasets import Task
from run_files import RECORD
from support.errors import UserError, exit_status, one_line
from support.files import check_writable, parse_json, read_bytes, write_text
from tasks import TASKS

SPLITS = ("train", "dev", "test")

# ---------------------------------------------------------------------------------------- the hub


def endpoint() -> str:
    """Address of the hub. The library reads HF_ENDPOINT once, when it is imported; this reads it now."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def find_commit(source: Source, revision: str) -> tuple[str, set[str]]:
    """The commit that a revision of a data set stands for, and the names of its files.

    Raises UserError if the hub cannot be reached, or has no such data set or revision.
    """
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        # without a network this fails at once; a download would retry for a minute
        api = huggingface_hub.HfApi(endpoint=endpoint())
        info = api.dataset_info(source.dataset, revision=revision, timeout=10)
    except RevisionNotFoundError:
        hint = "each data set has commits of its own: --revision sst=COMMIT,sts=COMMIT"
        raise UserError(f"--revision {revision}: {source.dataset} has no such revision; {hint}") from None
    except RepositoryNotFoundError:
        raise UserError(f"{source.dataset}: {endpoint()} has no such public data set") from None
    except Exception as error:  # no network, HF_HUB_OFFLINE, a proxy's answer: the user has to act
        raise UserError(_unreachable(source.dataset, error)) from None
    if not info.sha:
        raise UserError(f"{source.dataset}: {endpoint()} names no commit of revision {revision}")
    return info.sha, {file.rfilename for file in info.siblings or []}


def _unreachable(what: str, error: Exception) -> str:
    why = f"{type(error).__name__}: {one_line(error):.150}"
    mend = "what is written stays; the same command goes on"
    return f"{what}: cannot be fetched from {endpoint()} ({why}); {mend}"


def fetch(source: Source, file: str, commit: str) -> Path:
    """Path of a data set's file in the hub's cache; an interrupted download is continued.

    Raises UserError if it cannot be fetched.
    """
    import huggingface_hub

    try:
        path = huggingface_hub.hf_hub_download(
            source.dataset, file, repo_type="dataset", revision=commit, endpoint=endpoint()
        )
    except Exception as error:  # as above, or a full disk
        raise UserError(_unreachable(f"{source.dataset}, {file}", error)) from None
    return Path(path)


# ------------------------------------------------------------------------------------ from there to here


def read_records(where: str, path: Path, fields: Sequence[str]) -> Iterator[tuple[int, Record]]:
    """The records of a file of JSON lines, or of a .tsv with a header, each with its line number.

    where: what messages call the file. Raises UserError, with the line, for one that lacks a field.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error})") from None
    csv.field_size_limit(2**31 - 1)  # reviews are long
    records = _tsv_records(text) if where.endswith(".tsv") else _json_records(where, text)
    for line, record in records:
        for field in fields:
            if field not in record:
                names = ", ".join(map(repr, record))
                raise UserError(f"{where}:{line}: no field {field!r} (it has {names:.200})")
        yield line, record


def _tsv_records(text: str) -> Iterator[tuple[int, Record]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t")
    for record in reader:
        yield reader.line_num, {name: value for name, value in record.items() if value is not None}


def _json_records(where: str, text: str) -> Iterator[tuple[int, Record]]:
    for line, row in enumerate(text.split("\n"), start=1):
        if row.strip():
            yield line, parse_json(f"{where}:{line}", row.encode())


def course_file(task: Task, source: Source, split: str, where: str, path: Path) -> tuple[str, int, int]:
    """A file of the hub in the course's layout, its rows, and how many rows the hub's file has.

    Raises UserError, with the line, for a row that has no such texts or label.
    """
    labelled = split != "test"
    label_field = (source.label_field,) if labelled else ()
    rows: list[list[str]] = []
    count = 0
    for line, record in read_records(where, path, (*source.text_fields, *label_field)):
        count += 1
        if not labelled and source.test_limit is not None and count > source.test_limit:
            continue
        try:
            texts = [_one_line(field, record[field]) for field in source.text_fields]
            label = [source.label(record)] if labelled else []
        except ValueError as error:
            raise UserError(f"{where}:{line}: {error}") from None
        rows.append([str(len(rows)), course_id(task.name, split, len(rows), texts), *texts, *label])
    header = ["", "id", *task.text_columns, *([task.label_column] if labelled else [])]
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter="\t", lineterminator="\n").writerows([header, *rows])
    return buffer.getvalue(), len(rows), count


def _one_line(field: str, text: object) -> str:
    """The text without the tabs and line breaks that would end a field of the course's files."""
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{field} {text!r:.40} is not a text")
    if any("\ud800" <= letter <= "\udfff" for letter in text or ""):
        raise ValueError(f"{field} is not UTF-8 (half of a surrogate pair)")
    return re.sub(r"[\t\r\n]+", " ", text or "")


def course_id(*parts: object) -> str:
    """An id in the course's form, 25 hexadecimal digits, that is the same in every download."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:25]


# ------------------------------------------------------------------------------------------ program


def download(names: Sequence[str], folder: Path, revisions: dict[str, str]) -> None:
    """Fetch what is missing of each task's files. Raises UserError; the files that are finished stay."""
    check_writable(folder / RECORD, "--data_dir")
    record = parse_json(folder / RECORD, read_bytes(folder / RECORD)) if (folder / RECORD).is_file() else {}
    for name in names:
        paths = {split: folder / TASKS[name].filename(split) for split in SPLITS}
        missing = [split for split, path in paths.items() if not os.path.lexists(path)]
        for split in SPLITS:
            if split not in missing:
                print(f"{paths[split]}: kept, {_origin(paths[split], record)}")
        if not missing:
            continue
        source = SOURCES[name]
        commit, published = find_commit(source, revisions[name])
        print(f"{name}: {source.dataset} at commit {commit}")
        if any(split not in missing and paths[split].name not in record for split in SPLITS):
            print(f"{name}: the kept files are from elsewhere, so rows of one file may be in another, too")
        for split in missing:
            record[paths[split].name] = _convert(name, split, commit, published, paths[split])
            write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")


def _origin(path: Path, record: dict[str, Any]) -> str:
    """Where a file that is kept is from, as far as the folder's record knows."""
    entry = record.get(path.name)
    if not isinstance(entry, dict):
        return "not from this program"
    changed = path.is_file() and hashlib.sha256(read_bytes(path)).hexdigest() != entry.get("sha256")
    commit = str(entry.get("commit"))[:12]
    return f"{entry.get('dataset')} at commit {commit}{', changed since' if changed else ''}"


def _convert(name: str, split: str, commit: str, published: set[str], target: Path) -> dict[str, Any]:
    """Write one file. Returns what the record says of it."""
    source = SOURCES[name]
    index = SPLITS.index(split)
    file = source.files[index]
    if file not in published:
        there = ", ".join(sorted(published)) or "no files"
        raise UserError(f"{source.dataset}: no {file} at commit {commit} (it has {there:.200})")
    where = f"{source.dataset}/{file}"
    text, rows, count = course_file(TASKS[name], source, split, where, fetch(source, file, commit))
    expected = source.rows[index]
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
    names = [name for name in re.split(r"[\s,]+", " ".join(words)) if name]
    for name in names:
        if name not in SOURCES:
            hint = did_you_mean(name, SOURCES)
            raise UserError(f"--tasks {name[:40]}: must be one or more of {', '.join(SOURCES)}{hint}")
    if not names:
        raise UserError(f"--tasks: must be one or more of {', '.join(SOURCES)}")
    return list(dict.fromkeys(names))


def revisions_by_task(text: str, names: Sequence[str]) -> dict[str, str]:
    """A revision for each task: the same, or those of `sst=COMMIT,sts=COMMIT` and main for the others.

    Raises UserError for one that names a task which is not fetched.
    """
    if "=" not in text:
        revisions = dict.fromkeys(names, text.strip())
    else:
        revisions = dict.fromkeys(names, "main")
        for part in text.split(","):
            name, _, revision = (word.strip() for word in part.partition("="))
            if name not in revisions:
                raise UserError(
                    f"--revision {part.strip()[:60]}: {name[:40]!r} is not one of {', '.join(names)}"
                )
            revisions[name] = revision
    if not all(revisions.values()):
        raise UserError("--revision: must not be empty")
    return revisions


def run(arguments: Sequence[str] | None) -> int:
    """Parse the command line, and download."""
    parser = Parser(
        prog="data.download",
        description="Fetch real data from the Hugging Face hub, and write them in the course's layout.",
        usage="python -m data.download [--flag value ...]",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=[",".join(SOURCES)],
        metavar="NAME",
        help=f"of {', '.join(SOURCES)} (default: all)",
    )
    parser.add_argument(
        "--data_dir",
        default="data",
        metavar="FOLDER",
        help="where the files are written; those that are there are kept (default: data)",
    )
    parser.add_argument(
        "--revision",
        default="main",
        metavar="REVISION",
        help="branch, tag or commit of the data sets, or one by task: sst=COMMIT,sts=COMMIT (default: main)",
    )
    given = parser.parse_args(arguments)
    if not given.data_dir.strip():
        raise UserError("--data_dir: must not be empty")
    names = task_names(given.tasks)
    download(names, Path(given.data_dir), revisions_by_task(given.revision, names))
    print(f"{given.data_dir}: ready; {RECORD} says where each file is from, data/README.md what differs")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    return exit_status("data.download", lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
