"""The files that a run reads, and the folder that it writes.

    find_files ─> paths by (task, split) ─ load_data ─> TokenizedDataset by (task, split)
    own_files names the files of a task from a user's own file; write_own_rows copies its rows to the folder
    check_outputs, prepare_folder before a run; write_all_predictions, write_dev_rows after each of its
    evaluations; make_report at its end

Knows data sets, no model.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from config import UNLABELLED, TrainConfig
from datasets import (
    Example,
    TokenizedDataset,
    held_out,
    read_examples,
    read_own_record,
    read_unlabelled,
    sample_rows,
    tokenize,
)
from evaluation import Evaluation, six_digits, write_predictions
from support import parallel
from support.errors import UserError, one_line
from support.files import check_writable, is_stream, write_text
from support.screen import cut
from tasks import TASKS, Task

log = logging.getLogger("smart_bert")
SAMPLE = Path(__file__).resolve().parent / "data" / "sample"
# what a run leaves in its folder
RUN_FILES = ["last", "last.previous", "last.damaged", "last.old", "best", "metrics.jsonl", "results.json"]
RUN_FILES += ["predictions", "tensorboard", "report.html"]  # earlier versions' event files are in tensorboard
EVENTS = "events.out.tfevents.*"  # TensorBoard's
OWN_DATA = "own_data"  # the rows of the user's own task
RUN_FILES += [OWN_DATA]
HELD_OUT_SPLITS = ("train", "dev")
RECORD = "download.json"  # of data.download: where the data files beside it are from
UNKNOWN_SHARE = 0.2  # of a training file's word pieces, from which on a line says so
Key = tuple[str, str]  # (task, split)
Data = dict[Key, TokenizedDataset]


def find_files(
    wanted: Sequence[Key], data_dir: str | None, flags: Mapping[str, str], needs_test: bool
) -> tuple[dict[Key, Path], str]:
    """The path of each (task, split), and in a word or two where the files are from.

    flags: files by flag, such as sst_train; they come before those of `data_dir`. Without any file the sample
    is used, and a line says so. A test file may be missing, with a line, unless a flag names it or its output
    or `needs_test` is set. Raises UserError that names the first missing file.
    """
    chosen = data_dir or os.environ.get("SMART_BERT_DATA_DIR")
    folder = Path(chosen or "data")
    given = {key: Path(flags["_".join(key)]) for key in wanted if "_".join(key) in flags}
    files = {(task, split): folder / TASKS[task].filename(split) for task, split in wanted} | given
    missing = [key for key, path in files.items() if not os.path.isfile(path)]
    if wanted and len(missing) == len(files) and not chosen and not given:
        sample = {key: SAMPLE / TASKS[key[0]].filename(key[1]) for key in wanted}
        if all(path.is_file() for path in sample.values()):
            fetch = "python -m data.download fetches real ones"
            print(f"No course files found: this run uses data/sample. {fetch}.")
            return sample, "sample"
    for task, split in missing:
        path = files.pop((task, split))
        if split != "test" or needs_test or (task, split) in given or f"{task}_test_out" in flags:
            mend = f"give it with --{task}_{split}, or its folder with --data_dir (see data/README.md)"
            raise UserError(f"{path}: no such file; {mend}")
        print(f"no test file {path}: no test predictions for {task}")
    if files and all(path.resolve().parent == SAMPLE for path in files.values()):
        return files, "sample"
    return files, str(folder) if len(given) < len(files) else "files given by flag"


def own_files(
    wanted: Sequence[Key], flags: Mapping[str, str | None], folders: Sequence[Path], needs_test: bool
) -> dict[Key, Path]:
    """The path of each (task, split) of a task from a user's own file.

    flags: path by split, the first choice. folders: runs that may have left their rows (`write_own_rows`). A
    test file may be missing, unless `needs_test`. Raises UserError that names the flag.
    """
    files = {}
    for task, split in wanted:
        saved = [folder / OWN_DATA / f"{split}.jsonl" for folder in folders]
        flag = f"--{split}_file"
        if path := flags.get(split):
            if not os.path.isfile(path):
                raise UserError(f"{flag} {path}: no such file")
            files[task, split] = Path(path)
        elif there := [path for path in saved if path.is_file()]:
            files[task, split] = there[0]
        elif split != "test" or needs_test:
            raise UserError(f"{task}: its {split} rows are not with the model; give them with {flag}")
    return files


def input_files(config: TrainConfig, wanted: Sequence[Key], needs_test: bool) -> tuple[dict[Key, Path], str]:
    """`find_files`, and for the user's own task `own_files`: of the flags, or what its run has left."""
    own = [key for key in wanted if key[0] not in TASKS]
    others = [key for key in wanted if key[0] in TASKS]
    files, source = find_files(others, config.data_dir, config.files, needs_test)
    flags = {"train": config.train_file, "dev": config.dev_file, "test": config.test_file}
    folders: list[Path] = []
    if config.checkpoint:
        folders = [Path(config.checkpoint[0]), Path(config.checkpoint[0]).parent]
    elif config.resume:  # the rows that it was started with
        folders = [Path(config.output_dir)]
        flags = {"test": flags["test"] if os.path.isfile(flags["test"] or "") else None}
    else:
        flags["dev"] = flags["dev"] or flags["train"]
    if own and not others:
        source = Path(config.train_file or "own data").name
    return files | own_files(own, flags, folders, needs_test), source


