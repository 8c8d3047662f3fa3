"""The model: an encoder with a head per task, where it comes from and how it is saved. Knows folders and
settings, no training.

B batch, T tokens, H hidden, C outputs. Source: the SMARTBert report (Stanford CS 224N).
"""

import contextlib
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from base_bert import BertConfig, load_tokenizer
from bert import BertModel, Dropout
from config import TrainConfig
from support.checkpoint import Checkpoint, has_checkpoint, load_checkpoint, save_checkpoint
from support.devices import COMPUTE_TYPES
from support.errors import UserError, first_line
from tasks import TASKS


class MultitaskBERT(nn.Module):
    """A BERT encoder, a sentence vector, dropout, and one linear head per task of TASKS.

    precision: compute type of the encoder's layers, `fp32`, `bf16` or `fp16` by autocast. Weights,
    embeddings, the sentence vector and
    the heads are fp32 in any case: a score of 4 in bf16 has steps of 1/32.
    """

    def __init__(
        self,
        bert: BertModel,
        pooling: str = "mean",
        hidden_dropout_prob: float = 0.1,
        precision: str = "fp32",
    ):
        super().__init__()
        self.bert = bert
        self.pooling = pooling
        self.compute_type = COMPUTE_TYPES[precision]
        self.dropout = Dropout(hidden_dropout_prob)
        self.heads = nn.ModuleDict(
            {task.name: nn.Linear(bert.config.hidden_size, task.num_outputs) for task in TASKS.values()}
        )
        for name, head in self.heads.items():
            nn.init.normal_(head.weight, std=bert.config.initializer_range)
            nn.init.constant_(head.bias, TASKS[name].first_output)

    def logits(self, task: str, embeddings: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Embeddings (B,T,H), mask (B,T) or None if no token is padding -> the task's outputs (B,C)."""
        with (
            torch.autocast(embeddings.device.type, self.compute_type)
            if self.compute_type
            else contextlib.nullcontext()
        ):
            hidden = self.bert.encode(embeddings, attention_mask)  # (B,T,H)
        hidden = hidden.to(embeddings.dtype)
        if self.pooling == "cls":
            pooled = self.bert.pool(hidden)  # (B,H)
        elif attention_mask is None:
            pooled = hidden.mean(1)
        else:
            real = attention_mask.to(hidden.dtype)[:, :, None]  # (B,T,1)
            pooled = (hidden * real).sum(1) / real.sum(1)
        return self.heads[task](self.dropout(pooled))

    def forward(
        self,
        task: str,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Ids, mask and segment ids (B,T) -> the task's outputs (B,C)."""
        return self.logits(task, self.bert.embed(input_ids, token_type_ids), attention_mask)

    def predict_sentiment(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Logits (B,5) of very negative ... very positive."""
        return self("sst", input_ids, attention_mask, token_type_ids)

    def predict_paraphrase(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Logit (B,1) of being a paraphrase, for pairs `[CLS] a [SEP] b [SEP]`."""
        return self("para", input_ids, attention_mask, token_type_ids)

    def predict_similarity(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Score (B,1), about 0 to 5, for pairs `[CLS] a [SEP] b [SEP]`."""
        return self("sts", input_ids, attention_mask, token_type_ids)


def check_fit(tokenizer: Tokenizer, bert: BertModel, max_length: int, where: str) -> None:
    """Raises UserError, naming `where`, if the encoder has no embedding for a word piece or a position."""
    largest = max(
        [*tokenizer.get_vocab().values(), *tokenizer.encode("a", "b").ids]
    )  # a template may add what is in no vocabulary
    if largest >= bert.config.vocab_size:
        raise UserError(
            f"{where}: its tokenizer has word piece {largest}, the encoder embeddings for"
            f" {bert.config.vocab_size}"
        )
    if max_length > bert.config.max_position_embeddings:
        raise UserError(
            f"--max_length {max_length}: the encoder has positions for"
            f" {bert.config.max_position_embeddings} tokens"
        )


def load_pretrained(config: TrainConfig) -> tuple[Tokenizer, BertModel]:
    """Tokenizer and encoder of --model_name_or_path. Raises UserError if they don't fit each other or
    --max_length."""
    tokenizer, bert = (
        load_tokenizer(config.model_name_or_path),
        BertModel.from_pretrained(config.model_name_or_path),
    )
    check_fit(tokenizer, bert, config.max_length or 0, f"--model_name_or_path {config.model_name_or_path}")
    return tokenizer, bert


def save_model(
    folder: Path,
    candidates: dict[str, MultitaskBERT],
    shifts: dict[str, dict[str, float]],
    kept: str,
    tokenizer: Tokenizer,
    run: dict,
) -> None:
    """A self-contained checkpoint. As a folder it is also a model that `transformers` and
    --model_name_or_path can read.

    Of student and teacher the one that is kept is the model; the other's weights are saved beside it. shifts:
    by candidate and task,
    what is added to the bias of a head in the file; the candidates stay as they are.
    """

    def shifted(role: str, prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        biases = {f"{prefix}{task}.bias": shift for task, shift in shifts[role].items()}
        return weights | {name: weights[name] + shift for name, shift in biases.items()}

    model = candidates[kept]
    tensors = {"model": model.bert.published_weights(), "heads": shifted(kept, "", model.heads.state_dict())}
    tensors |= {
        role: shifted(role, "heads.", candidate.state_dict())
        for role, candidate in candidates.items()
        if role != kept
    }
    records = {"config": model.bert.config.to_dict(), "tokenizer": json.loads(tokenizer.to_str()), "run": run}
    save_checkpoint(folder, Checkpoint(tensors, records))


def load_model(folder: str | Path) -> tuple[MultitaskBERT, Tokenizer, dict]:
    """Model, tokenizer and the run's record from a checkpoint folder, or a run folder that has one under
    `best`. Raises UserError."""
    folder = Path(folder)
    folder = folder / "best" if has_checkpoint(folder / "best") else folder
    saved = load_checkpoint(folder)
    try:
        run, settings = saved.records["run"], TrainConfig.from_dict(saved.records["run"]["config"])
        if run["trained_tasks"] != list(settings.tasks):
            raise ValueError("its trained_tasks are not its --tasks")
        with torch.device(
            "meta"
        ):  # no memory is taken for what the file claims before its weights are seen to fit
            bert = BertModel(BertConfig.from_dict(saved.records["config"], f"{folder}/config.json"))
        bert.load_published(saved.tensors["model"], f"{folder}/model.safetensors")
        model = MultitaskBERT(bert, settings.pooling, settings.hidden_dropout_prob)
        model.heads.load_state_dict(saved.tensors["heads"])
        tokenizer = Tokenizer.from_str(json.dumps(saved.records["tokenizer"]))
        check_fit(tokenizer, bert, settings.max_length or 0, str(folder))
        tokenizer.enable_truncation(settings.max_length)  # fails where that leaves no room for a word
        return model, tokenizer, run
    except UserError as error:
        raise UserError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from None
    except (
        Exception
    ) as error:  # a stranger's file can make the libraries raise anything, tokenizers a bare Exception
        raise UserError(f"{folder}: not a model saved by this program ({first_line(error)})") from None
