"""Two small checkpoints and how to compare them, for the tests of checkpoint.py."""

from pathlib import Path

import torch

from checkpoint import MANIFEST, Checkpoint, save_checkpoint

OLD = Checkpoint(
    {"model": {"w": torch.arange(6.0)}, "heads": {"b": torch.tensor(1.5)}},
    {"run": {"step": 1}, "config": {"a": [1, "ü"]}},
)
NEW = Checkpoint(
    {"model": {"w": -torch.arange(6.0)}, "heads": {"b": torch.tensor(2.5)}},
    {"run": {"step": 2}, "config": {"a": None}},
)
FILES = ["config.json", "heads.safetensors", MANIFEST, "model.safetensors", "run.json"]


def bits(tensor: torch.Tensor) -> tuple:
    """All there is to a tensor: type, shape, and its bytes (so that NaN equals NaN, and 0 is not -0)."""
    return tensor.dtype, tensor.shape, bytes(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())


def same(a: Checkpoint, b: Checkpoint) -> bool:
    packed = [
        {name: {key: bits(tensor) for key, tensor in group.items()} for name, group in c.tensors.items()}
        for c in (a, b)
    ]
    return packed[0] == packed[1] and a.records == b.records


def saved(folder: Path, content: Checkpoint = OLD) -> Path:
    save_checkpoint(folder, content)
    return folder
