"""Kill training runs with SIGKILL at random moments, resume them, and compare them with uninterrupted runs.

    python tests/kill_and_resume.py --kills 20 --folder runs/kills
    python tests/kill_and_resume.py --chains 20 --folder runs/chains

--kills: each run, with SMART, Bregman and R-Drop on, is killed once. --chains: each run is killed three
times, and in between its newest checkpoint is damaged, so that it falls back to the one before; plain and
SMART, fp32 and bf16 in turn. Half of all kills fall while a checkpoint is being written.
"""

import argparse
import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAM = HERE.parent / "multitask_classifier.py"
TERMS = ["--use_smart", "--rdrop_weight=0.1"]
SIZE = ["--max_train_samples=40", "--max_eval_samples=12", "--batch_size=4"]
LENGTH = ["--epochs=2", "--steps_per_epoch=15", "--logging_steps=4", "--save_steps=1", "--no_report"]
RUN = [*TERMS, *SIZE, *LENGTH]
UNLABELLED = HERE.parent / "data" / "sample" / "ids-sst-test-student.csv"
MIXING = ("--schedule=annealed", f"--unlabelled_file={UNLABELLED}", "--unlabelled_task=sst")
# What the runs of the chains are, in turn.
KINDS = [[*terms, *SIZE, *LENGTH, f"--precision={p}"] for p in ("fp32", "bf16") for terms in (TERMS, [])]


def outcome(folder: Path) -> dict:
    """What a finished run leaves and no clock has touched: files byte by byte, the log, the scores."""
    files = [*folder.glob("predictions/*"), *folder.glob("*/*.safetensors"), folder / "last/optimizer.json"]
    files = [file for file in files if file.parent.name in ("predictions", "best", "last")]
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    results = json.loads((folder / "results.json").read_text())
    clock_or_path = ("train_seconds", "save_seconds", "examples_per_second", "config", "precision_reason")
    clock_or_path += ("peak_memory_gib", "peak_gpu_memory_gib")
    return {
        "files": {str(file.relative_to(folder)): file.read_bytes() for file in files},
        "log": [{name: value for name, value in line.items() if "per_" not in name} for line in lines],
        "scores": {name: results[name] for name in results if name not in clock_or_path},
    }


def start(*arguments: str | Path) -> subprocess.Popen:
    """The program as a process of its own."""
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen, *killed: int) -> None:
    """Wait for the end. Raises RuntimeError with its standard error if the status is not 0 or `killed`."""
    _, said = process.communicate()
    if process.returncode not in (0, *killed):
        raise RuntimeError(f"status {process.returncode}: {said}")


def wait_for(process: subprocess.Popen, path: Path, since: float = 0.0) -> None:
    """Wait until the path exists and is newer than `since`, or the process has ended."""
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):  # a save renames `last` while it is looked at
            if path.stat().st_mtime > since:
                return
        time.sleep(0.0002)


def damage(folder: Path, moment: random.Random) -> str:
    """Flip a bit of one file of a checkpoint, cut off the file's end, or remove it. Says which."""
    file = moment.choice(sorted(folder.iterdir()))
    data = file.read_bytes()
    place = moment.randrange(len(data))
    flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    kind, content = moment.choice([("flipped", flipped), ("cut", data[:place]), ("missing", None)])
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    return f"{file.name} {kind}"


def killed_and_resumed(
    folder: Path, arguments: list, seconds: float, moment: random.Random, kills: int, damaging: bool
) -> list[str]:
    """A run, killed `kills` times, resumed each time, and then to its end. Returns what was damaged.

    A kill falls within `seconds` / `kills` of the process's first checkpoint. Raises RuntimeError if a
    process failed, or did not fall back from a damaged checkpoint.
    """
    damaged: list[str] = []
    for k in range(kills + 1):
        begin = time.time()
        process = start(*(["--resume"] if k else arguments), "--output_dir", folder)
        if k < kills:
            wait_for(process, folder / "last" / "manifest.json", since=begin)
            time.sleep(moment.uniform(0, seconds / kills))
            if moment.random() < 0.5:
                wait_for(process, folder / "last.new")
                time.sleep(moment.uniform(0, 0.02))  # somewhere in the writing
            process.kill()
        finish(process, -signal.SIGKILL)
        if damaged and not (folder / "last.damaged").exists():
            raise RuntimeError(f"{folder}: no fall back from {damaged[-1]}")
        if damaging and k < kills and (folder / "last").is_dir() and (folder / "last.previous").is_dir():
            shutil.rmtree(folder / "last.damaged", ignore_errors=True)
            damaged.append(damage(folder / "last", moment))
    return damaged


def compare(
    runs: int, folder: Path, encoder: str, chains: bool = False, flags: tuple[str, ...] = ()
) -> tuple[int, int]:
    """How many runs ended like an uninterrupted one, and how often they fell back to the checkpoint before.

    Prints a line for each run."""
    moment = random.Random(0)
    kinds = KINDS if chains else [RUN]
    wholes: list[tuple[dict, float]] = []  # outcome, seconds after the first checkpoint
    equal = falls = 0
    for k in range(runs):
        arguments = [*kinds[k % len(kinds)], "--model_name_or_path", encoder, *flags]
        if k < len(kinds):
            whole = folder / f"whole{k}"
            process = start(*arguments, "--output_dir", whole)
            wait_for(process, whole / "last")
            begin = time.monotonic()
            finish(process)
            wholes.append((outcome(whole), time.monotonic() - begin))
        expected, seconds = wholes[k % len(kinds)]
        many = {"kills": 3 if chains else 1, "damaging": chains}
        damaged = killed_and_resumed(folder / f"run{k}", arguments, 0.8 * seconds, moment, **many)
        same = outcome(folder / f"run{k}") == expected
        equal += same
        falls += len(damaged)
        print(f"run {k}: {', '.join(damaged) or 'killed'}: {'equal' if same else 'DIFFERENT'}", flush=True)
    return equal, falls


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=0, help="runs that are killed once")
    parser.add_argument("--chains", type=int, default=0, help="runs that are killed three times")
    parser.add_argument("--folder", type=Path, required=True, help="a new folder for all the runs")
    parser.add_argument("--encoder", help="--model_name_or_path of the runs (default: a tiny random BERT)")
    parser.add_argument("--deterministic", action="store_true", help="start the runs with this flag")
    parser.add_argument("--mixing", action="store_true", help="an annealed schedule, and unlabelled batches")
    given = parser.parse_args()
    given.folder.mkdir(parents=True)
    if not given.encoder:
        sys.path.insert(0, str(HERE.parent))
        from tiny_bert import tiny_encoder

        given.encoder = tiny_encoder(given.folder / "encoder")
    flags = ("--deterministic",) if given.deterministic else ()
    flags += MIXING if given.mixing else ()
    equal, _ = compare(given.kills, given.folder / "kills", given.encoder, flags=flags)
    chained, falls = compare(given.chains, given.folder / "chains", given.encoder, chains=True)
    tried = given.kills + given.chains
    print(f"{falls} times a run fell back to the checkpoint before a damaged one")
    print(f"{equal + chained} of {tried} ended bit for bit like the uninterrupted run")
    sys.exit(equal + chained < tried)
