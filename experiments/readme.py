"""The runs behind the results table of the main README: their lines in `readme.jsonl`, and the table.

    python -m experiments.readme --data_dir path/to/data --work_dir runs/readme   # runs what has no line yet
    python -m experiments.readme --table                                         # prints the table

About three hours on two cores in bf16. A run that was broken off is resumed.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.runner import commit

HERE = Path(__file__).resolve().parent
PROGRAM = HERE.parent / "multitask_classifier.py"
RESULTS = HERE / "readme.jsonl"
COMMON = ["--precision", "bf16"]
RUNS = {
    "three tasks with SMART": ["--use_smart", "--max_train_samples", "16000"],
    "three tasks without": ["--max_train_samples", "16000"],
    "sst alone": ["--tasks", "sst"],
    "para alone": ["--tasks", "para", "--max_train_samples", "16000", "--epochs", "2"],
    "sts alone": ["--tasks", "sts"],
}
METRICS = {"sst": "accuracy", "para": "accuracy", "sts": "pearson"}


def lines() -> dict[str, dict[str, Any]]:
    """What `readme.jsonl` holds, by run."""
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    return {line["run"]: line for line in map(json.loads, text.splitlines())}


def line_of(name: str, folder: Path, code: str) -> dict[str, Any]:
    """The line of a finished run."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    run = json.loads((folder / "best" / "run.json").read_text(encoding="utf-8"))
    dev = {task: scores[METRICS[task]] for task, scores in results["dev"].items()}
    return {
        "run": name,
        "flags": [*RUNS[name], *COMMON],
        "dev": dev,
        "best_step": results["best_step"],
        "kept": results.get("kept", "student"),
        "seed": results["config"]["seed"],
        "train_seconds": results["train_seconds"],
        "commit": code,
        "versions": run["versions"],
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def train(name: str, data_dir: str, folder: Path) -> None:
    """Train one run, or the rest of it, and append its line."""
    start = ["--resume"] if (folder / "last").exists() else [*RUNS[name], *COMMON]
    places = ["--data_dir", data_dir, "--output_dir", str(folder)]
    command = [sys.executable, str(PROGRAM), "--no_report", *start, *places]
    subprocess.run(command, check=True)
    append(line_of(name, folder, commit()))


def append(line: dict[str, Any]) -> None:
    """Add a line to `readme.jsonl`."""
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def table() -> str:
    """The README's table. A figure without its line is `…`."""
    found = lines()
    rows = ["| run | SST accuracy | Quora accuracy | STS Pearson | flags |", "|---|---|---|---|---|"]

    def cells(runs: dict[str, str]) -> str:
        scores = {task: found.get(run, {"dev": {}})["dev"].get(task) for task, run in runs.items()}
        return " | ".join("…" if score is None else f"{score:.3f}" for score in scores.values())

    for name in ("three tasks with SMART", "three tasks without"):
        rows.append(f"| {name} | {cells(dict.fromkeys(METRICS, name))} | `{' '.join(RUNS[name] + COMMON)}` |")
    alone = cells({task: f"{task} alone" for task in METRICS})
    note = "one run a task, `--tasks sst`, `para` (16,000 rows, 2 epochs), `sts`"
    rows.append(f"| each task alone | {alone} | {note} |")
    return "\n".join(rows)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", default=os.environ.get("SMART_BERT_DATA_DIR"))
    parser.add_argument("--work_dir", type=Path, default=Path("runs/readme"))
    parser.add_argument("--table", action="store_true", help="print the table of the lines that are there")
    options = parser.parse_args()
    if options.table:
        print(table())
        return
    if not options.data_dir:
        parser.error("--data_dir: the folder of the course's files is needed (or SMART_BERT_DATA_DIR)")
    for name in RUNS:
        if name not in lines():
            train(name, options.data_dir, options.work_dir / name.replace(" ", "-"))


if __name__ == "__main__":
    main()