def with_own_task(config: TrainConfig) -> TrainConfig:
    """The settings with the whole record of the user's own task, read from --train_file. Raises UserError."""
    if not config.train_file or set(config.own) != {"name"}:
        return config
    columns = (config.text_column, config.label_column[0])
    return replace(
        config, own=read_own_record(config.train_file, config.task_name, *columns, config.regression)
    )


def load_data(
    files: Mapping[Key, Path],
    tasks: Mapping[str, Task],
    tokenizer: Tokenizer,
    max_length: int,
    limits: Mapping[str, int | None],
) -> Data:
    """Read and tokenise every file; warns of rows that were cut, and of texts that the encoder cannot read.

    limits: number of rows by split. If an own task has one file for train and dev, a part of its rows is held
    out for dev.
    """
    data = {}
    bar = tqdm(files.items(), desc="reading", leave=False, disable=parallel.bar_disabled())
    for (name, split), path in bar:
        task = tasks[name]
        own = name not in TASKS
        if split == UNLABELLED:
            examples = read_unlabelled(path, task)
        else:
            examples = read_examples(path, task, split != "test")
            if own and split in HELD_OUT_SPLITS and len({files.get((name, s)) for s in HELD_OUT_SPLITS}) == 1:
                examples = held_out(examples)[split]
            examples = sample_rows(examples, limits.get(split))
        dataset = tokenize(examples, task, tokenizer, max_length)
        if split == "dev" or (own and split != UNLABELLED):
            dataset = replace(dataset, texts=[example.texts for example in examples])
        if dataset.num_truncated:
            words = "%s: %d of %d rows cut to --max_length %d tokens"
            log.warning(words, path, dataset.num_truncated, len(examples), max_length)
        if split in ("train", UNLABELLED):
            warn_of_unknown(path, dataset, examples, tokenizer)
        data[name, split] = dataset
    return data


def warn_of_unknown(
    source: str | Path, dataset: TokenizedDataset, examples: Sequence[Example], tokenizer: Tokenizer
) -> None:
    """Warn where a fifth of the word pieces or more are [UNK]: the encoder learns nothing from those.

    source: where the examples are from.
    """
    unknown = dataset.tokens == tokenizer.token_to_id(tokenizer.model.unk_token)
    pieces = ~np.isin(dataset.tokens, tokenizer.encode("").ids)  # all but [CLS] and [SEP]
    share = unknown.sum() / max(1, pieces.sum())
    if share < UNKNOWN_SHARE:
        return
    of_rows = [np.add.reduceat(flags.astype(int), dataset.starts[:-1]) for flags in (unknown, pieces)]
    worst = int(np.argmax(of_rows[0] / np.maximum(of_rows[1], 1)))
    example = cut(repr(" | ".join(examples[worst].texts)), 80)
    words = "%s: %.0f %% of the word pieces are %s, which the encoder cannot read; for example %s"
    log.warning(words, source, 100 * share, tokenizer.model.unk_token, example)


def say_own(name: str, data: Data, files: Mapping[Key, Path]) -> None:
    """Print what was read from a user's own file: classes with their rows, or the range of scores."""
    train = data[name, "train"]
    assert train.labels is not None
    dev = data[name, "dev"].labels if (name, "dev") in data else None  # --eval_tasks may leave it out
    both = (train.labels, train.labels[:0] if dev is None else dev)
    names = train.task.label_names
    if names:
        counts = [torch.bincount(labels.long(), minlength=len(names)) for labels in both]
        listed = ", ".join(f"{label} ({a} + {b})" for label, a, b in zip(names, *counts, strict=True))
        hint = "; --regression learns them as scores" if isinstance(train.task.labels[-1], int) else ""
        print(f"{name}: {len(names)} classes, rows for training + dev: {cut(listed, 2000)}{hint}")
    else:
        scores = torch.cat(both)
        sizes = f"{len(both[0]):,} + {len(both[1]):,} rows for training + dev"
        hint = "--no-regression learns them as classes"
        print(f"{name}: scores from {scores.min():g} to {scores.max():g}, {sizes}; {hint}")
    if files[name, "train"] == files.get((name, "dev")):
        print(f"{name}: a tenth of {files[name, 'train']} is held out for dev, the same rows in every run")


# --------------------------------------------------------------------------------- the run's folder


