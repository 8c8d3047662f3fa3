"""Small random BERTs, ours and transformers', that the tests of the encoder compare."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers

import base_bert
from bert import BertModel
from support.errors import UserError

ROOT = Path(base_bert.__file__).resolve().parent
TINY = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
}
TINY |= {"max_position_embeddings": 16, "pad_token_id": 0}


def randomise(model):
    """Random values for every parameter, biases and LayerNorms included, that fp16 holds exactly."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter + 0.2 * torch.randn(parameter.shape, generator=generator)).half())
    return model.eval()


def reference_bert(**settings) -> transformers.BertModel:
    torch.manual_seed(0)
    return randomise(
        transformers.BertModel(transformers.BertConfig(**TINY | settings, attn_implementation="eager"))
    )


def both_berts(folder: Path, **settings) -> tuple[BertModel, transformers.BertModel]:
    """Ours, loaded from what transformers saved, and transformers' own."""
    reference = reference_bert(**settings)
    reference.save_pretrained(folder)
    return BertModel.from_pretrained(str(folder)), reference


def inputs(
    batch: int = 4, tokens: int = 9, kind: str = "right"
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Random ids, a mask of that kind (row i has one token less than row i - 1) and segment ids."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, TINY["vocab_size"], (batch, tokens), generator=generator)
    types = torch.randint(0, 2, (batch, tokens), generator=generator)
    right = torch.arange(tokens) < tokens - torch.arange(batch)[:, None]
    masks = {
        "none": None,
        "right": right,
        "left": right.flip(1),
        "holes": right & (torch.arange(tokens) % 3 != 1),
    }
    masks |= {"int64": right.long(), "float": right.float()}
    return ids, masks[kind], types


def assert_same(ours: BertModel, reference, ids, mask=None, types=None) -> None:
    with torch.no_grad():
        got = ours(ids, mask, types)
        expected = reference(ids, attention_mask=None if mask is None else mask.long(), token_type_ids=types)
    for name in ("last_hidden_state", "pooler_output"):
        torch.testing.assert_close(got[name], expected[name], atol=1e-5, rtol=0)


def write_model(folder: Path, weights: dict, filename: str = "pytorch_model.bin", **settings) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **TINY, **settings}))
    save = safetensors.torch.save_file if filename.endswith(".safetensors") else torch.save
    save(weights, folder / filename)
    return folder


def refusal(name: str | Path) -> str:
    """The message with which `from_pretrained` refuses, one line."""
    with pytest.raises(UserError) as caught:
        BertModel.from_pretrained(str(name))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def run_python(script: str, *arguments: str | Path, cwd: Path, **environment: str) -> str:
    """What the script prints, in a process of its own that finds our modules by PYTHONPATH only."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    result = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout
