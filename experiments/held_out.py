"""Rows that are nobody's dev: drawn once from the training files, and taken out of training.

844 of SST's rows, 500 of STS's, 4,000 of Quora's. Choices are made on them, so that dev stays a measurement.
"""

from pathlib import Path

import numpy as np

from datasets import read_examples
from experiments.runner import write_examples
from tasks import TASKS

HELD_OUT = {"sst": 844, "sts": 500, "para": 4_000}
SEED = 32  # of the draw


def held_out_folder(data_dir: Path, folder: Path) -> Path:
    """The folder, now with data files in the course's layout: the rest as train, the rows held out as dev."""
    for task, count in HELD_OUT.items():
        record = TASKS[task]
        if (folder / record.filename("dev")).exists():  # the file that is written last
            continue
        examples = read_examples(data_dir / record.filename("train"), record)
        order = np.random.default_rng((SEED, *task.encode())).permutation(len(examples))
        for split, rows in (("train", order[count:]), ("dev", order[:count])):
            write_examples(folder / record.filename(split), record, (examples[i] for i in np.sort(rows)))
    return folder
