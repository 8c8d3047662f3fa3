"""Kill training runs with SIGKILL at random moments, resume them, and compare them with uninterrupted runs.

    python tests/kill_and_resume.py --kills 20 --folder runs/kills
    python tests/kill_and_resume.py --chains 20 --folder runs/chains

--kills: every kill is a run of its own, with SMART, Bregman and R-Drop on, started as a process, killed, and
resumed to its end. Every second kill falls while a checkpoint is being written. --chains: every run is killed
three times or more, and in between its newest checkpoint is damaged, so that it falls back to the one before;
plain and SMART, fp32 and bf16 in turn. tests/test_resume.py does both, with 3 kills and with 2 chains.
--mixing: the killed runs have --schedule annealed and batches without labels.
"""

import argparse
import json
import random
import shutil
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
    files = [
        *(folder / "predictions").iterdir(),
        *(folder / "best").glob("*.safetensors"),
        *(folder / "last").glob("*.safetensors"),
    ]
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    results = json.loads((folder / "results.json").read_text())
    clock_or_path = ("train_seconds", "save_seconds", "examples_per_second", "config", "precision_reason")
    clock_or_path += ("peak_memory_gib", "peak_gpu_memory_gib")
    return {
        "files": {str(file.relative_to(folder)): file.read_bytes() for file in files},
        "log": [{name: value for name, value in line.items() if "per_" not in name} for line in lines],
        "scores": {name: results[name] for name in results if name not in clock_or_path},
    }


def start(*arguments: str) -> subprocess.Popen:
    """The program as a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    """Wait for the process to end. Raises RuntimeError with its standard error if it failed."""
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(f"status {process.returncode}: {said}")


def wait_for(process: subprocess.Popen, path: Path) -> None:
    """Wait until the path exists or the process has ended."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.0002)


def kill_once(
    folder: Path, arguments: list[str], seconds: float, while_writing: bool, moment: random.Random
) -> str:
    """One run, killed within `seconds` of its first checkpoint and resumed to its end.

    Returns what the kill left in its folder."""
    process = start(*arguments, "--output_dir", str(folder))
    wait_for(process, folder / "last")
    time.sleep(moment.uniform(0, seconds))
    if while_writing:
        wait_for(process, folder / "last.new")
        time.sleep(moment.uniform(0, 0.02))  # somewhere in the writing
    process.kill()
    process.communicate()
    if process.returncode == 0:  # it had ended before: try an earlier moment
        shutil.rmtree(folder)
        return kill_once(folder, arguments, seconds / 2, while_writing, moment)
    left = sorted(path.name for path in folder.iterdir())
    finish(start("--resume", "--output_dir", str(folder)))
    return f"left {' '.join(left)}"


def uninterrupted(folder: Path, arguments: list[str]) -> tuple[dict, float]:
    """The outcome of a run that nothing interrupts, and its seconds after its first checkpoint."""
    process = start(*arguments, "--output_dir", str(folder))
    wait_for(process, folder / "last")
    begin = time.monotonic()
    finish(process)
    return outcome(folder), time.monotonic() - begin


def compare(kills: int, folder: Path, encoder: str, seed: int = 0, flags: tuple[str, ...] = ()) -> int:
    """How many of the `kills` runs ended like the uninterrupted one once resumed; prints a line for each."""
    arguments = [*RUN, "--model_name_or_path", encoder, *flags]
    moment = random.Random(seed)
    whole, seconds = uninterrupted(folder / "whole", arguments)
    equal = 0
    for k in range(kills):
        left = kill_once(folder / f"kill{k}", arguments, 0.8 * seconds, k % 2 == 1, moment)
        same = outcome(folder / f"kill{k}") == whole
        equal += same
        print(f"kill {k}: {left}: {'equal' if same else 'DIFFERENT'}", flush=True)
    return equal


def damage(folder: Path, moment: random.Random) -> str:
    """Harm one file of a checkpoint: a byte flipped, the end cut off, emptied, or removed. Says which."""
    file = moment.choice(sorted(folder.iterdir()))
    data = file.read_bytes()
    place = moment.randrange(len(data))
    kinds = {
        "flipped": data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :],
        "cut": data[:place],
        "emptied": b"",
        "missing": None,
    }
    kind = moment.choice(sorted(kinds))
    file.unlink()
    if (harmed := kinds[kind]) is not None:
        file.write_bytes(harmed)
    return f"{file.name} {kind}"


