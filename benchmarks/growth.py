"""Memory and time as the work grows: pairs to read, tokens a row, layers of the encoder. Prints, writes JSON
and a plot.

    python -m benchmarks.growth --data_dir path/to/data

Each point is measured in a process of its own, whose peak of resident memory is taken above what it had after
importing, before the work.
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
from collections.abc import Sequence
from pathlib import Path

# torch and the project are imported by the points' own processes: this one stays small

HERE = Path(__file__).resolve().parent
# What grows -> its sizes. Each doubles, or nearly, so that a line of slope 1 in the plot is growth in
# proportion.
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
    """Resident memory of this process in MB, VmRSS now or VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def reading(size: int, path: Path):
    """Work on `size` rows: a Quora file of them, read and tokenised."""
    from base_bert import load_tokenizer
    from datasets import read_examples, tokenize
    from tasks import TASKS

    tokenizer = load_tokenizer()
    return lambda: tokenize(read_examples(path, TASKS["para"]), TASKS["para"], tokenizer, 256)


def training(rows: int, tokens: int, layers: int):
    """Work on one plain training step of an encoder as wide as minilm with random weights, all rows of the
    same length."""
    import numpy as np
    import torch

    import multitask_classifier as program
    from base_bert import BertConfig
    from benchmarks.rows import new_learner, our_step
    from bert import BertModel
    from datasets import TokenizedDataset
    from support.devices import keep_freed_memory
    from tasks import TASKS

    keep_freed_memory()  # as the program does
    shape = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
    model = program.MultitaskBERT(BertModel(BertConfig(num_hidden_layers=layers, **shape))).train()
    dataset = TokenizedDataset(
        task=TASKS["sst"],
        ids=[str(row) for row in range(rows)],
        labels=torch.arange(rows) % 5.0,
        tokens=np.random.default_rng(0).integers(1000, 30000, rows * tokens, dtype=np.int32),
        starts=np.arange(rows + 1) * tokens,
        seconds=np.full(rows, tokens),
        num_truncated=0,
    )
    learner = new_learner(model)
    return lambda: our_step(learner, dataset, np.arange(rows))


# What grows -> how to prepare the work of one size (and, for pairs, the file), and how often to do it: the
# median of the times counts.
POINTS = {
    "pairs": (reading, 1),
    "tokens": (lambda size, path: training(8, size, 6), 3),
    "layers": (lambda size, path: training(32, 25, size), 3),
}


def measure(series: str, size: int, path: Path) -> dict[str, float]:
    """Seconds and MB above the start of one piece of work, in this process."""
    prepare, times = POINTS[series]
    work, seconds = prepare(size, path), []
    before = resident("VmRSS")
    for _ in range(times):
        begin = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - begin)
    del result
    return {"seconds": sorted(seconds)[(times - 1) // 2], "megabytes": resident("VmHWM") - before}


def write_pairs(source: Path, path: Path, count: int) -> None:
    """A file of `count` rows: those of `source` over and over."""
    with open(source, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, delimiter="\t")
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([header, *itertools.islice(itertools.cycle(rows), count)])


def measure_apart(series: str, size: int, data_dir: Path, scratch: Path) -> dict[str, float]:
    """`measure` in a new process."""
    path = scratch / "pairs.csv"
    if series == "pairs":
        write_pairs(data_dir / "quora-train.csv", path, size)
    command = [sys.executable, "-m", "benchmarks.growth", "--point", series, str(size), str(path)]
    return json.loads(
        subprocess.run(command, cwd=HERE.parent, check=True, stdout=subprocess.PIPE, text=True).stdout
    )


def plot(results: dict[str, dict[int, dict]], path: Path) -> None:
    """Two panels a series, time and memory, on doubly logarithmic axes, with a dashed line of growth in
    proportion to the size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, len(results), figsize=(4 * len(results), 6), squeeze=False)
    for column, (series, points) in zip(panels.T, results.items(), strict=True):
        sizes = list(points)
        for panel, (quantity, label) in zip(
            column, {"seconds": "time, s", "megabytes": "peak memory above start, MB"}.items(), strict=True
        ):
            values = [points[size][quantity] for size in sizes]
            panel.loglog(sizes, values, "o-")
            panel.loglog(
                sizes, [values[-1] * size / sizes[-1] for size in sizes], "--", color="gray", linewidth=1
            )
            panel.set(
                xticks=sizes,
                xticklabels=[f"{size // 1000}k" if size >= 1000 else size for size in sizes],
                ylabel=label,
            )
            panel.minorticks_off()
        column[0].set_title(TITLES[series], fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data_dir",
        type=Path,
        default=os.environ.get("SMART_BERT_DATA_DIR"),
        help="default: $SMART_BERT_DATA_DIR",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SERIES,
        default=list(SERIES),
        metavar="SERIES",
        help=f"any of {', '.join(SERIES)}",
    )
    parser.add_argument("--largest", type=int, help="leave out the sizes above this one")
    parser.add_argument(
        "--output",
        type=Path,
        default=HERE / "growth.json",
        help="JSON; the plot is put beside it (default: %(default)s)",
    )
    parser.add_argument(
        "--point",
        nargs=3,
        metavar=("SERIES", "SIZE", "PATH"),
        help="measure one point in this process, print JSON",
    )
    options = parser.parse_args(arguments)
    if options.point:
        series, size, path = options.point
        print(json.dumps(measure(series, int(size), Path(path))))
        return
    if options.data_dir is None and "pairs" in options.only:
        parser.error("the pairs need --data_dir")
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        for series in options.only:
            print(TITLES[series])
            results[series] = {}
            for size in SERIES[series]:
                if options.largest is None or size <= options.largest:
                    point = results[series][size] = measure_apart(
                        series, size, options.data_dir, Path(scratch)
                    )
                    print(
                        f"  {size:>9,}  {point['seconds']:8.2f} s  {point['megabytes']:8.0f} MB", flush=True
                    )
    options.output.write_text(json.dumps(results, indent=2) + "\n")
    plot({series: points for series, points in results.items() if points}, options.output.with_suffix(".png"))
    print(f"written to {options.output} and {options.output.with_suffix('.png')}")


if __name__ == "__main__":
    main()
