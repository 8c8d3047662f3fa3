"""Logits and small smooth functions for the tests of mysmartloss.py."""

import torch
from torch import nn

import mysmartloss

SOFTMAX = {name: getattr(mysmartloss, name) for name in ("kl_loss", "sym_kl_loss", "js_loss")}
BERNOULLI = {f"bernoulli_{name}": getattr(mysmartloss, f"bernoulli_{name}") for name in SOFTMAX}
MULTILABEL = {"multilabel_sym_kl_loss": mysmartloss.multilabel_sym_kl_loss}
ALL = SOFTMAX | BERNOULLI | MULTILABEL | {"squared_error": mysmartloss.squared_error}


def random_logits(name: str, rows: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = 5 if name in SOFTMAX | MULTILABEL else 1
    return tuple(2 * torch.randn(rows, outputs, generator=generator, dtype=torch.float64) for _ in range(2))


def toy(outputs: int = 3, width: int = 8, dtype=torch.float64):
    """A small smooth function from embeddings (B,T,H) to logits (B,C), and embeddings for it."""
    torch.manual_seed(0)
    mixing = nn.Sequential(nn.Linear(width, 16), nn.Tanh(), nn.Linear(16, outputs)).to(dtype)
    return mixing, lambda x: mixing(x).mean(1), torch.randn(2, 4, width, dtype=dtype)
