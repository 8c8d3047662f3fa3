"""Further pre-training of the encoder on the tasks' texts: masked language modelling, `--option adapt`.

    python multitask_classifier.py --option adapt
    python multitask_classifier.py --option finetune --use_smart --model_name_or_path runs/adapt

    1. texts of the training files and of --unlabelled_file -> one TokenizedDataset, without labels
    2. mask        ids (B,T) -> ids with some pieces hidden, and which positions (M of them) are predicted
    3. MaskedLM    ids (B,T) -> hidden (B,T,H) -> logits (M,V) of the hidden pieces -> cross entropy
    4. adapt       steps as in `train`; `last/` to go on with, `best/` the encoder

Sources: Devlin et al. 2019, section 3.1 and appendix A.1, for the masks; Gururangan et al. 2020 (arXiv
2004.10964), section 4: task-adaptive pre-training.
Shapes: B batch, T tokens, H hidden, M masked positions, V vocabulary.
"""

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

import checkpoint
from base_bert import (
    check_fit,
    find_pretrained,
    load_tokenizer,
    read_weights,
    seeded_linear,
    tokenizer_config,
)
from bert import BertModel
from checkpoint import Checkpoint, save_checkpoint
from config import TrainConfig
from datasets import Batch, Loader, TokenizedDataset, read_examples, read_unlabelled, sample_rows, tokenize
from optimizer import AdamW, clip_gradients, parameter_groups, step_if_finite, warmup_decay
from run_files import find_files, prepare_folder, warn_of_unknown
from support import parallel
from support.devices import COMPUTE_TYPES, choose_precision, pick_device, start_watch
from support.errors import UserError
from support.files import write_text
from support.log import RunLog
from support.messages import out_of_memory_advice
from support.progress import Progress
from support.screen import duration, step_line
from tasks import TASKS

MASKED = 0.15  # share of the pieces that are predicted
HIDDEN = 0.8  # of these: share that becomes [MASK]
RANDOM = 0.1  # share that becomes a random piece; the rest stays
SAVE_SECONDS = 120.0
NAME = "texts"  # of the data set, where a task's name would stand
HEAD = {  # our name -> that of `BertForMaskedLM`
    "dense.weight": "cls.predictions.transform.dense.weight",
    "dense.bias": "cls.predictions.transform.dense.bias",
    "layer_norm.weight": "cls.predictions.transform.LayerNorm.weight",
    "layer_norm.bias": "cls.predictions.transform.LayerNorm.bias",
    "bias": "cls.predictions.bias",
}


class MaskedLM(nn.Module):
    """An encoder with BERT's head for masked pieces, whose last matrix is that of the word embeddings."""

    def __init__(self, bert: BertModel, precision: str = "fp32", seed: int = 0) -> None:
        super().__init__()
        self.bert = bert
        self.compute_type = COMPUTE_TYPES[precision]
        self.dense = seeded_linear(bert.config, bert.config.hidden_size, 0.0, (seed, *b"adapt"))
        self.layer_norm = nn.LayerNorm(bert.config.hidden_size, eps=bert.config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(bert.config.vocab_size))

    def load_head(self, tensors: Mapping[str, Tensor]) -> bool:
        """Take the head from the tensors of a `BertForMaskedLM`. Returns whether they have one."""
        if not all(name in tensors for name in HEAD.values()):
            return False
        self.load_state_dict({ours: tensors[theirs] for ours, theirs in HEAD.items()}, strict=False)
        return True

    def forward(self, batch: Batch, ids: Tensor, masked: Tensor) -> Tensor:
        """The batch with other ids (B,T), and where pieces are hidden (B,T) -> their logits (M,V)."""
        embeddings = self.bert.embed(ids, batch.token_type_ids)
        autocast = torch.autocast(ids.device.type, self.compute_type) if self.compute_type else None
        with autocast or contextlib.nullcontext():
            hidden = self.bert.encode(embeddings, batch.attention_mask)[masked]  # (M,H)
            hidden = F.gelu(self.dense(hidden))
        hidden = self.layer_norm(hidden.to(embeddings.dtype))
        with autocast or contextlib.nullcontext():
            logits = F.linear(hidden, self.bert.word_embedding.weight, self.bias)
        return logits.float()


