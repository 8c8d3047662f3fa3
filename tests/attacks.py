"""Every attack on a run and on its files, one after another, and the table of what held.

    pip install ckpt-chaos==0.1.8
    python tests/attacks.py --folder runs/attacks          # under an hour on a quiet machine
    python tests/attacks.py --folder runs/kills --only kills chains
    python tests/attacks.py --table                        # README.md's table, from the last outcomes

attacks.json keeps the last outcome of each attack, with the commit that was attacked. Exit status 1 if one
did not hold. The mutation run takes two hours and has a command of its own, `python tests/mutation.py`; the
table's last row is from its file.
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OUTPUT = HERE / "attacks.json"
README = HERE / "README.md"
HEAD = "<!-- attacks -->\n\n"
FOOT = "\n\n<!-- /attacks -->"
TESTS = "python -m pytest -q -m 'slow or not slow' tests"
KILLED = "python tests/kill_and_resume.py --folder {folder}"
SHORT_RUN = [
    "--use_smart",
    "--max_train_samples=40",
    "--max_eval_samples=12",
    "--batch_size=4",
    "--no_report",
]
SHORT_RUN += ["--epochs=2", "--steps_per_epoch=6", "--save_steps=2"]


class Attack(NamedTuple):
    """A command, and two patterns for what it prints: how often it tried, and how often the program held.

    {folder} in the command is a new folder. All matches of a pattern are added up.
    """

    what: str
    command: str
    tried: str = r"(\d+) (?:passed|failed|error)"
    held: str = r"(\d+) passed"


def killed(what: str, flags: str) -> Attack:
    return Attack(what, f"{KILLED}/runs {flags}", r"\d+ of (\d+) ended", r"(\d+) of \d+ ended")


def fuzzed(what: str, file: str) -> Attack:
    return Attack(what, f"{TESTS}/fuzz/{file}", r"(\d+) inputs", r"(\d+) inputs held")


ATTACKS = {
    "kills": killed("runs killed at a random moment, half of them within a save", "--kills 20"),
    "mixing": killed("the same with an annealed schedule and texts without labels", "--kills 20 --mixing"),
    "chains": killed(
        "runs killed 3 or 4 times, checkpoints damaged in between; plain, SMART; fp32, bf16", "--chains 20"
    ),
    "chaos": Attack(
        "runs killed by ckpt-chaos at a file event, or with a file cut in half",
        "ckpt-chaos run --max-points 40 --work {folder}/runs --summary /dev/stdout"
        " --result-file {out}/last/model.safetensors"
        " -- python tests/attacks.py --go_on {out} --folder {folder}",
        r"(\d+) runs (?:resumed acceptably|could not)",
        r"\*\*PASS\*\* \| (\d+)",
    ),
    "events": Attack(
        "crashes at a file call of a run, full disks, signals",
        f"{TESTS}/test_resume.py -k 'killed_run or disk or signals'",
    ),
    "saving": Attack(
        "crashes, full disks and failed renames within a save", f"{TESTS}/checkpoints/test_saving.py"
    ),
    "damage": Attack(
        "run folders with a damaged or lost file", f"{TESTS}/test_resume.py -k 'harmed or damaged or lost'"
    ),
    "bytes": Attack(
        "checkpoints with changed bytes, or made by strangers",
        f"{TESTS}/checkpoints/test_refused_checkpoints.py",
    ),
    "folders": Attack(
        "folders in use, outputs that are inputs, links, pipes, signals",
        f"{TESTS}/checkpoints/test_folders_and_files.py",
    ),
    "workers": Attack(
        "torchrun: a worker killed, all stopped, the folder in use", f"{TESTS}/test_parallel.py"
    ),
    "models": Attack(
        "hostile and damaged model folders and tokenizers",
        f"{TESTS}/test_strangers_models.py tests/test_base_bert.py tests/test_shards.py",
    ),
    "data": Attack("odd and bad data files", f"{TESTS}/reading"),
    "fuzzed files": fuzzed("data files made up by hypothesis", "test_fuzz_files.py"),
    "fuzzed flags": fuzzed("command lines made up by hypothesis", "test_fuzz_command_lines.py"),
    "fuzzed checkpoints": fuzzed("checkpoints damaged by hypothesis", "test_fuzz_checkpoints.py"),
}


def count(pattern: str, text: str) -> int:
    """The numbers in all matches, added up."""
    return sum(map(int, re.findall(pattern, text)))


def try_attack(name: str, folder: Path, commit: str) -> dict[str, str | int | float]:
    """What is kept of an attack. What the command prints goes to `output.txt` in the folder."""
    attack = ATTACKS[name]
    folder.mkdir(parents=True)
    command = attack.command.replace("{folder}", str(folder.resolve()))
    begin = time.monotonic()
    done = subprocess.run(
        command, shell=True, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    minutes = round((time.monotonic() - begin) / 60, 1)
    (folder / "output.txt").write_text(done.stdout)
    tried, held = count(attack.tried, done.stdout), count(attack.held, done.stdout)
    return {"tried": tried, "held": held, "status": done.returncode, "minutes": minutes, "commit": commit}


def table(outcomes: dict[str, dict]) -> str:
    """A row for each attack that was tried, and one for the mutation run."""
    rows = ["| what was tried | tried | held | minutes | command |", "|---|---|---|---|---|"]
    for name, attack in ATTACKS.items():
        if got := outcomes.get(name):
            cells = [attack.what, got["tried"], got["held"], got["minutes"], f"`{attack.command}`"]
            rows.append(f"| {' | '.join(map(str, cells))} |")
    mutation = json.loads((HERE / "mutation.json").read_text(encoding="utf-8"))
    tried, found = (
        sum(module[key] for module in mutation["modules"].values()) for key in ("tried", "killed")
    )
    what = "faults planted one by one in the functions that make the numbers"
    rows.append(f"| {what} | {tried} | {found} | … | `{mutation['command']}` |")
    commits = ", ".join(sorted({got["commit"] for got in outcomes.values()}))
    return "\n".join([*rows, "", f"Attacked: {commits}. Made by `python tests/attacks.py --table`."])


def updated(outcomes: dict[str, dict]) -> str:
    """README.md with the table made anew."""
    before, _, rest = README.read_text(encoding="utf-8").partition(HEAD)
    return before + HEAD + table(outcomes) + FOOT + rest.partition(FOOT)[2]


def go_on(out: Path, folder: Path) -> int:
    """Resume the short run in `out`; start it if it was killed before its first checkpoint."""
    sys.path.insert(0, str(ROOT))
    import multitask_classifier
    from tiny_bert import tiny_encoder

    if (out / "last").is_dir() or (out / "last.previous").is_dir():
        return multitask_classifier.main(["--resume", "--output_dir", str(out)])
    encoder = folder / "encoder"
    if not encoder.is_dir():
        tiny_encoder(encoder)
    places = ["--model_name_or_path", str(encoder), "--output_dir", str(out)]
    return multitask_classifier.main([*SHORT_RUN, *places, "--overwrite_output_dir"])


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="a new folder for the runs and what they print")
    parser.add_argument("--only", nargs="+", choices=ATTACKS, default=list(ATTACKS), help="these attacks")
    parser.add_argument("--table", action="store_true", help="write the table of the last outcomes")
    parser.add_argument("--go_on", type=Path, metavar="OUT", help="start or resume the run that chaos kills")
    options = parser.parse_args()
    # what a shell starts in the background ignores Ctrl-C, and so would the runs that are to be stopped by it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if options.go_on:
        return go_on(options.go_on, options.folder)
    outcomes = json.loads(OUTPUT.read_text(encoding="utf-8")) if OUTPUT.exists() else {}
    if not options.table:
        if not options.folder:
            parser.error("say where: --folder runs/attacks")
        words = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout.strip()
        for name in options.only:
            got = outcomes[name] = try_attack(name, options.folder / name.replace(" ", "-"), commit)
            print(f"{name}: {got['held']} of {got['tried']} held, {got['minutes']} minutes", flush=True)
            OUTPUT.write_text(json.dumps(outcomes, indent=1) + "\n", encoding="utf-8")
    README.write_text(updated(outcomes), encoding="utf-8")
    return int(any(got["held"] < got["tried"] or got["status"] for got in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
