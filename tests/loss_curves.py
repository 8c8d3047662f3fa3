"""The loss of 30 steps for each task, and what it was when it was last thought about.

    python tests/loss_curves.py     # writes tests/fixtures/loss_curves.json anew

A change of these numbers is explained in the commit that writes the file. Every setting that decides them is
named here, so that a new default does not move them: the tiny BERT of the tests, dropout, SMART, Bregman.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from helpers import SAMPLE, run_program  # noqa: E402
from tiny_bert import tiny_encoder  # noqa: E402

FILE = HERE / "fixtures" / "loss_curves.json"
PARTS = ("task", "smart", "bregman", "total", "grad_norm")
SETTINGS = """
--option finetune --pooling mean --similarity head --hidden_dropout_prob 0.1 --max_length 32 --precision fp32
--schedule interleaved --epochs 1 --steps_per_epoch 30 --batch_size 8 --lr 1e-3 --head_lr 1e-3
--warmup_steps 3 --weight_decay 0.01 --max_grad_norm 1 --skip_nonfinite 0 --seed 11711
--use_smart --smart_weight 1
--smart_epsilon 0.1 --smart_step_size 0.1 --smart_noise_var 1e-4 --smart_steps 2 --smart_norm inf
--bregman_weight 1 --bregman_beta 0.9 --keep student --rdrop_weight 0 --logging_steps 1 --max_eval_samples 8
--no_report
""".split()  # noqa: SIM905


def curves(task: str, folder: Path) -> dict[str, list[float]]:
    """Each part of the loss at each of 30 steps of a run in the folder."""
    encoder = tiny_encoder(folder / "encoder")
    places = ["--model_name_or_path", encoder, "--data_dir", SAMPLE, "--output_dir", folder / task]
    if run_program(*SETTINGS, "--tasks", task, *places):
        raise RuntimeError(f"{task}: the run failed")
    lines = map(json.loads, (folder / task / "metrics.jsonl").read_text().splitlines())
    records = [line for line in lines if line["kind"] == f"train/{task}"]
    return {part: [record[part] for record in records] for part in PARTS}


def main() -> None:
    os.environ.pop("SMART_BERT_DATA_DIR", None)
    with tempfile.TemporaryDirectory() as folder:
        found = {task: curves(task, Path(folder)) for task in ("sst", "para", "sts")}
    FILE.write_text(json.dumps(found, indent=0) + "\n")


if __name__ == "__main__":
    main()
