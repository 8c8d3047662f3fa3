"""Logits and small smooth functions for the tests of mysmartloss.py."""

import torch
from torch import nn

from mysmartloss import (
    bernoulli_js_loss,
    bernoulli_kl_loss,
    bernoulli_sym_kl_loss,
    js_loss,
    kl_loss,
    multilabel_sym_kl_loss,
    squared_error,
    sym_kl_loss,
)

SOFTMAX = {"kl_loss": kl_loss, "sym_kl_loss": sym_kl_loss, "js_loss": js_loss}
BERNOULLI = {
    "bernoulli_kl_loss": bernoulli_kl_loss,
    "bernoulli_sym_kl_loss": bernoulli_sym_kl_loss,
    "bernoulli_js_loss": bernoulli_js_loss,
}
MULTILABEL = {"multilabel_sym_kl_loss": multilabel_sym_kl_loss}
ALL = SOFTMAX | BERNOULLI | MULTILABEL | {"squared_error": squared_error}


def random_logits(name: str, rows: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    outputs = 5 if name in SOFTMAX | MULTILABEL else 1
    return tuple(2 * torch.randn(rows, outputs, generator=generator, dtype=torch.float64) for _ in range(2))


def toy(outputs: int = 3, width: int = 8, dtype=torch.float64):
    """A small smooth function from embeddings (B,T,H) to logits (B,C), and embeddings for it."""
    torch.manual_seed(0)
    mixing = nn.Sequential(nn.Linear(width, 16), nn.Tanh(), nn.Linear(16, outputs)).to(dtype)
    return mixing, lambda x: mixing(x).mean(1), torch.randn(2, 4, width, dtype=dtype)
