"""Small models with random weights, as researchers have them, each with a batch that has padding."""

from collections.abc import Callable
from typing import Any, NamedTuple

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
SPECIAL = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
MODERN = {"cls_token_id": 2, "sep_token_id": 3, "attention_dropout": 0.1, "mlp_dropout": 0.1}
MULTILABEL = {"problem_type": "multi_label_classification"}


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

    def __init__(self) -> None:
        super().__init__()
        self.encoder = transformers.BertModel(transformers.BertConfig(**SIZES), add_pooling_layer=False)
        self.head = nn.Linear(32, 1)

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


def sharpened(make: Callable[[], nn.Module]) -> nn.Module:
    """The model in train mode, with weights far enough from 0 that its logits depend on its input."""
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model.train()


def hf(kind: str, head: str = "SequenceClassification", **settings: Any) -> nn.Module:
    config = transformers.CONFIG_MAPPING[kind](**SIZES | settings)
    return sharpened(lambda: getattr(transformers, f"AutoModelFor{head}").from_config(config))


def left_with_positions() -> dict[str, Tensor]:
    batch = text_batch("left")
    return batch | {"position_ids": (batch["attention_mask"].cumsum(1) - 1).clamp_min(0)}


def with_token_labels() -> dict[str, Tensor]:
    return text_batch() | {"labels": torch.randint(0, 3, (3, 9), generator=torch.Generator().manual_seed(2))}


def images() -> dict[str, Tensor]:
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    return {"pixel_values": pixels, "labels": torch.tensor([0, 1, 2])}


def embedded() -> dict[str, Tensor]:
    batch = text_batch()
    batch["inputs_embeds"] = torch.randn(*batch.pop("input_ids").shape, 32)
    return batch


def positional() -> tuple[Tensor, Tensor]:
    batch = text_batch()
    return batch["input_ids"], batch["attention_mask"]


class Case(NamedTuple):
    """A model, its batch, the block that SMART must find, and SMART's task."""

    model: Callable[[], nn.Module]
    batch: Callable[[], Any]
    block: str
    task: str = "classification"


CASES = {
    "bert": Case(lambda: hf("bert"), text_batch, "bert.embeddings"),
    "roberta, padded left": Case(lambda: hf("roberta"), lambda: text_batch("left"), "roberta.embeddings"),
    "deberta-v2": Case(
        lambda: hf("deberta-v2", relative_attention=True, pos_att_type=["p2c", "c2p"]),
        lambda: text_batch(padding=0),
        "deberta.embeddings",
    ),
    "modernbert": Case(lambda: hf("modernbert", **SPECIAL, **MODERN), text_batch, "model.embeddings"),
    "gpt2, its last token": Case(lambda: hf("gpt2", **SPECIAL), text_batch, "transformer.drop"),
    "gpt2, padded left": Case(lambda: hf("gpt2", **SPECIAL), left_with_positions, "transformer.drop"),
    "llama": Case(lambda: hf("llama", **SPECIAL, num_key_value_heads=2), text_batch, "model.embed_tokens"),
    "tokens": Case(lambda: hf("bert", "TokenClassification"), with_token_labels, "bert.embeddings"),
    "images": Case(
        lambda: hf("vit", "ImageClassification", image_size=16, patch_size=4), images, "vit.embeddings"
    ),
    "yes-or-no labels": Case(
        lambda: hf("bert", **MULTILABEL),
        lambda: text_batch() | {"labels": torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])},
        "bert.embeddings",
        "multilabel",
    ),
    "a wrapper, one logit": Case(lambda: sharpened(Mean), positional, "encoder.embeddings", "binary"),
    "inputs_embeds": Case(lambda: hf("bert"), embedded, "bert.embeddings"),
    "an LSTM": Case(lambda: sharpened(Lstm), lambda: text_batch()["input_ids"], "table"),
}


def made(name: str) -> tuple[nn.Module, Any]:
    return CASES[name].model(), CASES[name].batch()


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
