"""The zip for the course's Gradescope, made after a check of every prediction.

    python multitask_classifier.py --option submit --output_dir runs/finetune

    find_files ─> the dev and test files ─ read_examples ─> the ids that need a prediction
    <output_dir>/predictions/*.csv ─ check_predictions ─> each id has one line, with a value that its task has
    ─ code, zip_of ─> <output_dir>/cs224n_default_final_project_submission.zip

The course's prepare_submit.py takes every .py file beside it, and predictions/. This takes support/ as well,
without which the code does not run. No model is opened.
"""

import io
import math
import re
import time
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from config import TrainConfig
from datasets import Task, read_examples
from run_files import RECORD, find_files, prediction_path
from support.errors import UserError
from support.files import check_writable, parse_json, read_bytes, write_bytes
from tasks import TASKS

HERE = Path(__file__).resolve().parent
ZIP_NAME = "cs224n_default_final_project_submission.zip"


def submit(config: TrainConfig) -> None:
    """--option submit: check the predictions of the run in --output_dir, and write the zip there.

    Raises UserError with the file, and the line where there is one, of the first mistake.
    """
    config = _with_files_of_the_run(config)
    folder = Path(config.output_dir)
    target = folder / ZIP_NAME
    check_writable(target, "--output_dir")
    wanted = [(task, split) for task in config.eval_tasks for split in ("dev", "test")]
    paths = {key: prediction_path(config, folder, *key) for key in wanted}
    _check_that_all_are_there(list(paths.values()))
    files, source = find_files(config, wanted)
    members = code()
    for (task, split), path in paths.items():
        content = read_bytes(path)
        rows = check_predictions(path, content, files[task, split], TASKS[task], labelled=split == "dev")
        members[f"predictions/{task}-{split}-output.csv"] = content
        print(f"{path}: {rows:,} predictions, one for each row of {files[task, split]}")
    write_bytes(target, zip_of(members))
    print(f"{target}: {len(members)} files")
    if source == "sample" or any(map(_is_from_the_hub, files.values())):
        where = "data/sample" if source == "sample" else "files of data.download"
        print(f"These are predictions for {where}, so Gradescope will not know their ids.")


def _with_files_of_the_run(config: TrainConfig) -> TrainConfig:
    """The settings with the data files that the run was started with, unless the command line names files."""
    results = Path(config.output_dir) / "results.json"
    if config.data_dir or config.files or not results.is_file():
        return config
    try:
        run = TrainConfig.from_dict(parse_json(results, read_bytes(results)).get("config"))
    except UserError as error:
        words = f"the settings of its run cannot be read ({error}); name the files by --data_dir"
        raise UserError(f"{results}: {words}") from None
    return replace(config, data_dir=run.data_dir, files=run.files)


def _is_from_the_hub(path: Path) -> bool:
    """Whether data.download wrote this data file."""
    record = path.parent / RECORD
    return record.is_file() and f'"{path.name}"' in record.read_text(encoding="utf-8", errors="replace")


def _check_that_all_are_there(paths: list[Path]) -> None:
    """Raises UserError that lists the missing prediction files."""
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        mend = (
            "a run of all tasks writes them at its end; name others by --<task>_dev_out and --<task>_test_out"
        )
        raise UserError(f"{', '.join(missing)}: no such file; {mend}")


def check_predictions(path: Path, content: bytes, data: Path, task: Task, labelled: bool) -> int:
    """The number of predictions in a file, after a check that they fit the rows of a data file.

    path: the prediction file, for messages. content: what it holds. data: the file whose rows it predicts;
    its unusable rows need no prediction. As in the course, the lines may be in any order.
    Raises UserError, with file and line, for a line that is no prediction, a value that the task doesn't
    have, an id that is not in the data file or has too many predictions; with the file where an id has none.
    """
    ids = [example.id for example in read_examples(data, task, labelled)]
    left = Counter(ids)
    for line, id, value in _lines(path, content):
        if id not in left:
            raise UserError(f"{path}:{line}: the id {id!r:.60} is not in {data}")
        if not left[id]:
            raise UserError(f"{path}:{line}: a second prediction for the id {id!r:.60}")
        if not _is_value_of(task, value):
            names = f"one of 0 to {len(task.label_names) - 1}" if task.label_names else "a number"
            raise UserError(f"{path}:{line}: {value!r:.60} is not {names}")
        left[id] -= 1
    lacking = [id for id in ids if left[id]]
    if lacking:
        first = f"first: id {lacking[0]!r:.60}"
        what = f"{len(lacking):,} of {len(ids):,} rows of {data} have no prediction ({first})"
        hint = "; a run with --max_eval_samples predicts some of them only" if labelled else ""
        raise UserError(f"{path}: {what}{hint}")
    return len(ids)


def _lines(path: Path, content: bytes) -> list[tuple[int, str, str]]:
    """Line number, id and value of each prediction. Raises UserError with file and line for other lines."""
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = 1 + content[: error.start].count(b"\n")
        raise UserError(f"{path}:{line}: not UTF-8") from None
    header = [name.strip() for name in re.split(r"[\t,]", lines[0])] if lines else []
    if len(header) != 2 or header[0] != "id":
        raise UserError(f"{path}:1: the header must be 'id', a tab and the name of the prediction")
    found = []
    for line, text in enumerate(lines[1:], start=2):
        id, comma, value = text.rpartition(",")
        if text.strip() and not comma:
            raise UserError(f"{path}:{line}: {text!r:.60} is not 'ID , VALUE'")
        if text.strip():
            found.append((line, id.strip(), value.strip()))
    return found


def _is_value_of(task: Task, value: str) -> bool:
    """Whether the task can predict this: one of its classes, or any finite number of a regression."""
    try:
        if task.label_names:
            task.parse_label(value)
            return True
        return math.isfinite(float(value))
    except ValueError:
        return False


def code() -> dict[str, bytes]:
    """The project's code by name: every .py file beside this one, and those of support/."""
    paths = sorted(HERE.glob("*.py")) + sorted((HERE / "support").glob("*.py"))
    return {path.relative_to(HERE).as_posix(): read_bytes(path) for path in paths}


def zip_of(members: Mapping[str, bytes]) -> bytes:
    """A zip archive with these files, content by name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, time.localtime()[:6])
            info.external_attr = 0o644 << 16  # whoever unpacks it may read it
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
