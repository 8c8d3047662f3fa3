"""Are two checkouts the same to the bit? For commits that only move or delete code.

    git worktree add --detach ../before COMMIT
    python tests/net.py ../before .

Each checkout trains a tiny BERT for 60 steps on each task alone and on all of them, with SMART, D_Breg,
R-Drop, the annealed schedule and texts without labels, with dropout. Then what the runs left is compared:
files of weights, the optimizer's and predictions byte by byte, every number of the log and of the results.
Both run on this machine, so no processor's rounding is in the answer.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kill_and_resume import outcome  # noqa: E402
from tiny_bert import tiny_encoder  # noqa: E402

FLAGS = """--use_smart --smart_epsilon .05 --smart_step_size .05 --smart_steps 2 --rdrop_weight .5 --keep best
--epochs 2 --steps_per_epoch 30 --batch_size 8 --lr 1e-3 --head_lr 1e-3 --layer_lr_decay 1 --pooling mean
--similarity head --precision fp32 --max_length 64 --seed 11711 --logging_steps 10 --no_report
""".split()  # noqa: SIM905
RUNS = {
    "sst": ["--tasks=sst", "--unlabelled_file={texts}"],
    "para": ["--tasks=para"],
    "sts": ["--tasks=sts", "--smart_norm=2"],
    "all": ["--tasks=sst,para,sts", "--schedule=annealed", "--max_tokens=400"],
    "joint": ["--tasks=sst,para,sts", "--schedule=joint", "--gradient_surgery=pcgrad", "--keep=teacher"],
}


def trained(checkout: Path, name: str, folder: Path, out: Path) -> dict:
    """What a run of the checkout leaves, by file and by name. The folder holds an encoder and texts."""
    words = [word.format(texts=folder / "texts.txt") for word in RUNS[name]]
    words += ["--model_name_or_path", str(folder / "encoder"), "--data_dir", str(checkout / "data/sample")]
    command = [sys.executable, "multitask_classifier.py", *FLAGS, *words, "--output_dir", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = outcome(out)
    log = {f"line {i} of the log": line for i, line in enumerate(found["log"], start=1)}
    return found["files"] | found["scores"] | log


def main() -> int:
    """Compare the two checkouts that the command line names. Exit status 1 if they differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkouts", type=Path, nargs=2)
    checkouts = parser.parse_args().checkouts
    differing = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tiny_encoder(folder / "encoder")
        texts = "a film\nno film at all\nsome say it is good\nfine\n" * 4
        (folder / "texts.txt").write_text(texts, encoding="utf-8")
        for name in RUNS:
            before, after = (
                trained(checkout.resolve(), name, folder, folder / f"{name}{i}")
                for i, checkout in enumerate(checkouts)
            )
            names = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
            print(f"{name}: {len(before)} values, {len(names)} differ {names[:8] or ''}", flush=True)
            differing += len(names)
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
