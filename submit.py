"""The zip for the course's Gradescope, made after a check of every prediction.

    python multitask_classifier.py --option submit --output_dir runs/finetune

    find_files ─> the dev and test files ─ read_examples ─> the ids that need a prediction
    <output_dir>/predictions/*.csv ─ check_predictions ─> each id has one line, with a value that its task has
    all of it, and the code ─> <output_dir>/cs224n_default_final_project_submission.zip

The course's prepare_submit.py takes every .py file beside it, and predictions/. This takes support/ as well,
without which the code does not run. No model is opened.
"""

import math
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

from config import TrainConfig
from datasets import Task, read_examples
from run_files import RECORD, find_files, prediction_path
from support.errors import UserError
from support.files import atomic_write, read_bytes, read_json
from support.tables import read_utf8
from tasks import TASKS

HERE = Path(__file__).resolve().parent
ZIP_NAME = "cs224n_default_final_project_submission.zip"


def submit(config: TrainConfig) -> None:
    """--option submit: check the predictions of the run in --output_dir, and write the zip there.

    Raises UserError with the file, and the line where there is one, of the first mistake.
    """
    folder = Path(config.output_dir)
    results = folder / "results.json"
    if not config.data_dir and not config.files and results.is_file():  # the run knows its data files
        run = TrainConfig.from_dict(read_json(results).get("config"))
        config = replace(config, data_dir=run.data_dir, files=run.files)
    wanted = [(task, split) for task in config.eval_tasks for split in ("dev", "test")]
    paths = {key: prediction_path(config.files, folder, *key) for key in wanted}
    if missing := [path.name for path in paths.values() if not path.is_file()]:
        others = "name others by --sst_dev_out, ..."
        mend = f"a run of all tasks writes them at its end; {others}"
        raise UserError(f"{folder}: no {', '.join(missing)}; {mend}")
    files, source = find_files(wanted, config.data_dir, config.files, needs_test=True)
    code = [*HERE.glob("*.py"), *HERE.glob("support/*.py")]
    members = {path.relative_to(HERE).as_posix(): path for path in sorted(code)}
    for (task, split), path in paths.items():
        rows = check_predictions(path, files[task, split], TASKS[task], labelled=split == "dev")
        members[f"predictions/{task}-{split}-output.csv"] = path
        print(f"{path}: {rows:,} predictions, one for each row of {files[task, split]}")
    target = folder / ZIP_NAME
    with atomic_write(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in members.items():
            archive.writestr(name, read_bytes(path))
    print(f"{target}: {len(members)} files")
    downloaded = [path for path in files.values() if (path.parent / RECORD).is_file()]
    if source == "sample" or any(path.name in read_json(path.parent / RECORD) for path in downloaded):
        where = "data/sample" if source == "sample" else "files of data.download"
        print(f"These are predictions for {where}, so Gradescope will not know their ids.")


def check_predictions(path: Path, data: Path, task: Task, labelled: bool) -> int:
    """The number of predictions in a file, after a check that they fit the rows of a data file.

    path: the prediction file. data: the file whose rows it predicts; its unusable rows need no prediction. As
    in the course, the lines may be in any order.
    Raises UserError, with file and line, for a line that is no prediction, a value that the task doesn't
    have, an id that is not in the data file or has too many predictions; with the file where an id has none.
    """
    ids = [example.id for example in read_examples(data, task, labelled)]
    left = Counter(ids)
    allowed = f"one of 0 to {len(task.label_names) - 1}" if task.label_names else "a number"
    for number, line in enumerate(read_utf8(path).splitlines()[1:], start=2):
        if not line.strip():
            continue
        id, comma, value = (part.strip() for part in line.rpartition(","))
        problem = ""
        if not comma:
            problem = f"{line!r:.60} is not 'ID , VALUE'"
        elif id not in left:
            problem = f"the id {id!r:.60} is not in {data}"
        elif not left[id]:
            problem = f"a second prediction for the id {id!r:.60}"
        elif not _is_value_of(task, value):
            problem = f"{value!r:.60} is not {allowed}"
        if problem:
            raise UserError(f"{path}:{number}: {problem}")
        left[id] -= 1
    if lacking := [id for id in ids if left[id]]:
        hint = "; a run with --max_eval_samples predicts some of them only" if labelled else ""
        what = f"{len(lacking):,} of {len(ids):,} rows of {data} have no prediction"
        raise UserError(f"{path}: {what} (first: id {lacking[0]!r:.60}){hint}")
    return len(ids)


def _is_value_of(task: Task, value: str) -> bool:
    """Whether the task can predict this: one of its classes, or any finite number of a regression."""
    try:
        return math.isfinite(task.parse_label(value) if task.label_names else float(value))
    except ValueError:
        return False
