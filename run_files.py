"""The files of a run: which ones it reads, what is in them, and the folder it may write to. Knows data sets,
no model."""

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tqdm import tqdm

from config import TrainConfig
from datasets import TokenizedDataset, read_examples, sample_rows, tokenize
from evaluation import write_predictions
from support import parallel
from support.errors import UserError
from tasks import TASKS

log = logging.getLogger("smart_bert")
RUN_FILES = (
    "last",
    "best",
    "metrics.jsonl",
    "results.json",
    "predictions",
    "tensorboard",
)  # what a run leaves in its folder
HERE = Path(__file__).resolve().parent
Key = tuple[str, str]  # (task, split)
Data = dict[Key, TokenizedDataset]


def check_outputs(config: TrainConfig) -> None:
    """Raises UserError if a place given for predictions can't be written, before the hours of work that lead
    there."""
    for name, path in config.files.items():
        if name.endswith("_out"):
            folder = next(parent for parent in Path(path).absolute().parents if parent.exists())
            if os.path.isdir(path) or not (folder.is_dir() and os.access(folder, os.W_OK)):
                raise UserError(f"--{name} {path}: cannot be written there; name a file in a folder that can")


def find_files(config: TrainConfig, wanted: Sequence[Key]) -> tuple[dict[Key, Path], str]:
    """Path of each (task, split), and where they are from in a word or two; says so if that is the sample.
    Raises UserError."""
    chosen = config.data_dir or os.environ.get("SMART_BERT_DATA_DIR")
    folder = Path(chosen or "data")
    given = {key: Path(config.files["_".join(key)]) for key in wanted if "_".join(key) in config.files}
    files = {
        (task, split): given.get((task, split), folder / TASKS[task].filename(split))
        for task, split in wanted
    }
    missing = [key for key, path in files.items() if not os.path.isfile(path)]
    if len(missing) == len(files) and not chosen and not given:
        sample = {
            (task, split): HERE / "data" / "sample" / TASKS[task].filename(split) for task, split in wanted
        }
        if all(path.is_file() for path in sample.values()):
            print(
                "No course files found, so this run uses data/sample; data/README.md says where"
                " to get the real ones."
            )
            return sample, "sample"
    if missing:
        flag = "--" + "_".join(missing[0])
        raise UserError(
            f"{files[missing[0]]}: no such file; give it with {flag}, or its folder with"
            " --data_dir (see data/README.md)"
        )
    return files, str(folder) if len(given) < len(files) else "files given by flag"


def load_data(config: TrainConfig, files: dict[Key, Path], tokenizer: Tokenizer) -> Data:
    """Read and tokenise every file; says how many rows each has and how many were cut."""
    limits = {"train": config.max_train_samples, "dev": config.max_eval_samples, "test": None}
    data = {}
    for (task, split), path in tqdm(
        files.items(), desc="reading", leave=False, disable=parallel.bar_disabled()
    ):
        examples = sample_rows(read_examples(path, TASKS[task], labelled=split != "test"), limits[split])
        data[task, split] = tokenize(examples, TASKS[task], tokenizer, config.max_length)
        cut = data[task, split].num_truncated
        if cut:
            log.warning(
                "%s: %d of %d rows cut to --max_length %d tokens", path, cut, len(examples), config.max_length
            )
    return data


def prepare_folder(folder: Path, overwrite: bool) -> None:
    """Raises UserError if the folder holds a run; with `overwrite` deletes it."""
    there = [folder / name for name in RUN_FILES if os.path.lexists(folder / name)]
    if there and not overwrite:
        raise UserError(
            f"--output_dir {folder}: holds a run; go on with it by --resume, delete it by"
            " --overwrite_output_dir, or name another"
        )
    for path in there:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_all_predictions(
    config: TrainConfig, folder: Path, split: str, datasets: list[TokenizedDataset], predictions: dict
) -> list[Path]:
    """The course's files under `folder`/predictions, or where --<task>_<split>_out points. Returns their
    paths."""
    paths = []
    for dataset in datasets:
        name = dataset.task.name
        paths.append(
            Path(
                config.files.get(f"{name}_{split}_out", folder / "predictions" / f"{name}-{split}-output.csv")
            )
        )
        if parallel.rank() == 0:
            write_predictions(paths[-1], dataset.task.prediction_column, dataset.ids, predictions[name])
    return paths
