"""The files that a run reads, and the folder that it writes.

    find_files ─> paths by (task, split) ─ load_data ─> TokenizedDataset by (task, split)
    prepare_folder, check_outputs before a run; write_all_predictions, write_dev_rows after each of its
    epochs; make_report at its end

Knows data sets, no model.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

from checkpoint import locked
from config import TRAINING, UNLABELLED, TrainConfig
from datasets import TokenizedDataset, read_examples, read_unlabelled, sample_rows, tokenize
from evaluation import Evaluation, evaluate, write_predictions
from support import parallel
from support.errors import UserError, one_line
from support.files import check_writable, stream_of, write_text
from tasks import TASKS

log = logging.getLogger("smart_bert")
HERE = Path(__file__).resolve().parent
# what a run leaves in its folder
RUN_FILES = [f"last{ending}" for ending in ("", ".previous", ".damaged", ".old")]
RUN_FILES += ["best", "metrics.jsonl", "results.json", "predictions", "tensorboard", "report.html"]
RECORD = "download.json"  # of data.download: where the data files beside it are from
Key = tuple[str, str]  # (task, split)
Data = dict[Key, TokenizedDataset]


def prediction_path(config: TrainConfig, folder: Path, task: str, split: str) -> Path:
    """Where the predictions of a task's split go: to `folder`/predictions, or where its flag says."""
    usual = folder / "predictions" / f"{task}-{split}-output.csv"
    return Path(config.files.get(f"{task}_{split}_out", usual))


def check_outputs(config: TrainConfig, inputs: Mapping[Key, Path] | None = None) -> None:
    """Check where a run will write, before the hours of work that lead there.

    inputs: the files that it reads, apart from those that flags name. Raises UserError if an output can't be
    written, if it is an input, another output or a file of a model, or if the results of a training run would
    be replaced by those of another option.
    """
    taken = {_identity(path): f"the input {path}" for path in (inputs or {}).values()}
    if config.unlabelled_file:
        taken[_identity(Path(config.unlabelled_file))] = "the input --unlabelled_file"
    for name, path in config.files.items():
        if not name.endswith("_out"):
            taken[_identity(Path(path))] = f"the input --{name}"
    folder = Path(config.output_dir)
    models = [folder / "last", folder / "best"]
    for place in (config.checkpoint, config.model_name_or_path):
        if place and os.path.isdir(place):
            models.append(Path(place, "best") if os.path.isdir(Path(place, "best")) else Path(place))
    splits = ("test",) if config.option == "predict" else ("dev", "test")
    for task, split in ((task, split) for task in config.eval_tasks or () for split in splits):
        flag = f"--{task}_{split}_out"
        output = prediction_path(config, folder, task, split)
        if flag[2:] not in config.files:
            flag = "--output_dir"
        check_writable(output, flag)
        if stream_of(output) is not None:
            continue
        if other := taken.get(_identity(output)):
            raise UserError(f"{flag} {output}: is {other}, which would be replaced; name another file")
        taken[_identity(output)] = f"the output of --{task}_{split}_out, too"
        for model in models:
            if Path(os.path.realpath(output)).is_relative_to(os.path.realpath(model)):
                raise UserError(f"{flag} {output}: lies in {model}, a model's folder; name another place")
    check_writable(folder / "results.json", "--output_dir")
    if config.option not in TRAINING and os.path.lexists(folder / "metrics.jsonl"):
        why = "holds a training run, whose results would be replaced; name another folder"
        raise UserError(f"--output_dir {config.output_dir}: {why}")


def _identity(path: Path) -> Any:
    """Equal for two names of one file, whether they are links, hard links or have `..` in them."""
    try:
        status = os.stat(path)
        return status.st_dev, status.st_ino
    except (OSError, ValueError):
        return os.path.abspath(os.path.realpath(path)) if "\0" not in str(path) else str(path)


