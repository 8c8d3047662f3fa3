"""Kill a training run with SIGKILL at random moments, resume it, and compare what it ends with to a run that
was never interrupted.

    python tests/kill_and_resume.py --kills 20 --folder runs/kills

Every kill is a run of its own, with SMART, Bregman and R-Drop on: started as a process, killed, resumed to
its end. Every second kill falls
while a checkpoint is being written. Both tests/test_resume.py (3 kills) and the command line use this.
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
RUN = [
    "--use_smart",
    "--rdrop_weight=0.1",
    "--max_train_samples=40",
    "--max_eval_samples=12",
    "--batch_size=4",
    "--epochs=2",
]
RUN += ["--steps_per_epoch=15", "--logging_steps=4", "--save_steps=1"]


def outcome(folder: Path) -> dict:
    """All that a finished run leaves and that does not depend on the clock: files byte by byte, the log, the
    scores."""
    files = [
        *(folder / "predictions").iterdir(),
        *(folder / "best").glob("*.safetensors"),
        *(folder / "last").glob("*.safetensors"),
    ]
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    results = json.loads((folder / "results.json").read_text())
    clock_or_path = ("train_seconds", "save_seconds", "examples_per_second", "config")
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
    """Wait for its end. Raises RuntimeError with what it said if it failed."""
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(f"status {process.returncode}: {said}")


def wait_for(process: subprocess.Popen, path: Path) -> None:
    """Until the path is there, or the process has ended."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.0002)


def kill_once(
    folder: Path, arguments: list[str], seconds: float, while_writing: bool, moment: random.Random
) -> str:
    """One run, killed within `seconds` of its first checkpoint and resumed to its end. Returns what the kill
    left in its folder."""
    process = start(*arguments, "--output_dir", str(folder))
    wait_for(process, folder / "last")
    time.sleep(moment.uniform(0, seconds))
    if while_writing:
        wait_for(process, folder / "last.new")
        time.sleep(moment.uniform(0, 0.02))  # somewhere in it
    process.kill()
    process.communicate()
    if process.returncode == 0:  # it had ended before: try an earlier moment
        shutil.rmtree(folder)
        return kill_once(folder, arguments, seconds / 2, while_writing, moment)
    left = sorted(path.name for path in folder.iterdir())
    finish(start("--resume", "--output_dir", str(folder)))
    return f"left {' '.join(left)}"


def compare(kills: int, folder: Path, encoder: str, seed: int = 0) -> int:
    """The number of `kills` after which the resumed run ended like the uninterrupted one; prints a line for
    each."""
    arguments, moment = [*RUN, "--model_name_or_path", encoder], random.Random(seed)
    process = start(*arguments, "--output_dir", str(folder / "whole"))
    wait_for(process, folder / "whole" / "last")
    begin = time.monotonic()
    finish(process)
    seconds, whole, equal = time.monotonic() - begin, outcome(folder / "whole"), 0
    for k in range(kills):
        left = kill_once(folder / f"kill{k}", arguments, 0.8 * seconds, k % 2 == 1, moment)
        same = outcome(folder / f"kill{k}") == whole
        equal += same
        print(f"kill {k}: {left}: {'equal' if same else 'DIFFERENT'}", flush=True)
    return equal


def tiny_encoder(folder: Path, dropout: float = 0.1) -> str:
    """Folder of a small random BERT with MiniLM's tokenizer: whole runs in seconds."""
    import torch

    from base_bert import BertConfig, load_tokenizer
    from bert import BertModel

    torch.manual_seed(0)
    shape = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    }
    shape |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    BertModel(BertConfig(**shape)).save_pretrained(folder)
    load_tokenizer().save(str(folder / "tokenizer.json"))
    return str(folder)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--folder", type=Path, required=True, help="a new folder for all the runs")
    parser.add_argument("--encoder", help="--model_name_or_path of the runs (default: a small random BERT)")
    given = parser.parse_args()
    given.folder.mkdir(parents=True)
    equal = compare(given.kills, given.folder, given.encoder or tiny_encoder(given.folder / "encoder"))
    print(f"{equal} of {given.kills} ended bit for bit like the uninterrupted run")
    sys.exit(equal < given.kills)
