"""Memory and time against the size of the work: pairs to read, tokens in a row, layers of the encoder.

    python -m benchmarks.growth --data_dir path/to/data

Prints, writes JSON and a plot. Each point is measured in a new process. Its memory is the peak of resident
memory minus the resident memory after importing, before the work.
Linux only: the peak is read from /proc. Not handled: GPU memory.
"""

import argparse
import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# Only the processes of the points import torch and the project, so this process stays small.

Work = Callable[[], object]  # one piece of work, which is timed

HERE = Path(__file__).resolve().parent
# what grows -> its sizes
SERIES = {
    "pairs": (1_000, 4_000, 16_000, 64_000, 200_000, 400_000),
    "tokens": (16, 32, 64, 128, 256, 512),
    "layers": (6, 12, 24),
}
TITLES = {
    "pairs": "reading and tokenising, pairs",
    "tokens": "training step, 8 rows, 6 layers, tokens a row",
    "layers": "training step, 32 rows of 25 tokens, layers",
}


def resident(field: str) -> float:
    """Resident memory of this process in MB: VmRSS is the current value, VmHWM the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def reading(size: int, path: Path) -> Work:
    """Reading and tokenising the Quora file `path`, which has `size` rows."""
    from base_bert import load_tokenizer
    from datasets import read_examples, tokenize
    from tasks import TASKS

    tokenizer = load_tokenizer()
    return lambda: tokenize(read_examples(path, TASKS["para"]), TASKS["para"], tokenizer, 256)


def training(rows: int, tokens: int, layers: int) -> Work:
    """One plain training step on rows of the same length. The encoder has minilm's width and new weights."""
    import numpy as np
    import torch

    import multitask_classifier as program
    from base_bert import BertConfig
    from benchmarks.training import Training
    from bert import BertModel
    from config import TrainConfig
    from datasets import TokenizedDataset
    from support.devices import keep_freed_memory
    from tasks import TASKS

    keep_freed_memory()  # as the main program does
    shape = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
    model = program.MultitaskBERT(BertModel(BertConfig(num_hidden_layers=layers, **shape))).train()
    dataset = TokenizedDataset(
        task=TASKS["sst"],
        ids=[str(row) for row in range(rows)],
        labels=torch.arange(rows) % 5.0,
        tokens=np.random.default_rng(0).integers(1000, 30000, rows * tokens, dtype=np.int32),
        starts=np.arange(rows + 1) * tokens,
        segment_starts=np.full(rows, tokens),
        num_truncated=0,
    )
    ours = Training(model, TrainConfig())
    return lambda: ours.step_on(dataset, np.arange(rows))


# What grows -> a function that prepares the work for one size (and, for pairs, one file), and the number of
# repetitions, whose median time is taken.
POINTS: dict[str, tuple[Callable[[int, Path], Work], int]] = {
    "pairs": (reading, 1),
    "tokens": (lambda size, path: training(8, size, 6), 3),
    "layers": (lambda size, path: training(32, 25, size), 3),
}


def measure(series: str, size: int, path: Path) -> dict[str, float]:
    """Seconds, and MB above the memory at the start, of one piece of work in this process."""
    prepare, repetitions = POINTS[series]
    work = prepare(size, path)
    seconds = []
    before = resident("VmRSS")
    for _ in range(repetitions):
        begin = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - begin)
    del result
    return {"seconds": sorted(seconds)[(repetitions - 1) // 2], "megabytes": resident("VmHWM") - before}


def write_pairs(source: Path, path: Path, count: int) -> None:
    """Write a file of `count` rows by repeating the rows of `source`."""
    with open(source, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, delimiter="\t")
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([header, *itertools.islice(itertools.cycle(rows), count)])


def measure_in_new_process(series: str, size: int, data_dir: Path, scratch: Path) -> dict[str, float]:
    """`measure` in a new process."""
    path = scratch / "pairs.csv"
    if series == "pairs":
        write_pairs(data_dir / "quora-train.csv", path, size)
    command = [sys.executable, "-m", "benchmarks.growth", "--point", series, str(size), str(path)]
    done = subprocess.run(command, cwd=HERE.parent, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


Results = dict[str, dict[int, dict[str, float]]]  # series -> size -> quantity -> value


def plot(results: Results, path: Path) -> None:
    """Time and memory of each series on logarithmic axes. Dashed: growth in proportion to the size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    quantities = {"seconds": "time, s", "megabytes": "peak memory above start, MB"}
    figure, panels = pyplot.subplots(2, len(results), figsize=(4 * len(results), 6), squeeze=False)
    for column, (series, points) in enumerate(results.items()):
        sizes = list(points)
        for row, (quantity, label) in enumerate(quantities.items()):
            panel = panels[row][column]
            values = [points[size][quantity] for size in sizes]
            proportional = [values[-1] * size / sizes[-1] for size in sizes]
            panel.loglog(sizes, values, "o-")
            panel.loglog(sizes, proportional, "--", color="gray", linewidth=1)
            names = [f"{size // 1000}k" if size >= 1000 else size for size in sizes]
            panel.set(xticks=sizes, xticklabels=names, ylabel=label)
            panel.minorticks_off()
        panels[0][column].set_title(TITLES[series], fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    environment = os.environ.get("SMART_BERT_DATA_DIR")
    parser.add_argument("--data_dir", type=Path, default=environment, help="default: $SMART_BERT_DATA_DIR")
    parser.add_argument(
        "--output",
        type=Path,
        default=HERE / "growth.json",
        help="path of the JSON file; the plot goes to the same folder (default: %(default)s)",
    )
    parser.add_argument("--point", nargs=3, metavar=("SERIES", "SIZE", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.point:
        series, size, path = options.point
        print(json.dumps(measure(series, int(size), Path(path))))
        return
    if options.data_dir is None:
        parser.error("the pairs need --data_dir")
    results: Results = {}
    with tempfile.TemporaryDirectory() as scratch:
        for series, sizes in SERIES.items():
            print(TITLES[series])
            results[series] = {}
            for size in sizes:
                point = measure_in_new_process(series, size, options.data_dir, Path(scratch))
                results[series][size] = point
                spent = f"{point['seconds']:8.2f} s  {point['megabytes']:8.0f} MB"
                print(f"  {size:>9,}  {spent}", flush=True)
    picture = options.output.with_suffix(".png")
    options.output.write_text(json.dumps(results, indent=2) + "\n")
    plot(results, picture)
    print(f"written to {options.output} and {picture}")


if __name__ == "__main__":
    main()