def prediction_path(flags: Mapping[str, str], folder: Path, task: str, split: str) -> Path:
    """Where the predictions of a task's split go: to `folder`/predictions, or where its flag says."""
    usual = folder / "predictions" / f"{task}-{split}-output.csv"
    return Path(flags.get(f"{task}_{split}_out", usual))


def check_outputs(
    folder: Path, flags: Mapping[str, str], outputs: Iterable[Key], inputs: Iterable[Path], trains: bool
) -> None:
    """Check where a run will write, before the hours of work that lead there.

    Raises UserError if a prediction file can't be written, or would replace a file that the run reads or
    another output, or if a run that `trains` nothing would replace the results of one that did.
    """
    taken = {os.path.realpath(path) for path in inputs}
    for task, split in outputs:
        flag = f"--{task}_{split}_out" if f"{task}_{split}_out" in flags else "--output_dir"
        output = prediction_path(flags, folder, task, split)
        check_writable(output, flag)
        if os.path.realpath(output) in taken:
            why = "would replace a file that the run reads, or another output; name another file"
            raise UserError(f"{flag} {output}: {why}")
        if not is_stream(output):
            taken.add(os.path.realpath(output))
    check_writable(folder / "results.json", "--output_dir")
    if not trains and (folder / "metrics.jsonl").exists():
        why = "holds a training run, whose results would be replaced; name another folder"
        raise UserError(f"--output_dir {folder}: {why}")


def prepare_folder(folder: Path, overwrite: bool) -> None:
    """Raises UserError if the folder holds a run; with `overwrite` deletes the run."""
    there = [folder / name for name in RUN_FILES if os.path.lexists(folder / name)]
    there += folder.glob(EVENTS)
    if there and not overwrite:
        mend = "go on with it by --resume, delete it by --overwrite_output_dir, or name another"
        raise UserError(f"--output_dir {folder}: holds a run; {mend}")
    for path in there:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_all_predictions(
    flags: Mapping[str, str],
    folder: Path,
    split: str,
    datasets: list[TokenizedDataset],
    predictions: Mapping[str, np.ndarray],
) -> list[Path]:
    """Write the course's prediction files to `folder`/predictions or where flags say; returns their paths."""
    paths = []
    for dataset in datasets:
        name = dataset.task.name
        paths.append(prediction_path(flags, folder, name, split))
        if parallel.rank() == 0:
            values = [dataset.task.written(value) for value in predictions[name]]
            write_predictions(paths[-1], dataset.task.prediction_column, dataset.ids, values)
    return paths


def write_own_rows(folder: Path, data: Data) -> None:
    """Copy the rows of the user's own task, by split, to `folder`/own_data: the run needs no other file."""
    for (name, split), dataset in data.items() if parallel.rank() == 0 else ():
        if name in TASKS or split == UNLABELLED:
            continue
        task = dataset.task
        labels = [] if dataset.labels is None else dataset.labels.numpy()
        lines = []
        for i, id in enumerate(dataset.ids):
            row: dict[str, Any] = {"id": id, **dict(zip(task.text_columns, dataset.texts[i], strict=True))}
            if dataset.labels is not None:  # str of an fp32 number reads back as the same number
                row[task.label_column] = task.written(labels[i]) if task.labels else float(str(labels[i]))
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        write_text(folder / OWN_DATA / f"{split}.jsonl", "".join(lines))


def write_dev_rows(folder: Path, datasets: list[TokenizedDataset], result: Evaluation) -> None:
    """Write `folder`/predictions/<task>-dev-rows.jsonl, from which the report is made.

    A line is a row's id, texts, label, prediction and, of a task with classes, their probabilities. Classes
    stand under their names, numbers have six digits.
    """
    for dataset in datasets if parallel.rank() == 0 else []:
        task = dataset.task
        assert dataset.labels is not None, "dev files have labels"
        labels = dataset.labels.tolist()
        predictions = result.predictions[task.name].tolist()
        probabilities = task.probabilities(result.logits[task.name]).tolist() if task.probabilities else None

        def named(value: float, names: tuple[str, ...] = task.label_names) -> str | float:
            return names[int(value)] if names else six_digits(value)

        lines = []
        for i, id in enumerate(dataset.ids):
            row: dict[str, Any] = {"id": id, "texts": dataset.texts[i]}
            row |= {"label": named(labels[i]), "prediction": named(predictions[i])}
            if probabilities:
                values = map(six_digits, probabilities[i])
                row["probabilities"] = dict(zip(task.label_names, values, strict=True))
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        write_text(folder / "predictions" / f"{task.name}-dev-rows.jsonl", "".join(lines))


def make_report(folder: Path) -> None:
    """Make the page of the run. A failure, or Ctrl-C, is a warning: the report must not cost the run."""
    if parallel.rank() != 0:
        return
    try:
        import report  # imported here, so that training starts sooner

        print(f"report: {report.write_report(folder)}")
    except (Exception, KeyboardInterrupt) as error:
        log.warning("report.html was not made (%s)", one_line(error))
