"""Small models with random weights, as researchers have them, each with a batch that has padding."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "num_labels": 3,
}
LENGTHS = (9, 6, 4)


def sharpened(model: nn.Module) -> nn.Module:
    """The model in train mode, with weights far enough from 0 that its logits depend on its input."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model.train()


def text_batch(side: str = "right", padding: int = 1) -> dict[str, Tensor]:
    """Three rows of 9, 6 and 4 tokens with their labels, padded on that side."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (3, 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor(LENGTHS)[:, None]).long()
    if side == "left":
        mask = mask.flip(1)
    ids = ids.masked_fill(mask == 0, padding)
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 2])}


def alone(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Each row as a batch of its own, without padding."""
    real = batch["attention_mask"].bool()
    return [
        {
            name: value[row : row + 1, real[row]] if value.shape[:2] == real.shape else value[row : row + 1]
            for name, value in batch.items()
        }
        for row in range(len(real))
    ]


class Mean(nn.Module):
    """A wrapper of one's own around an encoder of transformers: it takes tensors and returns a tensor."""

    def __init__(self, encoder: nn.Module, outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(32, outputs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        real = attention_mask[..., None].to(hidden.dtype)
        return self.head((hidden * real).sum(1) / real.sum(1))


class Lstm(nn.Module):
    """No transformer at all: one nn.Embedding, an LSTM, a tuple for an output."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(60, 32)
        self.lstm = nn.LSTM(32, 32, batch_first=True)
        self.drop_hidden = nn.Dropout(0.1)
        self.head = nn.Linear(32, 3)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.head(self.drop_hidden(self.lstm(self.table(tokens))[0][:, -1]))
        return logits.square().mean(), logits


def hf(kind: str, head: str = "SequenceClassification", **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[kind](**SIZES | settings)
    return sharpened(getattr(transformers, f"AutoModelFor{head}").from_config(config))


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 40, "num_labels": 3}
    config = transformers.GPT2Config(**sizes, pad_token_id=1, bos_token_id=2, eos_token_id=3)
    return sharpened(transformers.GPT2ForSequenceClassification(config))


def wrapped(outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES)
    return sharpened(Mean(transformers.BertModel(config, add_pooling_layer=False), outputs))


def lstm() -> nn.Module:
    torch.manual_seed(0)
    return sharpened(Lstm())


def with_positions(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0)
    return batch | {"position_ids": positions}


def embedded(model: nn.Module) -> dict[str, Tensor]:
    batch = text_batch()
    words = model.get_input_embeddings()(batch.pop("input_ids")).detach()
    return {"inputs_embeds": words, **batch}


def without(batch: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name not in names}


DISTIL = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 2}
MODERN = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
MODERN |= {"attention_dropout": 0.1, "mlp_dropout": 0.1, "embedding_dropout": 0.1}
LLAMA = {"num_key_value_heads": 2, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
PIXELS = {"image_size": 16, "patch_size": 4}
TOKEN_LABELS = {"labels": torch.randint(0, 3, (3, 9), generator=torch.Generator().manual_seed(2))}
SCORES = {"labels": torch.tensor([0.5, 2.0, 4.5])}
YES_OR_NO = {"labels": torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])}
YES_OR_NO_TYPE = {"problem_type": "multi_label_classification"}


def images() -> dict[str, Tensor]:
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    return {"pixel_values": pixels, "labels": torch.tensor([0, 1, 2])}


def positional(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return batch["input_ids"], batch["attention_mask"]


# name: the model, its batch, SMART's task, the block that SMART must find
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Any], str, str]] = {
    "bert": (lambda: hf("bert"), lambda m: text_batch(), "classification", "bert.embeddings"),
    "roberta, padded left": (
        lambda: hf("roberta"),
        lambda m: text_batch("left"),
        "classification",
        "roberta.embeddings",
    ),
    "distilbert": (
        lambda: hf("distilbert", **DISTIL),
        lambda m: text_batch(),
        "classification",
        "distilbert.embeddings",
    ),
    "deberta-v2": (
        lambda: hf("deberta-v2", relative_attention=True, pos_att_type=["p2c", "c2p"]),
        lambda m: text_batch(padding=0),
        "classification",
        "deberta.embeddings",
    ),
    "modernbert": (
        lambda: hf("modernbert", **MODERN),
        lambda m: text_batch(),
        "classification",
        "model.embeddings",
    ),
    "gpt2, its last token": (gpt2, lambda m: text_batch(), "classification", "transformer.drop"),
    "gpt2, padded left": (
        gpt2,
        lambda m: with_positions(text_batch("left")),
        "classification",
        "transformer.drop",
    ),
    "llama": (lambda: hf("llama", **LLAMA), lambda m: text_batch(), "classification", "model.embed_tokens"),
    "tokens": (
        lambda: hf("bert", "TokenClassification"),
        lambda m: text_batch() | TOKEN_LABELS,
        "classification",
        "bert.embeddings",
    ),
    "images": (
        lambda: hf("vit", "ImageClassification", **PIXELS),
        lambda m: images(),
        "classification",
        "vit.embeddings",
    ),
    "regression": (
        lambda: hf("bert", num_labels=1),
        lambda m: text_batch() | SCORES,
        "regression",
        "bert.embeddings",
    ),
    "yes-or-no labels": (
        lambda: hf("bert", **YES_OR_NO_TYPE),
        lambda m: text_batch() | YES_OR_NO,
        "multilabel",
        "bert.embeddings",
    ),
    "a wrapper, one logit": (
        lambda: wrapped(1),
        lambda m: positional(text_batch()),
        "binary",
        "encoder.embeddings",
    ),
    "inputs_embeds": (lambda: hf("bert"), embedded, "classification", "bert.embeddings"),
    "no attention mask": (
        lambda: hf("electra"),
        lambda m: without(text_batch(), "attention_mask"),
        "classification",
        "electra.embeddings",
    ),
    "an LSTM": (lstm, lambda m: text_batch()["input_ids"], "classification", "table"),
}


def made(name: str) -> tuple[nn.Module, Any, str, str]:
    model, batch, task, block = CASES[name]
    built = model()
    return built, batch(built), task, block


def call(model: nn.Module, batch: Any) -> Any:
    """What the user writes."""
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)


def without_dropout(model: nn.Module) -> nn.Module:
    """The model in train mode, where nothing is dropped."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "attention_probs_dropout_prob", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model