@contextlib.contextmanager
def locked_folder(config: TrainConfig) -> Iterator[None]:
    """Hold --output_dir within the block; several processes of one run hold it together.

    Raises UserError that says who holds it already.
    """
    with contextlib.ExitStack() as stack:
        problem = ""
        if parallel.rank() == 0 and not config.task:  # answers to raw text go to no folder
            try:
                stack.enter_context(locked(Path(config.output_dir)))
            except UserError as error:
                problem = str(error)
        if problem := parallel.gather(problem)[0]:
            raise UserError(problem)
        yield


def find_files(config: TrainConfig, wanted: Sequence[Key]) -> tuple[dict[Key, Path], str]:
    """The path of each (task, split), and in a word or two where the files are from.

    Files that are named by a flag come first, then the data folder. Where there are none at all, the sample
    is used, and a line says so. A test file may be missing: a line says so, and the result lacks it. It may
    not for --option predict and submit, or where a flag names the file or its predictions.
    Raises UserError that names the first missing file.
    """
    chosen = config.data_dir or os.environ.get("SMART_BERT_DATA_DIR")
    folder = Path(chosen or "data")
    given = {key: Path(config.files["_".join(key)]) for key in wanted if "_".join(key) in config.files}
    files = {(task, split): folder / TASKS[task].filename(split) for task, split in wanted} | given
    missing = [key for key, path in files.items() if not os.path.isfile(path)]
    if len(missing) == len(files) and not chosen and not given:
        sample = {key: HERE / "data" / "sample" / TASKS[key[0]].filename(key[1]) for key in wanted}
        if all(path.is_file() for path in sample.values()):
            print(
                "No course files found: this run uses data/sample. python -m data.download fetches real ones."
            )
            return sample, "sample"
    for key in missing:
        task, split = key
        named = key in given or f"{task}_test_out" in config.files
        if split != "test" or config.option in ("predict", "submit") or named:
            mend = f"give it with --{task}_{split}, or its folder with --data_dir (see data/README.md)"
            raise UserError(f"{files[key]}: no such file; {mend}")
    for task, split in missing:
        print(f"no test file {files[task, split]}: no test predictions for {task}")
    files = {key: path for key, path in files.items() if key not in missing}
    return files, str(folder) if len(given) < len(files) else "files given by flag"


def load_data(config: TrainConfig, files: Mapping[Key, Path], tokenizer: Tokenizer) -> Data:
    """Read and tokenise every file; warns of rows that were cut."""
    limits = {"train": config.max_train_samples, "dev": config.max_eval_samples, "test": None}
    data = {}
    bar = tqdm(files.items(), desc="reading", leave=False, disable=parallel.bar_disabled())
    for (task, split), path in bar:
        examples = read_examples(path, TASKS[task], labelled=split != "test")
        examples = sample_rows(examples, limits[split])
        data[task, split] = tokenize(examples, TASKS[task], tokenizer, config.max_length)
        if split == "dev":
            data[task, split] = replace(data[task, split], texts=[example.texts for example in examples])
        cut = data[task, split].num_truncated
        if cut:
            words = "%s: %d of %d rows cut to --max_length %d tokens"
            log.warning(words, path, cut, len(examples), config.max_length)
        if split == "train":
            warn_of_useless_rows(path, data[task, split], tokenizer)
    if config.unlabelled_file and config.unlabelled_task:
        task = TASKS[config.unlabelled_task]
        examples = read_unlabelled(config.unlabelled_file, task)
        data[task.name, UNLABELLED] = tokenize(examples, task, tokenizer, config.max_length)
    return data


def warn_of_useless_rows(path: Path, dataset: TokenizedDataset, tokenizer: Tokenizer) -> None:
    """A line where nothing can be learned from a training file: all labels are equal, or all texts empty."""
    if dataset.labels is not None and len(dataset.labels.unique()) == 1:
        log.warning("%s: every row has the label %g, so there is nothing to learn", path, dataset.labels[0])
    special = tokenizer.num_special_tokens_to_add(len(dataset.task.text_columns) > 1)
    if dataset.lengths.max() <= special:
        log.warning("%s: the tokenizer finds no word in any text, so there is nothing to learn", path)


