"""Memory and time against the size of the work: pairs to read, tokens in a row, layers of the encoder.

    python -m benchmarks.growth --data_dir path/to/data

Prints, and writes JSON. Each point is measured in a new process. Its memory is the peak of resident memory
minus the resident memory after importing, before the work.
Linux only: the peak is read from /proc. Not handled: GPU memory.
"""

import csv
import functools
import itertools
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from base_bert import BertConfig, load_tokenizer
from benchmarks.command_line import parser_of, write_results
from benchmarks.device_checks import new_batch
from benchmarks.training import Training
from bert import BertModel
from config import TrainConfig
from datasets import read_examples, tokenize
from experiments.tables import markdown
from multitask_classifier import MultitaskBERT
from support.devices import keep_freed_memory
from tasks import TASKS

SERIES = {  # what grows, and its sizes
    "pairs": (1_000, 4_000, 16_000, 64_000, 200_000, 400_000),
    "tokens": (16, 32, 64, 128, 256, 512),
    "layers": (6, 12, 24),
}
Work = Callable[[], object]  # one piece of work, which is timed
Series = dict[str, dict[str, float]]  # size -> quantity -> value


def reading(path: Path) -> Work:
    """Reading and tokenising a file of Quora's pairs."""
    tokenizer = load_tokenizer()
    return lambda: tokenize(read_examples(path, TASKS["para"]), TASKS["para"], tokenizer, 256)


def training(rows: int, tokens: int, layers: int) -> Work:
    """One plain training step on rows of the same length. The encoder has minilm's width and new weights."""
    keep_freed_memory()  # as the main program does
    bert = BertModel(BertConfig(30522, 384, layers, 12, 1536))
    ours = Training(MultitaskBERT(bert).train(), TrainConfig())
    return functools.partial(ours.step, TASKS["sst"], new_batch(rows, tokens, masked=False))


def resident(field: str) -> float:
    """Resident memory of this process in MB: VmRSS is the current value, VmHWM the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measure(series: str, size: int, path: Path) -> dict[str, float]:
    """Seconds (of a training step the median of three), and MB above the memory at the start, of work in this
    process.
    """
    if series == "pairs":
        work = reading(path)
    else:
        work = training(8, size, 6) if series == "tokens" else training(32, 25, size)
    seconds = []
    before = resident("VmRSS")
    for _ in range(1 if series == "pairs" else 3):
        begin = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - begin)
    del result
    return {"seconds": statistics.median(seconds), "megabytes": resident("VmHWM") - before}


def write_pairs(source: Path, path: Path, count: int) -> None:
    """Write a file of `count` rows by repeating the rows of `source`."""
    with open(source, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, delimiter="\t")
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([header, *itertools.islice(itertools.cycle(rows), count)])


def as_table(series: str, points: Series) -> str:
    """A series in Markdown, as it stands on the page."""
    rows = [["time", *(f"{point['seconds']:.2f} s" for point in points.values())]]
    rows.append(["memory", *(f"{point['megabytes']:.0f} MB" for point in points.values())])
    return markdown([series, *(f"{int(size):,}" for size in points)], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser_of("benchmarks.growth", __doc__, "growth.json", data=True).parse_args(arguments)
    results: dict[str, Series] = {}
    with tempfile.TemporaryDirectory() as scratch:
        pairs = Path(scratch) / "pairs.csv"
        for series, sizes in SERIES.items():
            results[series] = {}
            for size in sizes:
                if series == "pairs":
                    write_pairs(options.data_dir / "quora-train.csv", pairs, size)
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                    results[series][str(size)] = process.submit(measure, series, size, pairs).result()
            print(as_table(series, results[series]), flush=True)
    write_results(options.output, "benchmarks.growth", arguments, results)


if __name__ == "__main__":
    main()
