"""The peers: packages that a user could choose instead, with our weights.

They are `transformers`, `sentence-transformers`, `torch.optim`, `csv` and `smart-pytorch`, used as a careful
user would. Where there is a choice, the faster way is taken: fused AdamW, no pooler, lists read by
`csv.reader`.
Shapes: B batch, T tokens, H hidden, C outputs.
"""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import smart_pytorch
import torch
import transformers
from torch import Tensor, nn

from base_bert import find_pretrained
from datasets import Batch, Example, Task, TokenizedDataset
from multitask_classifier import MultitaskBERT
from support.devices import COMPUTE_TYPES

# Without this, transformers reports that the file has a pooler, which is not needed here.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


class Peer(nn.Module):
    """`MultitaskBERT` built from `transformers.BertModel`, with the same weights.

    The encoder is followed by the mean over the real tokens, dropout and one linear head for each task.
    """

    def __init__(self, ours: MultitaskBERT):
        super().__init__()
        folder = find_pretrained("minilm", "config.json").parent
        self.bert = transformers.BertModel.from_pretrained(
            folder,
            attn_implementation="sdpa",
            add_pooling_layer=False,
            dtype=torch.float32,
            local_files_only=True,
        )
        self.dropout = nn.Dropout(ours.dropout.p)
        heads = {name: head for name, head in ours.heads.items() if isinstance(head, nn.Linear)}
        self.heads = nn.ModuleDict(
            {name: nn.Linear(head.in_features, head.out_features) for name, head in heads.items()}
        )
        self.heads.load_state_dict(ours.heads.state_dict())

    def forward(self, task: str, attention_mask: Tensor | None = None, **inputs: Tensor | None) -> Tensor:
        """Logits (B,C) in fp32. The mask is (B,T) or None; `inputs` are for `transformers.BertModel`."""
        hidden = self.bert(attention_mask=attention_mask, **inputs).last_hidden_state  # (B,T,H)
        if attention_mask is None:
            return self.heads[task](self.dropout(hidden.mean(1))).float()
        real = attention_mask[:, :, None].to(hidden.dtype)  # (B,T,1)
        return self.heads[task](self.dropout((hidden * real).sum(1) / real.sum(1))).float()


def autocast(precision: str) -> torch.autocast:
    """Inside, a peer on the CPU computes in this precision.

    One block around all passes of a step, or around all batches to predict, is the fastest way: torch then
    narrows each weight once.
    """
    return torch.autocast("cpu", COMPUTE_TYPES[precision], enabled=precision != "fp32")


def plain_loss(model: Peer, task: Task, batch: Batch) -> Tensor:
    """The task's loss, a scalar."""
    logits = model(
        task.name, batch.attention_mask, input_ids=batch.input_ids, token_type_ids=batch.token_type_ids
    )
    assert batch.labels is not None  # training data has labels
    return task.loss(logits, batch.labels)


def smart_loss(model: Peer, task: Task, batch: Batch) -> Tensor:
    """The task's loss plus smart-pytorch's term with one ascent step, a scalar.

    The divergence is ours, since the package's is 0 for heads with one output. Its time is negligible.
    """
    embeddings = model.bert.embeddings.word_embeddings(batch.input_ids)  # (B,T,H)

    def logits_of(perturbed: Tensor) -> Tensor:
        return model(
            task.name, batch.attention_mask, inputs_embeds=perturbed, token_type_ids=batch.token_type_ids
        )

    logits = logits_of(embeddings)  # (B,C)
    regulariser = smart_pytorch.SMARTLoss(logits_of, task.divergence, num_steps=1)
    assert batch.labels is not None  # training data has labels
    return task.loss(logits, batch.labels) + regulariser(embeddings, logits)


def step(model: Peer, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Backward, clip, update."""
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def fused_adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """torch's fastest AdamW."""
    return torch.optim.AdamW(groups, lr=1e-5, fused=True)


def random_batches(dataset: TokenizedDataset, batch_size: int) -> list[np.ndarray]:
    """Row numbers of an epoch's full batches, in random order, (B,) each."""
    order = np.random.default_rng(0).permutation(len(dataset))
    return [order[begin : begin + batch_size] for begin in range(0, len(order) - batch_size + 1, batch_size)]


def load_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """The fast tokenizer of minilm."""
    folder = find_pretrained("minilm", "tokenizer.json").parent
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert isinstance(tokenizer, transformers.PreTrainedTokenizerFast)
    return tokenizer


def tokenize(
    tokenizer: transformers.PreTrainedTokenizerFast, texts: Sequence[tuple[str, ...]], max_length: int
) -> dict[str, list[list[int]]]:
    """Token ids, segment ids and masks of every row, as lists."""
    encoded: dict[str, list[list[int]]] = {name: [] for name in tokenizer.model_input_names}
    for begin in range(0, len(texts), 1024):
        columns = map(list, zip(*texts[begin : begin + 1024], strict=True))
        for name, rows in tokenizer(*columns, truncation=True, max_length=max_length).items():
            encoded[name] += rows
    return encoded


def read_and_tokenize(
    path: Path, task: Task, tokenizer: transformers.PreTrainedTokenizerFast, max_length: int
) -> tuple[dict[str, list[list[int]]], list[float]]:
    """The inputs and labels of a labelled file, without rows that have no text or no label."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t")
        header = [name.strip() for name in next(rows)]
        columns = [header.index(name) for name in (*task.text_columns, task.label_column)]
        fields = [
            values
            for row in rows
            if len(row) == len(header) and all(values := [row[column] for column in columns])
        ]
    inputs = tokenize(tokenizer, [tuple(row[:-1]) for row in fields], max_length)
    return inputs, [float(row[-1]) for row in fields]


def predict(
    model: Peer,
    tokenizer: transformers.PreTrainedTokenizerFast,
    task: Task,
    examples: list[Example],
    batch_size: int,
    max_length: int,
) -> np.ndarray:
    """Predictions (rows,) in file order. They are computed in the order of length."""
    encoded = tokenize(tokenizer, [example.texts for example in examples], max_length)
    order = np.argsort([-len(row) for row in encoded["input_ids"]], kind="stable")
    outputs = []
    with torch.inference_mode():
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            batch = tokenizer.pad(
                {name: [column[i] for i in rows] for name, column in encoded.items()}, return_tensors="pt"
            )
            outputs.append(task.predict(model(task.name, **batch)))
    sorted_predictions = torch.cat(outputs).numpy()
    predictions = np.empty_like(sorted_predictions)
    predictions[order] = sorted_predictions
    return predictions


def sentence_transformers_predict(task: Task) -> Callable[[list[Example]], np.ndarray]:
    """A function from examples to vectors (rows,H) of sentences or to scores (rows,) of pairs.

    It uses the package's own classes with their defaults. The encoder has our weights. A score comes from a
    new head on the pooler.
    """
    # imported in a separate process, since the import takes seconds that other rows must not wait for
    import sentence_transformers

    folder = str(find_pretrained("minilm", "config.json").parent)
    if len(task.text_columns) == 1:
        vectors = sentence_transformers.SentenceTransformer(folder, device="cpu", local_files_only=True)
        return lambda examples: vectors.encode([example.texts[0] for example in examples])
    scores = sentence_transformers.CrossEncoder(folder, num_labels=1, device="cpu", local_files_only=True)
    return lambda examples: scores.predict([example.texts for example in examples])
