"""Every attack on a run and on its files, one after another, and the table of what held.

    pip install ckpt-chaos==0.1.8
    python tests/attacks.py --folder runs/attacks          # under an hour on a quiet machine
    python tests/attacks.py --folder runs/kills --only kills chains

attacks.json keeps the last outcome of each attack, with the commit that was attacked; README.md's table is
made from it, the last row from mutation.json. Exit status 1 if an attack did not hold.
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OUTPUT = HERE / "attacks.json"
README = HERE / "README.md"
HEAD = "<!-- attacks -->\n\n"
FOOT = "\n\n<!-- /attacks -->"
TESTS = "python -m pytest -q -m 'slow or not slow' tests"
KILLED = "python tests/kill_and_resume.py --folder {folder}/runs"
CHAOS = (
    "ckpt-chaos run --max-points 40 --work {folder}/runs --summary /dev/stdout"
    " --result-file {out}/last/model.safetensors"
    " -- python tests/attacks.py --go_on {out} --folder {folder}"
)
# What was tried, and the command; {folder} is a new folder. ckpt-chaos puts a run's folder in place of {out}.
ATTACKS = {
    "kills": ("runs killed at a random moment, half of them within a save", f"{KILLED} --kills 20"),
    "mixing": (
        "the same with an annealed schedule and texts without labels",
        f"{KILLED} --kills 20 --mixing",
    ),
    "chains": (
        "runs killed 3 or 4 times, checkpoints damaged in between; plain, SMART; fp32, bf16",
        f"{KILLED} --chains 20",
    ),
    "chaos": ("runs killed by ckpt-chaos at a file event, or with a file cut in half", CHAOS),
    "resuming": ("crashes at a file call, full disks, signals, damaged runs", f"{TESTS}/test_resume.py"),
    "checkpoints": ("crashes within a save, changed bytes, folders in use", f"{TESTS}/checkpoints"),
    "workers": ("torchrun: a worker killed, all stopped, the folder in use", f"{TESTS}/test_parallel.py"),
    "models": ("damaged model folders and tokenizers", f"{TESTS}/test_base_bert.py"),
    "data": ("odd and bad data files", f"{TESTS}/reading"),
    "fuzz": ("data files, command lines and checkpoints made up by hypothesis", f"{TESTS}/fuzz"),
}
# What a command prints of how often it tried, and how often the program held; the first that matches counts.
PATTERNS = [
    (r"\d+ of (\d+) ended", r"(\d+) of \d+ ended"),
    (r"(\d+) runs (?:resumed acceptably|could not)", r"\*\*PASS\*\* \| (\d+)"),
    (r"(\d+) inputs", r"(\d+) inputs held"),
    (r"(\d+) (?:passed|failed|error)", r"(\d+) passed"),
]


def count(text: str) -> tuple[int, int]:
    """How often a command tried, and how often the program held."""
    tried, held = next((pair for pair in PATTERNS if re.search(pair[0], text)), PATTERNS[-1])
    return sum(map(int, re.findall(tried, text))), sum(map(int, re.findall(held, text)))


def try_attack(name: str, folder: Path) -> dict[str, str | int | float]:
    """What is kept of an attack. What the command prints goes to `output.txt` in the folder."""
    folder.mkdir(parents=True)
    command = ATTACKS[name][1].replace("{folder}", str(folder.resolve()))
    describe = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    begin = time.monotonic()
    done = subprocess.run(
        command, shell=True, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    minutes = round((time.monotonic() - begin) / 60, 1)
    (folder / "output.txt").write_text(done.stdout)
    tried, held = count(done.stdout)
    return {"tried": tried, "held": held, "status": done.returncode, "minutes": minutes, "commit": commit}


def updated(outcomes: dict[str, dict]) -> str:
    """README.md with its table made anew: a row for each attack that was tried, one for the mutation run."""
    rows = ["| what was tried | tried | held | minutes | command |", "|---|---|---|---|---|"]
    for name, (what, command) in ATTACKS.items():
        if got := outcomes.get(name):
            rows.append(f"| {what} | {got['tried']} | {got['held']} | {got['minutes']} | `{command}` |")
    mutation = json.loads((HERE / "mutation.json").read_text(encoding="utf-8"))
    counts = mutation["modules"].values()
    tried, found = (sum(module[key] for module in counts) for key in ("tried", "killed"))
    what = "faults planted one by one in the functions that make the numbers"
    rows.append(f"| {what} | {tried} | {found} | … | `{mutation['command']}` |")
    commits = ", ".join(sorted({got["commit"] for got in outcomes.values()}))
    rows += ["", f"Attacked: {commits}. Made by `python tests/attacks.py`."]
    before, _, rest = README.read_text(encoding="utf-8").partition(HEAD)
    return before + HEAD + "\n".join(rows) + FOOT + rest.partition(FOOT)[2]


def go_on(out: Path, folder: Path) -> int:
    """Resume the short run in `out`; start it if it was killed before its first checkpoint."""
    sys.path.insert(0, str(ROOT))
    import multitask_classifier
    from kill_and_resume import SIZE
    from tiny_bert import tiny_encoder

    if (out / "last").is_dir() or (out / "last.previous").is_dir():
        return multitask_classifier.main(["--resume", "--output_dir", str(out)])
    encoder = str(folder / "encoder") if (folder / "encoder").is_dir() else tiny_encoder(folder / "encoder")
    length = ["--epochs=2", "--steps_per_epoch=6", "--save_steps=2", "--no_report", "--overwrite_output_dir"]
    places = ["--model_name_or_path", encoder, "--output_dir", str(out)]
    return multitask_classifier.main(["--use_smart", *SIZE, *length, *places])


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="a new folder for the runs and outputs")
    parser.add_argument(
        "--only", nargs="*", choices=ATTACKS, default=list(ATTACKS), help="none: the table alone"
    )
    parser.add_argument("--go_on", type=Path, metavar="OUT", help="start or resume the run that chaos kills")
    options = parser.parse_args()
    # what a shell starts in the background ignores Ctrl-C, and so would the runs that are to be stopped by it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if options.go_on:
        return go_on(options.go_on, options.folder)
    outcomes = json.loads(OUTPUT.read_text(encoding="utf-8"))
    for name in options.only:
        got = outcomes[name] = try_attack(name, options.folder / name)
        print(f"{name}: {got['held']} of {got['tried']} held, {got['minutes']} minutes", flush=True)
        OUTPUT.write_text(json.dumps(outcomes, indent=1) + "\n", encoding="utf-8")
    README.write_text(updated(outcomes), encoding="utf-8")
    return int(any(got["held"] < got["tried"] or got["status"] for got in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
