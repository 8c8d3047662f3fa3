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
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
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
    files: tuple[str, str, str]  # of train, dev, test
    rows: tuple[int, int, int]  # that are taken of train, dev, test
    text_fields: tuple[str, ...]  # one for each text column of the task
    label_field: str  # holds numbers, or names that the task knows
    label_type: type = int  # how the course writes the labels
    test_limit: int | None = None  # only the first so many test rows are taken


JSON_LINES = ("train.jsonl", "validation.jsonl", "test.jsonl")
SOURCES = {
    "sst": Source(
        dataset="SetFit/sst5",  # looked up at commit e51bdcd
        files=("train.jsonl", "dev.jsonl", "test.jsonl"),
        rows=(8544, 1101, 2210),
        text_fields=("text",),
        label_field="label_text",
    ),
    "sts": Source(
        dataset="SetFit/stsb",  # looked up at commit 77bd85c
        files=JSON_LINES,
        rows=(5749, 1500, 1379),
        text_fields=("text1", "text2"),
        label_field="label",
        label_type=float,
    ),
    "cfimdb": Source(
        dataset="tasksource/counterfactually-augmented-imdb",  # looked up at commit fd42efb
        files=("train.tsv", "dev.tsv", "test.tsv"),
        rows=(1707, 245, 488),
        text_fields=("Text",),
        label_field="Sentiment",
    ),
    "para": Source(  # the largest comes last
        dataset="SetFit/qqp",  # looked up at commit df33eff
        files=JSON_LINES,
        rows=(363846, 40430, 40431),
        text_fields=("text1", "text2"),
        label_field="label",
        label_type=float,
        test_limit=40431,  # as many as the course's; all 390,965 would take an hour to predict on a CPU
    ),
}

# ------------------------------------------------------------------------------------------ the hub


def find_commit(dataset: str, revision: str) -> str:
    """The commit that a revision of a data set stands for. Raises UserError if the hub has none."""
    import huggingface_hub
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        # without a network this fails at once; a download would retry for a minute
        sha = huggingface_hub.HfApi().dataset_info(dataset, revision=revision, timeout=10).sha
    except RevisionNotFoundError:
        hint = "each data set has commits of its own: --tasks sst --revision COMMIT"
        raise UserError(f"--revision {revision}: {dataset} has no such revision; {hint}") from None
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
        api = huggingface_hub.HfApi()
        return Path(api.hf_hub_download(dataset, file, repo_type="dataset", revision=commit))
    except Exception as error:  # as above, no such file, or a full disk
        raise _unreachable(f"{dataset}, {file} at commit {commit:.7}", error) from None


def _unreachable(what: str, error: Exception) -> UserError:
    why = f"{type(error).__name__}: {one_line(error):.150}"
    return UserError(f"{what}: cannot be fetched ({why}); finished files stay, the same command goes on")


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
) -> tuple[str, int]:
    """A file of the hub in the course's layout, and the number of its rows.

    Raises UserError, with the line, for a row that has no such texts or label.
    """
    header = ["", "id", *task.text_columns, *([task.label_column] if split != "test" else [])]
    rows: list[list[str]] = []
    for line, record in records:
        if split == "test" and len(rows) == source.test_limit:
            break
        try:
            # tabs and line breaks would end a field of the course's files
            texts = [re.sub(r"[\t\r\n]+", " ", record[field] or "") for field in source.text_fields]
            label = [] if split == "test" else [course_label(task, source, record[source.label_field])]
        except KeyError as error:
            raise UserError(f"{where}:{line}: no field {error} (it has {', '.join(record)})") from None
        except ValueError as error:
            raise UserError(f"{where}:{line}: {error}") from None
        rows.append([str(len(rows)), course_id(task.name, split, len(rows), texts), *texts, *label])
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter="\t", lineterminator="\n").writerows([header, *rows])
    return buffer.getvalue(), len(rows)


def course_label(task: Task, source: Source, value: object) -> str:
    """The label as the course writes it. Raises ValueError if the task has no such label.

    The hub has 3.8 of STS-B as the 32-bit float 3.7999999523; the benchmark has three decimals.
    """
    return str(source.label_type(round(task.read_label(str(value)), 3)))


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
        missing = {split: path for split, path in paths.items() if not path.exists()}
        for path in paths.values():
            if path.exists():
                other = missing and path.name not in record
                print(f"{path}: kept" + ("; its rows may be in the new files, too" if other else ""))
        if not missing:
            continue
        commit = find_commit(SOURCES[name].dataset, revision)
        print(f"{name}: {SOURCES[name].dataset} at commit {commit}")
        for split, path in missing.items():
            record[path.name] = write_split(name, split, commit, path)
            write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")


def write_split(name: str, split: str, commit: str, target: Path) -> Record:
    """Write one file. Returns what `download.json` says of it. Raises UserError."""
    source = SOURCES[name]
    file = source.files[SPLITS.index(split)]
    expected = source.rows[SPLITS.index(split)]
    where = f"{source.dataset}/{file}"
    records = read_records(where, fetch(source.dataset, file, commit))
    text, rows = course_file(TASKS[name], source, split, where, records)
    write_text(target, text)
    changed = f"; there were {expected:,} when this program was written" if rows != expected else ""
    print(f"{target}: {rows:,} rows{changed}")
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"dataset": source.dataset, "file": file, "commit": commit, "rows": rows, "sha256": digest}


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
        names = re.split(r"[\s,]+", " ".join(given.tasks))
        for name in names:
            if name not in SOURCES:
                hint = did_you_mean(name, SOURCES)
                raise UserError(f"--tasks {name[:40]}: must be one or more of {', '.join(SOURCES)}{hint}")
        download(names, given.data_dir, given.revision)
        print(f"{given.data_dir}: ready; {RECORD} says where each file is from, data/README.md what differs")
        return 0

    return exit_status("data.download", program)


if __name__ == "__main__":
    sys.exit(main())