def mask(batch: Batch, tokenizer: Tokenizer, seed: int) -> tuple[Tensor, Tensor]:
    """Hide pieces of a batch, on the CPU. Returns the new ids and which positions are predicted, bool (B,T).

    Of all pieces but [CLS], [SEP] and padding 15 % are chosen, one at least. Of these 80 % become [MASK],
    10 % a random piece, and 10 % stay.
    """
    ids = batch.input_ids
    special = torch.tensor([tokenizer.token_to_id(piece) for piece in ("[CLS]", "[SEP]", "[PAD]")])
    free = ~torch.isin(ids, special)
    if batch.attention_mask is not None:
        free &= batch.attention_mask.bool()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(ids.shape, generator=generator).masked_fill(~free, 2.0)
    masked = drawn <= drawn.min().clamp_min(MASKED)
    kind = torch.rand(ids.shape, generator=generator)
    pieces = torch.randint(tokenizer.get_vocab_size(), ids.shape, generator=generator)
    hidden = torch.where(kind < HIDDEN, torch.tensor(tokenizer.token_to_id("[MASK]")), ids)
    hidden = torch.where((kind >= HIDDEN) & (kind < HIDDEN + RANDOM), pieces, hidden)
    return torch.where(masked, hidden, ids), masked


def masked_loss(model: MaskedLM, batch: Batch, tokenizer: Tokenizer, device: torch.device) -> Tensor:
    """Cross entropy of the hidden pieces, mean over them. The masks are drawn by the batch's seed."""
    ids, masked = mask(batch, tokenizer, batch.seed)
    on_device = replace(batch, input_ids=ids).to(device)
    masked = masked.to(device)
    return F.cross_entropy(model(on_device, on_device.input_ids, masked), batch.input_ids.to(device)[masked])


def read_texts(config: TrainConfig, tokenizer: Tokenizer, max_length: int) -> tuple[TokenizedDataset, str]:
    """The texts of all training files and of --unlabelled_file, each once; and where they are from.

    Raises UserError if there are none.
    """
    files, source = find_files(
        [(name, "train") for name in config.tasks], config.data_dir, config.files, False
    )
    examples = []
    for (name, _), path in files.items():
        examples += sample_rows(read_examples(path, TASKS[name]), config.max_train_samples)
    if config.unlabelled_file:
        examples += read_unlabelled(config.unlabelled_file, TASKS[str(config.unlabelled_task)])
    once = {example.texts: example._replace(label=None) for example in examples}
    dataset = tokenize(list(once.values()), TASKS[config.tasks[0]], tokenizer, max_length)
    if not len(dataset) or dataset.lengths.max() <= 3:
        raise UserError("--option adapt: there are no texts to learn from")
    warn_of_unknown(source, dataset, list(once.values()), tokenizer)
    return dataset, source


def save_encoder(folder: Path, bert: BertModel, tokenizer: Tokenizer, record: dict) -> None:
    """Write an encoder that `--model_name_or_path` and `transformers` open."""
    records = {
        "config": bert.config.to_dict(),
        "tokenizer": json.loads(tokenizer.to_str()),
        "tokenizer_config": tokenizer_config(tokenizer, bert.config.max_position_embeddings),
        "adapted": record,
    }
    save_checkpoint(folder, Checkpoint({"model": bert.published_weights()}, records))


def adapt(config: TrainConfig) -> None:
    """--option adapt: train the encoder to predict hidden pieces of the tasks' texts.

    `folder`/last holds all that is needed to go on, `folder`/best the encoder at the end.
    """
    if parallel.size() > 1:
        raise UserError("--option adapt: one process trains; start it without torchrun")
    device = pick_device(config.use_gpu)
    folder = Path(config.output_dir)
    if not config.resume and not config.overwrite_output_dir:
        prepare_folder(folder, overwrite=False)
    name_or_path = config.model_name_or_path
    tokenizer = load_tokenizer(name_or_path)
    bert = BertModel.from_pretrained(name_or_path)
    max_length = config.max_length or min(256, bert.config.max_position_embeddings)
    check_fit(tokenizer, bert.config, max_length, f"--model_name_or_path {name_or_path}")
    if tokenizer.token_to_id("[MASK]") is None:
        raise UserError(f"--model_name_or_path {name_or_path}: its tokenizer has no [MASK]")
    precision = choose_precision(device, config.precision, config.resume)
    config = replace(config, max_length=max_length, precision=precision.name)
    dataset, source = read_texts(config, tokenizer, max_length)
    model = MaskedLM(bert, precision.name, config.seed)
    weights = find_pretrained(name_or_path, "model.safetensors", "pytorch_model.bin", "config.json")
    has_head = weights.suffix != ".json" and model.load_head(read_weights(weights))
    model.to(device).train()

    loader = Loader(dataset, config.batch_size, (config.seed, *b"adapt"), config.max_tokens)
    per_epoch = config.steps_per_epoch or loader.batches_per_epoch
    total = config.epochs * per_epoch
    warmup = round(0.1 * total) if config.warmup_steps is None else config.warmup_steps
    optimizer = AdamW(parameter_groups(model, config.weight_decay), lr=config.lr)
    scaler = torch.amp.GradScaler(device.type, enabled=precision.name == "fp16")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    head = "its own head" if has_head else "a new head"
    tokens = int(dataset.lengths.sum()) * total // loader.batches_per_epoch
    size = sum(parameter.numel() for parameter in model.bert.bert_layers.parameters())
    print(f"adapt on {device} in {precision.name}, {precision.reason}; {head}")
    print(f"{len(dataset):,} texts, {total:,} steps of {config.batch_size} rows, {tokens:,} tokens,", end=" ")
    flops = 6 * tokens * (size + MASKED * model.bert.word_embedding.weight.numel())
    print(f"about {flops / 1e12:,.1f} TFLOP of arithmetic")

    if not config.resume:  # now that nothing can be wrong any more, an earlier run may go
        prepare_folder(folder, config.overwrite_output_dir)
    models = {"student": model}
    record = checkpoint.run_record(config, {(NAME, "train"): dataset}, source, processes=1)
    record["total_steps"] = total
    progress = Progress()
    torch.manual_seed(config.seed)  # dropout starts from here
    if config.resume:
        progress = checkpoint.load_last(folder, models, optimizer, scaler, record)
    saved_at = time.monotonic()
    log = RunLog(folder, progress.log_bytes, progress.step)
    steps = tqdm(
        range(progress.step, total), "adapting", total, initial=progress.step, unit="step", disable=None
    )
    with contextlib.closing(log), checkpoint.StopSignal() as stop:
        for k in steps:
            stop_watch = start_watch(device)
            batch = loader[k]
            with out_of_memory_advice(*batch.input_ids.shape):
                loss = masked_loss(model, batch, tokenizer, device)
                scaler.scale(loss * batch.batch_weight).backward()
            scaler.unscale_(optimizer)
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            clip_gradients(optimizer, norm, config.max_grad_norm)
            lr = config.lr * warmup_decay(k, warmup, total)
            for group in optimizer.param_groups:
                group["lr"] = lr
            step_if_finite(optimizer, torch.isfinite(norm + loss.detach()))
            scaler.update()
            optimizer.zero_grad()
            values = {"task": loss.detach(), "total": loss.detach(), "grad_norm": norm}
            progress.add([NAME], [values], [batch], stop_watch())

            last = progress.step == total
            if last or progress.step % config.logging_steps == 0:
                progress.check({NAME: dataset}, config.skip_nonfinite, scaler)
                found = progress.report(lr)[NAME]
                log.write(f"train/{NAME}", progress.step, found)
                left = progress.seconds / progress.step * (total - progress.step)
                tqdm.write(step_line(progress.step, total, NAME, found["task"], {}, left))
            due = time.monotonic() - saved_at > SAVE_SECONDS
            if config.save_steps:
                due = progress.step % config.save_steps == 0
            if due or last or stop.received:
                progress.check({NAME: dataset}, config.skip_nonfinite, scaler)
                progress.log_bytes = log.size()
                with progress.saving():
                    checkpoint.save_last(folder, models, optimizer, scaler, record, progress)
                saved_at = time.monotonic()
            if stop.received:
                raise checkpoint.Interrupted(stop.received)
    save_encoder(folder / "best", model.bert.eval(), tokenizer, record)
    write_text(
        folder / "results.json", json.dumps(progress.cost() | {"config": config.to_dict()}, indent=2) + "\n"
    )
    print(f"{duration(progress.seconds)} of training; the encoder is in {folder / 'best'}: use it by")
    print(f"  --model_name_or_path {folder / 'best'}")
