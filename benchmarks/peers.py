"""The peers: packages that a user could choose instead, with our weights.

They are `transformers`, `torch.optim` and `smart-pytorch`, used as a careful user would. Where there is a
choice, the faster way is taken: fused AdamW, no pooler.
Shapes: B batch, T tokens, H hidden, C outputs.
"""

import copy
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from base_bert import find_pretrained
from datasets import Batch, Task, TokenizedDataset
from multitask_classifier import MultitaskBERT
from support.devices import COMPUTE_TYPES

# Without this, transformers reports that the file has a pooler, which is not needed here.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


class Peer(nn.Module):
    """`MultitaskBERT` built from `transformers.BertModel`, with the same heads; without `bert` also MiniLM.

    The encoder is followed by the mean over the real tokens, dropout and one linear head for each task.
    """

    def __init__(self, ours: MultitaskBERT, bert: transformers.BertModel | None = None):
        super().__init__()
        self.bert = bert or transformers.BertModel.from_pretrained(
            find_pretrained("minilm", "config.json").parent,
            attn_implementation="sdpa",
            add_pooling_layer=False,
            dtype=torch.float32,
            local_files_only=True,
        )
        self.dropout = nn.Dropout(ours.dropout.p)
        self.heads = copy.deepcopy(ours.heads)

    def forward(self, task: str, attention_mask: Tensor | None = None, **inputs: Tensor | None) -> Tensor:
        """Logits (B,C) in fp32. The mask is (B,T) or None; `inputs` are for `transformers.BertModel`."""
        hidden = self.bert(attention_mask=attention_mask, **inputs).last_hidden_state  # (B,T,H)
        if attention_mask is None:
            return self.heads[task](self.dropout(hidden.mean(1))).float()
        real = attention_mask[:, :, None].to(hidden.dtype)  # (B,T,1)
        return self.heads[task](self.dropout((hidden * real).sum(1) / real.sum(1))).float()


def autocast(precision: str) -> torch.autocast:
    """Inside, a peer on the CPU computes in this precision.

    One block around all passes of a step is the fastest way: torch then narrows each weight once.
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
    import smart_pytorch  # here, because the list for a GPU runs without it

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


def fused_adamw(groups: Any) -> torch.optim.Optimizer:
    """torch's fastest AdamW."""
    return torch.optim.AdamW(groups, lr=1e-5, fused=True)


def random_batches(dataset: TokenizedDataset, batch_size: int) -> list[np.ndarray]:
    """Row numbers of an epoch's full batches, in random order, (B,) each."""
    order = np.random.default_rng(0).permutation(len(dataset))
    return [order[begin : begin + batch_size] for begin in range(0, len(order) - batch_size + 1, batch_size)]
