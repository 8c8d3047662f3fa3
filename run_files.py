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
from evaluation import Evaluation, evaluate, six_digits, write_predictions
from support import parallel
from support.errors import UserError, one_line
from support.files import check_writable, stdout_or_pipe, write_text
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
    written, if it is an input or another output, or if the results of a training run would be replaced by
    those of another option.
    """
    taken = {os.path.realpath(path): f"the input {path}" for path in (inputs or {}).values()}
    given = {name: path for name, path in config.files.items() if not name.endswith("_out")}
    if config.unlabelled_file:
        given["unlabelled_file"] = config.unlabelled_file
    taken |= {os.path.realpath(path): f"the input --{name}" for name, path in given.items()}
    folder = Path(config.output_dir)
    splits = ("test",) if config.option == "predict" else ("dev", "test")
    for task, split in ((task, split) for task in config.eval_tasks or () for split in splits):
        name = f"{task}_{split}_out"
        flag = f"--{name}" if name in config.files else "--output_dir"
        output = prediction_path(config, folder, task, split)
        check_writable(output, flag)
        if stdout_or_pipe(output) is not None:
            continue
        if other := taken.get(os.path.realpath(output)):
            raise UserError(f"{flag} {output}: is {other}, which would be replaced; name another file")
        taken[os.path.realpath(output)] = f"the output of --{name}, too"
    check_writable(folder / "results.json", "--output_dir")
    if config.option not in TRAINING and (folder / "metrics.jsonl").exists():
        why = "holds a training run, whose results would be replaced; name another folder"
        raise UserError(f"--output_dir {folder}: {why}")


@contextlib.contextmanager
def locked_folder(config: TrainConfig) -> Iterator[None]:
    """Hold --output_dir within the block; the ranks of one run hold it together.

    Raises UserError that says who holds it already.
    """
    with contextlib.ExitStack() as stack:
        problem = ""
        try:
            if parallel.rank() == 0 and not config.task:  # answers to texts go to no folder
                stack.enter_context(locked(Path(config.output_dir)))
        except UserError as error:
            problem = str(error)
        if problem := parallel.gather(problem)[0]:
            raise UserError(problem)
        yield


def find_files(config: TrainConfig, wanted: Sequence[Key]) -> tuple[dict[Key, Path], str]:
    """The path of each (task, split), and in a word or two where the files are from.

    A file that a flag names comes first, then --data_dir. Where there are none at all, the sample is used,
    and a line says so. A test file may be missing, with a line, unless its flag is given or the option needs
    it. Raises UserError that names the first missing file.
    """
    chosen = config.data_dir or os.environ.get("SMART_BERT_DATA_DIR")
    folder = Path(chosen or "data")
    given = {key: Path(config.files["_".join(key)]) for key in wanted if "_".join(key) in config.files}
    files = {(task, split): folder / TASKS[task].filename(split) for task, split in wanted} | given
    missing = [key for key, path in files.items() if not os.path.isfile(path)]
    if len(missing) == len(files) and not chosen and not given:
        sample = {key: HERE / "data" / "sample" / TASKS[key[0]].filename(key[1]) for key in wanted}
        if all(path.is_file() for path in sample.values()):
            fetch = "python -m data.download fetches real ones"
            print(f"No course files found: this run uses data/sample. {fetch}.")
            return sample, "sample"
    for task, split in missing:
        named = (task, split) in given or f"{task}_test_out" in config.files
        if split != "test" or config.option in ("predict", "submit") or named:
            mend = f"give it with --{task}_{split}, or its folder with --data_dir (see data/README.md)"
            raise UserError(f"{files[task, split]}: no such file; {mend}")
    for task, split in missing:
        print(f"no test file {files.pop((task, split))}: no test predictions for {task}")
    return files, str(folder) if len(given) < len(files) else "files given by flag"


def load_data(config: TrainConfig, files: Mapping[Key, Path], tokenizer: Tokenizer) -> Data:
    """Read and tokenise every file; warns of rows that were cut."""
    limits = {"train": config.max_train_samples, "dev": config.max_eval_samples, "test": None}
    data = {}
    bar = tqdm(files.items(), desc="reading", leave=False, disable=parallel.bar_disabled())
    for (name, split), path in bar:
        task = TASKS[name]
        examples = sample_rows(read_examples(path, task, labelled=split != "test"), limits[split])
        dataset = tokenize(examples, task, tokenizer, config.max_length)
        if split == "dev":
            dataset = replace(dataset, texts=[example.texts for example in examples])
        if dataset.num_truncated:
            words = "%s: %d of %d rows cut to --max_length %d tokens"
            log.warning(words, path, dataset.num_truncated, len(examples), config.max_length)
        if split == "train":
            warn_of_useless_rows(path, dataset, tokenizer)
        data[name, split] = dataset
    if config.unlabelled_file and config.unlabelled_task:
        task = TASKS[config.unlabelled_task]
        examples = read_unlabelled(config.unlabelled_file, task)
        data[task.name, UNLABELLED] = tokenize(examples, task, tokenizer, config.max_length)
    return data


def warn_of_useless_rows(path: Path, dataset: TokenizedDataset, tokenizer: Tokenizer) -> None:
    """Warn if a training file teaches nothing: all labels are equal, or all texts empty."""
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
    """Write the course's prediction files to `folder`/predictions or where flags say; returns their paths."""
    paths = []
    for dataset in datasets:
        name = dataset.task.name
        paths.append(prediction_path(config, folder, name, split))
        if parallel.rank() == 0:
            write_predictions(paths[-1], dataset.task.prediction_column, dataset.ids, predictions[name])
    return paths


def dev_rows(dataset: TokenizedDataset, logits: Tensor, predictions: np.ndarray) -> Iterator[dict[str, Any]]:
    """What each row of a labelled file says and what the model says of it, as JSON can hold it.

    Classes stand under their names, numbers have six digits. logits: (rows,C). predictions: (rows,).
    """
    assert dataset.labels is not None, "dev files have labels"
    names = dataset.task.label_names
    of_class = dataset.task.probabilities
    probabilities = of_class(logits).tolist() if of_class else [[]] * len(dataset)

    def named(value: float) -> str | float:
        return names[int(value)] if names else six_digits(value)

    columns = (dataset.ids, dataset.texts, dataset.labels.tolist(), predictions.tolist(), probabilities)
    for id, texts, label, prediction, values in zip(*columns, strict=True):
        row: dict[str, Any] = {"id": id, "texts": texts}
        row |= {"label": named(label), "prediction": named(prediction)}
        if values:
            row["probabilities"] = dict(zip(names, map(six_digits, values), strict=True))
        yield row


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
    lost = []
    for name in config.eval_tasks:
        path = prediction_path(config, folder, name, "dev")
        if stdout_or_pipe(path) is None and not path.exists():
            lost.append(data[name, "dev"])
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
        import report  # imported here, so that training starts sooner

        print(f"report: {report.write_report(Path(config.output_dir))}")
    except (Exception, KeyboardInterrupt) as error:
        log.warning("report.html was not made (%s)", one_line(error))
