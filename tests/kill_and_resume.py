"""Kill a training run with SIGKILL at random moments, resume it, and compare it with an uninterrupted run.

    python tests/kill_and_resume.py --kills 20 --folder runs/kills

Every kill is a run of its own, with SMART, Bregman and R-Drop on: started as a process, killed, and resumed
to its end. Every second kill falls while a checkpoint is being written. tests/test_resume.py does this too,
with 3 kills.
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
RUN = [*TERMS, *SIZE, "--epochs=2", "--steps_per_epoch=15", "--logging_steps=4", "--save_steps=1"]
RUN += ["--no_report"]


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


def compare(kills: int, folder: Path, encoder: str, seed: int = 0, flags: tuple[str, ...] = ()) -> int:
    """How many of the `kills` runs ended like the uninterrupted one once resumed; prints a line for each."""
    arguments = [*RUN, "--model_name_or_path", encoder, *flags]
    moment = random.Random(seed)
    process = start(*arguments, "--output_dir", str(folder / "whole"))
    wait_for(process, folder / "whole" / "last")
    begin = time.monotonic()
    finish(process)
    seconds = time.monotonic() - begin
    whole = outcome(folder / "whole")
    equal = 0
    for k in range(kills):
        left = kill_once(folder / f"kill{k}", arguments, 0.8 * seconds, k % 2 == 1, moment)
        same = outcome(folder / f"kill{k}") == whole
        equal += same
        print(f"kill {k}: {left}: {'equal' if same else 'DIFFERENT'}", flush=True)
    return equal


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--folder", type=Path, required=True, help="a new folder for all the runs")
    parser.add_argument("--encoder", help="--model_name_or_path of the runs (default: a tiny random BERT)")
    parser.add_argument("--deterministic", action="store_true", help="start the runs with this flag")
    return parser.parse_args()


if __name__ == "__main__":
    given = parse_arguments()
    given.folder.mkdir(parents=True)
    if not given.encoder:
        sys.path.insert(0, str(HERE.parent))
        from tiny_bert import tiny_encoder

        given.encoder = tiny_encoder(given.folder / "encoder")
    flags = ("--deterministic",) if given.deterministic else ()
    equal = compare(given.kills, given.folder, given.encoder, flags=flags)
    print(f"{equal} of {given.kills} ended bit for bit like the uninterrupted run")
    sys.exit(equal < given.kills)
