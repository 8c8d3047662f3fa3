"""The one tiny BERT of all tests: its configuration, the reference of transformers,
models and inputs of its size. A test that needs another size overrides fields of it."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import BertWordPieceTokenizer

from base_bert import BertConfig, load_tokenizer
from bert import BertModel
from datasets import Batch
from multitask_classifier import MultitaskBERT

# Every size differs from the others, and each is other than BERT's default.
SIZES = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
}
TINY = BertConfig(**SIZES)
MINILM_VOCABULARY = 30522
LETTERS = "abcdefghijklmnopqrstuvwxyz"  # each a token
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *",.'-", *("##" + c for c in LETTERS)]


def tiny_config(**settings) -> BertConfig:
    return dataclasses.replace(TINY, **settings)


# -------------------------------------------------------------------------- beside transformers' own


def randomise(model):
    """Random values for every parameter, biases and LayerNorms included, that fp16 holds exactly."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter + 0.2 * torch.randn(parameter.shape, generator=generator)).half())
    return model.eval()


def reference_bert(**settings) -> transformers.BertModel:
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES | settings, attn_implementation="eager")
    return randomise(transformers.BertModel(config))


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
    ids = torch.randint(1, TINY.vocab_size, (batch, tokens), generator=generator)
    types = torch.randint(0, 2, (batch, tokens), generator=generator)
    right = torch.arange(tokens) < tokens - torch.arange(batch)[:, None]
    masks = {
        "none": None,
        "right": right,
        "left": right.flip(1),
        "holes": right & (torch.arange(tokens) % 3 != 1),
        "int64": right.long(),
        "float": right.float(),
    }
    return ids, masks[kind], types


def assert_same(ours: BertModel, reference, ids, mask=None, types=None) -> None:
    with torch.no_grad():
        got = ours(ids, mask, types)
        expected = reference(ids, attention_mask=None if mask is None else mask.long(), token_type_ids=types)
    for name in ("last_hidden_state", "pooler_output"):
        torch.testing.assert_close(got[name], expected[name], atol=1e-5, rtol=0)


# -------------------------------------------------------------------------------- with the task heads


def tiny_model(seed: int = 0, **kwargs) -> MultitaskBERT:
    """The tiny BERT with a head for each task, in train mode."""
    torch.manual_seed(seed)
    return MultitaskBERT(BertModel(TINY), **kwargs).train()


def tiny_batch(task: str, device: str = "cpu") -> Batch:
    """Four rows of 7, 5, 3 and 7 tokens, with labels that any task accepts."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, TINY.vocab_size, (4, 7), generator=generator)
    mask = torch.arange(7) < torch.tensor([[7], [5], [3], [7]])
    labels = torch.tensor([0.0, 1.0, 1.0, 0.0])
    batch = Batch(np.arange(4), ids * mask, None, mask, labels, int(mask.sum()))
    tensors = {name: getattr(batch, name).to(device) for name in ("input_ids", "attention_mask", "labels")}
    return dataclasses.replace(batch, **tensors)


# -------------------------------------------------------------------------- folders for whole programs


def tiny_encoder(folder: Path, **settings) -> str:
    """The folder, now with the tiny BERT and MiniLM's tokenizer."""
    torch.manual_seed(0)
    config = tiny_config(**{"vocab_size": MINILM_VOCABULARY, "max_position_embeddings": 64} | settings)
    BertModel(config).save_pretrained(folder)
    load_tokenizer().save(str(folder / "tokenizer.json"))
    return str(folder)


def letters_encoder(folder: Path) -> str:
    """The folder, now with the tiny BERT and a tokenizer of single letters: thousands of runs in a minute."""
    torch.manual_seed(0)
    config = tiny_config(vocab_size=len(PIECES), max_position_embeddings=32)
    BertModel(config).save_pretrained(folder)
    BertWordPieceTokenizer({piece: i for i, piece in enumerate(PIECES)}).save(str(folder / "tokenizer.json"))
    return str(folder)
