"""Records: the best mean of the three dev scores within two hours on two cores, and the fastest to .744.

    python -m experiments.records --check 1 --seed 7     # runs a record's command with another seed

A line of records.jsonl is a record: class, date, commit, what it was, what dev chose; and its command,
seeds, dev scores, seconds, processor and precision, or the question whose best run has them (`of`). A record
after the first counts if dev did not choose its settings: these come from rows that are nobody's dev
(`held_out.py`).
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from experiments import best, tables
from experiments.tables import HERE, NAMES
from support.errors import UserError, exit_status
from support.files import read_json

FILE = HERE / "records.jsonl"
TOLERANCE = 0.01  # of the mean: two seeds of a model differ by less


def records() -> list[dict[str, Any]]:
    """All records, the oldest first, each with its command, scores and seconds."""
    found = []
    for line in map(json.loads, FILE.read_text(encoding="utf-8").splitlines()):
        if line.get("of") == "best":
            run = best.recommended_line(best.all_lines())
            seeds = tables.of_arm(best.all_lines(), run["arm"])
            dev = {task: statistics.fmean(map(tables.of("score", task), seeds)) for task in NAMES}
            line |= {name: run[name] for name in ("precision", "processor", "threads")}
            line["seconds"] = statistics.fmean(other["seconds"] for other in seeds)
            line |= {"dev": dev, "seeds": len(seeds), "command": best.command_of(run)}
        found.append(line)
    return found


def page() -> str:
    """For records.md: a row a record, and its command."""
    after = ("mean", "seeds", "minutes", "threads", "processor")
    heads = ["", "class", "date", "commit", *NAMES.values(), *after]
    rows, commands = [], []
    for number, record in enumerate(records(), start=1):
        dev = [record["dev"][task] for task in NAMES]
        scores = [f"{value:.3f}" for value in (*dev, statistics.fmean(dev))]
        where = f"{record['processor']}, {record['precision']}"
        size = [str(record["seeds"]), f"{record['seconds'] / 60:.0f}", str(record["threads"]), where]
        rows.append([str(number), record["class"], record["date"], record["commit"], *scores, *size])
        commands.append(f"{number}. {record['what']}: `{record['command']}`")
    return "\n\n".join([tables.markdown(heads, rows), "\n".join(commands)])


def recommended() -> str:
    """For the main README: the scores, the time and the command of the last record of two hours."""
    record = [record for record in records() if record["class"] == "two hours"][-1]
    scores = ", ".join(f"{name} {record['dev'][task]:.3f}" for task, name in NAMES.items())
    seeds = "one seed" if record["seeds"] == 1 else f"{record['seeds']} seeds"
    said = f"Recommended: {scores}, in {record['seconds'] / 60:.0f} minutes of one core ({seeds};"
    said += f" dev chose the {record['dev_chose']}; [records](experiments/records.md))."
    # on one line: PowerShell has no backslash at a line's end
    fence = f"```console\n# the course's files (see data/README.md)\n{record['command']}\n```"
    return f"{textwrap.fill(said, 110)}\n\n{fence}"


def check(number: int, data_dir: Path, seed: int) -> None:
    """Run a record's command with this seed. Raises UserError if the mean is lower than the record's."""
    record = records()[number - 1]
    _, *words = shlex.split(record["command"])
    with tempfile.TemporaryDirectory() as folder:
        given = ["--data_dir", str(data_dir), "--output_dir", f"{folder}/run", "--seed", str(seed)]
        command = [sys.executable, str(HERE.parent / words[0]), *words[1:], *given, "--no_report"]
        subprocess.run(command, check=True)
        results = read_json(Path(folder) / "run" / "results.json")
    reached, told = results["dev_mean"], statistics.fmean(record["dev"].values())
    minutes = results["train_seconds"] / 60
    print(f"record {number}: mean {told:.3f}; seed {seed}: {reached:.3f} in {minutes:.0f} minutes")
    if reached < told - TOLERANCE:
        raise UserError(
            f"record {number} is not reproduced: {reached:.3f} is below {told:.3f} - {TOLERANCE:g}"
        )


def main() -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", type=int, metavar="NUMBER", required=True, help="run this record")
    parser.add_argument("--data_dir", type=Path, default="data", help="folder of the course's files")
    parser.add_argument("--seed", type=int, default=1, help="seed of the run")
    options = parser.parse_args()
    check(options.check, options.data_dir, options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status("experiments.records", main))