def prepare_folder(folder: Path, overwrite: bool) -> None:
    """Raises UserError if the folder holds a run; with `overwrite` deletes the run."""
    there = [folder / name for name in RUN_FILES if os.path.lexists(folder / name)]
    if there and not overwrite:
        mend = "go on with it by --resume, delete it by --overwrite_output_dir, or name another"
        raise UserError(f"--output_dir {folder}: holds a run; {mend}")
    for path in there:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_all_predictions(
    config: TrainConfig,
    folder: Path,
    split: str,
    datasets: list[TokenizedDataset],
    predictions: Mapping[str, np.ndarray],
) -> list[Path]:
    """Write the course's prediction files, and return their paths.

    They go to `folder`/predictions, or where --<task>_<split>_out says.
    """
    paths = []
    for dataset in datasets:
        name = dataset.task.name
        path = prediction_path(config, folder, name, split)
        if parallel.rank() == 0:
            write_predictions(path, dataset.task.prediction_column, dataset.ids, predictions[name])
        paths.append(path)
    return paths


def dev_rows(dataset: TokenizedDataset, logits: Tensor, predictions: np.ndarray) -> Iterator[dict[str, Any]]:
    """What a row of a labelled file says and what the model says of it, as JSON can hold it.

    Classes stand under their names, numbers have six digits. logits: (rows,C). predictions: (rows,).
    """
    assert dataset.labels is not None, "dev files have labels"
    names = dataset.task.label_names
    of_class = dataset.task.probabilities
    probabilities = of_class(logits).tolist() if of_class else [[]] * len(dataset)

    def said(value: float) -> str | float:
        return names[int(value)] if names else six_digits(value)

    columns = (dataset.ids, dataset.texts, dataset.labels.tolist(), predictions.tolist(), probabilities)
    for id, texts, label, prediction, values in zip(*columns, strict=True):
        row: dict[str, Any] = {"id": id, "texts": texts, "label": said(label), "prediction": said(prediction)}
        if values:
            row["probabilities"] = dict(zip(names, map(six_digits, values), strict=True))
        yield row


def six_digits(value: float) -> float:
    """The number with six significant digits; fp32 has about seven."""
    return float(f"{value:.6g}")


def write_dev_rows(folder: Path, datasets: list[TokenizedDataset], result: Evaluation) -> None:
    """Write `folder`/predictions/<task>-dev-rows.jsonl, from which the report is made.

    A failure is a warning: the report must not cost the run.
    """
    for dataset in datasets if parallel.rank() == 0 else []:
        name = dataset.task.name
        path = folder / "predictions" / f"{name}-dev-rows.jsonl"
        try:
            rows = dev_rows(dataset, result.logits[name], result.predictions[name])
            write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        except Exception as error:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)  # it would hold another epoch's rows
            log.warning("%s was not written (%s)", path, one_line(error))


def restore_dev_files(config: TrainConfig, best: nn.Module, data: Data) -> None:
    """Write the dev predictions of the best epoch again where they are gone."""
    folder = Path(config.output_dir)
    paths = {name: prediction_path(config, folder, name, "dev") for name in config.eval_tasks}
    lost = [
        data[name, "dev"] for name, path in paths.items() if stream_of(path) is None and not path.exists()
    ]
    if lost:
        result = evaluate(best, lost, config.batch_size, config.tasks)
        write_all_predictions(config, folder, "dev", lost, result.predictions)
        write_dev_rows(folder, lost, result)


def make_report(config: TrainConfig) -> None:
    """Make the page of the run, unless --no_report is given.

    A failure, or Ctrl-C, is a warning: the report must not cost the run.
    """
    if config.no_report or parallel.rank() != 0:
        return
    try:
        import run_report  # imported here, so that training starts sooner

        print(f"report: {run_report.write_report(Path(config.output_dir))}")
    except (Exception, KeyboardInterrupt) as error:
        log.warning("report.html was not made (%s)", one_line(error))