def manifest_time(folder: Path) -> int:
    """When the newest checkpoint was written; 0 if there is none."""
    try:
        return (folder / "last" / "manifest.json").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def chain(folder: Path, arguments: list[str], seconds: float, moment: random.Random, kills: int) -> list[str]:
    """One run, killed `kills` times, resumed each time, and then to its end. Returns what was damaged.

    Raises RuntimeError if a resumed run did not fall back from a damaged checkpoint.

    A kill falls within `seconds` of the process's first checkpoint. After every second kill or more, once
    there is a checkpoint before the newest one, the newest one is damaged.
    """
    command = arguments
    damaged: list[str] = []

    def check_fall(said: str) -> None:
        if damaged and not (folder / "last.damaged").exists():
            raise RuntimeError(f"{folder}: no fall from {damaged[-1]}: {said}")

    for k in range(kills):
        before = manifest_time(folder)
        process = start(*command, "--output_dir", str(folder))
        while manifest_time(folder) == before and process.poll() is None:
            time.sleep(0.001)
        time.sleep(moment.uniform(0, seconds))
        process.kill()
        _, said = process.communicate()
        if process.returncode == 0:  # it had ended before: again, at earlier moments
            shutil.rmtree(folder)
            return chain(folder, arguments, seconds / 2, moment, kills)
        check_fall(said)
        whole = (folder / "last").is_dir() and (folder / "last.previous").is_dir()
        if whole and (len(damaged) <= k // 2 or moment.random() < 0.5):
            shutil.rmtree(folder / "last.damaged", ignore_errors=True)  # of the fall before
            damaged.append(damage(folder / "last", moment))
        command = ["--resume"]
    finish(start(*command, "--output_dir", str(folder)))
    check_fall("")
    return damaged


def compare_chains(chains: int, folder: Path, encoder: str, seed: int = 0, kills: int = 3) -> tuple[int, int]:
    """How many of the chains ended like the uninterrupted run of their kind, and how often they fell back to
    the checkpoint before; prints a line for each."""
    moment = random.Random(seed)
    wholes: dict[int, tuple[dict, float]] = {}
    equal = falls = 0
    for k in range(chains):
        kind = k % len(KINDS)
        arguments = [*KINDS[kind], "--model_name_or_path", encoder]
        if kind not in wholes:
            wholes[kind] = uninterrupted(folder / f"whole{kind}", arguments)
        whole, seconds = wholes[kind]
        count = kills + moment.randrange(2)
        damaged = chain(folder / f"chain{k}", arguments, 0.8 * seconds / count, moment, count)
        same = outcome(folder / f"chain{k}") == whole
        equal += same
        falls += len(damaged)
        names = f"{'SMART' if TERMS[0] in arguments else 'plain'}, {arguments[-3].partition('=')[2]}"
        harm = ", ".join(damaged) or "nothing damaged"
        print(f"chain {k} ({names}): {count} kills, {harm}: {'equal' if same else 'DIFFERENT'}", flush=True)
    return equal, falls


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=0, help="runs that are killed once")
    parser.add_argument("--chains", type=int, default=0, help="runs that are killed three times or more")
    parser.add_argument("--folder", type=Path, required=True, help="a new folder for all the runs")
    parser.add_argument("--encoder", help="--model_name_or_path of the runs (default: a tiny random BERT)")
    parser.add_argument("--deterministic", action="store_true", help="start the runs with this flag")
    parser.add_argument("--mixing", action="store_true", help="an annealed schedule, and unlabelled batches")
    given = parser.parse_args()
    if not given.kills and not given.chains:
        parser.error("say how many: --kills 20, --chains 20")
    return given


if __name__ == "__main__":
    given = parse_arguments()
    given.folder.mkdir(parents=True)
    if not given.encoder:
        sys.path.insert(0, str(HERE.parent))
        from tiny_bert import tiny_encoder

        given.encoder = tiny_encoder(given.folder / "encoder")
    flags = ("--deterministic",) if given.deterministic else ()
    flags += MIXING if given.mixing else ()
    equal = compare(given.kills, given.folder, given.encoder, flags=flags) if given.kills else 0
    chained, falls = compare_chains(given.chains, given.folder, given.encoder)
    tried = given.kills + given.chains
    if falls:
        print(f"{falls} times a run fell back to the checkpoint before a damaged one")
    print(f"{equal + chained} of {tried} ended bit for bit like the uninterrupted run")
    sys.exit(equal + chained < tried)
