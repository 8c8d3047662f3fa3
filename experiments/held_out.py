"""Rows that are nobody's dev: drawn once from the training files, and taken out of training.

844 of SST's rows, 500 of STS's, 4,000 of Quora's. Choices are made on them, so that dev stays a measurement.
"""

import csv
import io
from pathlib import Path

import numpy as np

from datasets import Example, read_examples
from support.files import write_text
from tasks import TASKS

HELD_OUT = {"sst": 844, "sts": 500, "para": 4_000}
SEED = 32  # of the draw


def split(task: str, data_dir: Path) -> tuple[list[Example], list[Example]]:
    """The rows to train on and the rows held out, each in file order."""
    record = TASKS[task]
    examples = read_examples(data_dir / record.filename("train"), record)
    order = np.random.default_rng((SEED, *task.encode())).permutation(len(examples))
    held_out, rest = (np.sort(part) for part in np.split(order, [HELD_OUT[task]]))
    return [examples[i] for i in rest], [examples[i] for i in held_out]


def held_out_folder(data_dir: Path, folder: Path) -> Path:
    """The folder, now with data files in the course's layout: the rest as train, the rows held out as dev."""
    for task in HELD_OUT:
        record = TASKS[task]
        if (folder / record.filename("dev")).exists():  # the file that is written last
            continue
        for name, examples in zip(("train", "dev"), split(task, data_dir), strict=True):
            text = io.StringIO(newline="")
            writer = csv.writer(text, delimiter="\t")
            writer.writerow(["id", *record.text_columns, record.label_column])
            writer.writerows([example.id, *example.texts, example.label] for example in examples)
            write_text(folder / record.filename(name), text.getvalue())
    return folder
