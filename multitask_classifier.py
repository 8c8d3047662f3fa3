"""Fine-tune one BERT on sentiment, paraphrase and similarity at once, with SMART regularisation.

    python multitask_classifier.py --option finetune --use_smart

Read from top to bottom: the model, its loss, the training loop, the main program.

    Batch ─ BertModel.embed ─> embeddings (B,T,H) ─ [+ δ] ─ BertModel.encode ─> hidden (B,T,H) ─ pool ─> (B,H)
          ─ head ─> logits (B,C) ─ training_loss ─> {task, smart, bregman, ..., total}
          ─ backward, clip, optimizer.step, teacher.update

B batch, T tokens, H hidden, C outputs. Source: the SMARTBert report (Stanford CS 224N) and Jiang et al. 2020
(arXiv 1911.03437).
"""

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

from config import (
    UNLABELLED,
    TrainConfig,
    as_hparams,
    check_arguments,
    describe_settings,
    parse_arguments,
    warn_of_unused_flags,
)
from support.errors import OneLine, UserError, exit_status, one_line

NAME = "multitask_classifier.py"
# importing torch takes seconds: --help and wrong flags are answered before
if __name__ == "__main__" and (status := exit_status(NAME, check_arguments)):
    sys.exit(status)

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

import adapt
import ask
import average
import checkpoint
import dry_run
import mysmartloss
import submit
from base_bert import BertConfig, check_fit, load_tokenizer, parse_tokenizer, seeded_linear, tokenizer_config
from bert import BertModel
from checkpoint import ENDINGS, Checkpoint, has_checkpoint, load_checkpoint, save_checkpoint
from datasets import Batch, Loader, TokenizedDataset, plan_steps, split_pairs
from evaluation import answers, checked_rows, evaluate, predict, untrained_scores
from model_card import model_card
from optimizer import (
    AdamW,
    clip_gradients,
    combine_by_pcgrad,
    lr_factors,
    parameter_groups,
    step_if_finite,
    warmup_decay,
)
from run_files import (
    Data,
    check_outputs,
    input_files,
    load_data,
    make_report,
    prepare_folder,
    say_own,
    with_own_task,
    write_all_predictions,
    write_dev_rows,
    write_own_rows,
)
from support import messages, parallel
from support.devices import (
    COMPUTE_TYPES,
    choose_precision,
    make_deterministic,
    peak_memory,
    pick_device,
    start_watch,
)
from support.dropout import Dropout
from support.files import read_json, write_text
from support.hub import hub_folder
from support.log import RunLog, SilentLog
from support.messages import out_of_memory_advice
from support.progress import Progress
from support.screen import numbers_line, scores_table, step_line
from tasks import TASKS, Task, constant_loss, in_batch_negatives, task_table

log = logging.getLogger("smart_bert")
NORMS = {"inf": mysmartloss.inf_norm, "2": mysmartloss.l2_norm}  # of --smart_norm
SAVE_SECONDS = 120.0  # between checkpoints, unless --save_steps
FLOOR_DELTA = 1e-5  # largest coordinate of a δ that bf16 and fp16 round away; embeddings are about 0.5

# -------------------------------------------------------------------------------------------- model


class Cosine(nn.Module):
    """A head without weights: `scale` times the cosine of the two vectors of each pair."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, vectors: Tensor) -> Tensor:
        """(2B,H), the vectors of pair i in rows 2i and 2i+1 -> (B,1)."""
        return self.scale * F.cosine_similarity(vectors[0::2], vectors[1::2], dim=-1)[:, None]


class MultitaskBERT(nn.Module):
    """A BERT encoder, a sentence vector, dropout, and a head per task: linear, or for sts a cosine.

    precision: compute type of the encoder's layers, `fp32`, `bf16` or `fp16` by autocast. Weights,
    embeddings, sentence vector and heads are fp32 in any case: a score of 4 in bf16 has steps of 1/32.
    tasks: the tasks that get a head, by name or as records, by default all of TASKS. seed: of the heads'
    initial weights.
    similarity: `head`, or `cosine` for 5 times the cosine of the texts' mean vectors where a task allows it.
    """

    def __init__(
        self,
        bert: BertModel,
        pooling: str = "mean",
        hidden_dropout_prob: float = 0.1,
        precision: str = "fp32",
        tasks: Iterable[str | Task] | None = None,
        seed: int = 0,
        similarity: str = "head",
    ) -> None:
        super().__init__()
        self.bert = bert
        self.pooling = pooling
        self.compute_type = COMPUTE_TYPES[precision]
        self.dropout = Dropout(hidden_dropout_prob)
        self.tokenizer: Tokenizer | None = None  # a saved model comes with its own
        self.max_length = bert.config.max_position_embeddings
        self.heads = nn.ModuleDict()
        records = [
            TASKS[task] if isinstance(task, str) else task for task in (TASKS if tasks is None else tasks)
        ]
        self.tasks = {task.name: task for task in records}
        for name, task in self.tasks.items():
            # the first weights depend on the seed and the name alone, not on which other heads there are
            if similarity == "cosine" and task.cosine_scale:
                self.heads[name] = Cosine(task.cosine_scale)
                continue
            own_seed = (seed, *name.encode())
            self.heads[name] = seeded_linear(bert.config, task.num_outputs, task.first_output, own_seed)

    def logits(self, task: str, embeddings: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Embeddings (B,T,H), mask (B,T) or None if no token is padding -> the task's outputs (B,C).

        Of a task that is scored by a cosine: (2B,T,H) and (2B,T), as `sequences` makes them.
        """
        head = self.heads[task]
        if isinstance(head, Cosine):
            return head(self.pooled("mean", embeddings, attention_mask))
        return head(self.dropout(self.pooled(self.pooling, embeddings, attention_mask)))

    def pooled(self, pooling: str, embeddings: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Embeddings (B,T,H), mask (B,T) or None -> sentence vectors (B,H) by a way of `--pooling`."""
        autocast = torch.autocast(embeddings.device.type, self.compute_type) if self.compute_type else None
        with autocast or contextlib.nullcontext():
            hidden = self.bert.encode(embeddings, attention_mask)  # (B,T,H)
        hidden = hidden.to(embeddings.dtype)
        if pooling == "cls":
            return self.bert.pool(hidden)
        if attention_mask is None:
            return hidden.mean(1)
        real = attention_mask.to(hidden.dtype)[:, :, None]  # (B,T,1)
        return (hidden * real).sum(1) / real.sum(1)

    def sentence_vectors(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Ids and mask (B,T) of one text each -> the mean of its token vectors (B,H)."""
        return self.pooled("mean", self.bert.embed(input_ids, None), attention_mask)

    def sequences(
        self, task: str, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What the encoder reads: ids, mask and segment ids (B,T), or (2B,S) where texts are compared."""
        if isinstance(self.heads[task], Cosine):
            return *split_pairs(input_ids, attention_mask, token_type_ids), None
        return input_ids, attention_mask, token_type_ids

    def forward(
        self,
        task: str,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Ids, mask and segment ids (B,T) -> the task's outputs (B,C)."""
        ids, mask, types = self.sequences(task, input_ids, attention_mask, token_type_ids)
        return self.logits(task, self.bert.embed(ids, types), mask)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, precision: str | None = None) -> "MultitaskBERT":
        """A saved model with its tokenizer, ready for `predict`, on the best device.

        name_or_path: a run's folder, its folder `best`, or a name on the hub. precision: a compute type, by
        default that of the command line. Raises UserError, which says why there is no such model.
        """
        if precision not in (None, *COMPUTE_TYPES):
            raise UserError(f"precision {precision!r}: must be one of {', '.join(COMPUTE_TYPES)}")
        model, _, _ = load_model(hub_folder(str(name_or_path), ENDINGS))
        device = pick_device(use_gpu=False)
        model.compute_type = COMPUTE_TYPES[choose_precision(device, precision).name]
        return model.to(device).eval()

    def predict(self, task: str, texts: Iterable[str | Sequence[str]], batch_size: int = 32) -> list[dict]:
        """An answer to each text or pair of texts, in their order, as `evaluation.answers` describes it.

        Raises UserError, which names the index of a wrong text.
        """
        if self.tokenizer is None:
            raise UserError("predict: the model has no tokenizer; open a saved one by from_pretrained")
        if task not in self.heads:
            raise UserError(f"predict: no head for {task!r}; the model has heads for {', '.join(self.heads)}")
        rows = checked_rows(self.tasks[task], texts)
        was_training = self.training
        try:
            return answers(self, self.tokenizer, self.tasks[task], self.max_length, batch_size, rows)[0]
        finally:
            self.train(was_training)

    def predict_sentiment(self, *inputs: Tensor | None) -> Tensor:
        """Ids, mask and segment ids (B,T) -> logits (B,5) of very negative ... very positive."""
        return self("sst", *inputs)

    def predict_paraphrase(self, *inputs: Tensor | None) -> Tensor:
        """Ids, mask and segment ids (B,T) of `[CLS] a [SEP] b [SEP]` -> logit (B,1) of being a paraphrase."""
        return self("para", *inputs)

    def predict_similarity(self, *inputs: Tensor | None) -> Tensor:
        """Ids, mask and segment ids (B,T) of `[CLS] a [SEP] b [SEP]` -> score (B,1), about 0 to 5."""
        return self("sts", *inputs)


def save_model(
    folder: Path, models: dict[str, MultitaskBERT], kept: str, tokenizer: Tokenizer, run: dict
) -> None:
    """A self-contained checkpoint, and a folder that `transformers` and --model_name_or_path can read.

    models: by role (student, teacher). The one that is kept is the model; the other is saved beside it.
    """
    model = models[kept]
    tensors = {"model": model.bert.published_weights(), "heads": model.heads.state_dict()}
    tensors |= {role: other.state_dict() for role, other in models.items() if role != kept}
    records = {"config": model.bert.config.to_dict(), "tokenizer": json.loads(tokenizer.to_str()), "run": run}
    max_length = run["config"]["max_length"] or model.bert.config.max_position_embeddings
    records["tokenizer_config"] = tokenizer_config(tokenizer, max_length)
    save_checkpoint(folder, Checkpoint(tensors, records, {"README.md": model_card(run)}))


def load_model(folder: str | Path) -> tuple[MultitaskBERT, Tokenizer, dict]:
    """Model, tokenizer and the run's record, from a checkpoint folder or a run folder with one in `best`.

    The model has the heads that were saved, whatever tasks exist today. Raises UserError with the cause.
    """
    folder = Path(folder)
    folder = folder / "best" if has_checkpoint(folder / "best") else folder
    saved = load_checkpoint(folder)
    try:
        run = saved.records["run"]
        settings = TrainConfig.from_dict(run["config"])
        tasks = task_table(settings.own)
        if run["trained_tasks"] != list(settings.tasks):
            raise ValueError("its trained_tasks are not its --tasks")
        where = f"{folder}/config.json"
        bert = BertModel.without_weights(BertConfig.from_dict(saved.records["config"], where))
        bert.load_published(saved.tensors["model"], f"{folder}/model.safetensors")
        heads = {name.rpartition(".")[0] for name in saved.tensors["heads"]}
        if settings.similarity == "cosine":  # a head without weights
            heads |= {name for name in (*settings.tasks, *settings.eval_tasks) if tasks[name].cosine_scale}
        if unknown := heads - set(tasks):
            raise ValueError(f"it has a head for {', '.join(sorted(unknown))}, a task that tasks.py lacks")
        if lacking := set(settings.tasks) - heads:
            raise ValueError(f"it has no head for {', '.join(sorted(lacking))}, which it was trained on")
        model = MultitaskBERT(
            bert,
            settings.pooling,
            settings.hidden_dropout_prob,
            tasks=[tasks[name] for name in sorted(heads)],
            similarity=settings.similarity,
        )
        model.heads.load_state_dict(saved.tensors["heads"])
        tokenizer = parse_tokenizer(json.dumps(saved.records["tokenizer"]), f"{folder}/tokenizer.json")
        check_fit(tokenizer, bert.config, settings.max_length or 0, str(folder))
        tokenizer.enable_truncation(settings.max_length)  # fails where that leaves no room for a word
        model.tokenizer = tokenizer
        model.max_length = settings.max_length
        return model, tokenizer, run
    except UserError as error:
        raise UserError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from None
    # a stranger's file can make the libraries raise anything, tokenizers a bare Exception
    except Exception as error:
        raise UserError(f"{folder}: not a model saved by this program ({one_line(error)})") from None


# --------------------------------------------------------------------------------------------- loss


def training_loss(
    model: MultitaskBERT,
    task: Task,
    batch: Batch,
    config: TrainConfig,
    teacher: mysmartloss.BregmanProximal | None = None,
    measure: bool = False,
) -> dict[str, Tensor]:
    """F = L + λ_s R_s + μ D_Breg of one batch: each part as a scalar, and their weighted sum, `total`.

    Other terms are on where their weight is above 0. A batch without labels has no L. With `measure`, also
    returns diagnostics of the attack, for one or two forward passes more.
    """
    weights = config.batch_weights(UNLABELLED if batch.labels is None else task.name, batch.number)
    generator = mysmartloss.generator_state(batch.input_ids.device)  # before the dropout masks are drawn
    ids, mask, types = model.sequences(task.name, *batch.inputs)
    embeddings = model.bert.embed(ids, types)  # (B,T,H), shared by all passes
    encode = mysmartloss.DropoutReplay(lambda x: model.logits(task.name, x, mask))
    logits = encode(embeddings)  # (B,C), the clean pass; later calls reuse its dropout masks
    losses: dict[str, Tensor] = {}
    measured: dict[str, Tensor] = {}
    if batch.labels is not None:  # L
        losses["task"] = task.loss(logits, batch.labels)
        weights["task"] = config.task_weight(task.name)
    if config.has_freelb(task.name):  # in place of L
        losses["task"] = freelb_loss(encode, task, batch, embeddings, mask, config)
    if "smart" in weights:  # R_s, equation 2
        smart = smart_loss(encode, task, batch, config)
        delta = smart.perturbation(embeddings, logits, mask)  # Algorithm 1, lines 6 to 10
        losses["smart"] = smart.at(delta, embeddings, logits)
        if measure:
            measured = attack_evidence(smart, delta, embeddings, logits, losses["smart"], config.precision)
    if "bregman" in weights:  # D_Breg, equation 3
        assert teacher is not None, "the term is on, so there is a teacher"
        losses["bregman"] = teacher(logits, lambda m: m(task.name, *batch.inputs), task.divergence, generator)
    if "rdrop" in weights:  # Wu et al. 2021, equations 2 to 4
        second = model(task.name, *batch.inputs)  # with other dropout masks
        # the loss of both passes, logged as their mean, which compares with that of other runs
        losses["task"] = 0.5 * (losses["task"] + task.loss(second, cast(Tensor, batch.labels)))
        weights["task"] *= 2
        losses["rdrop"] = 0.5 * task.divergence(second, logits)
    if "contrastive" in weights:
        losses["contrastive"] = contrastive_loss(model, task, batch, logits)
    total = sum(weights[name] * loss for name, loss in losses.items())
    return losses | measured | {"total": cast(Tensor, total)}


def smart_loss(
    encode: mysmartloss.DropoutReplay, task: Task, batch: Batch, config: TrainConfig
) -> mysmartloss.SMARTLoss:
    """R_s with the run's ε, η, σ², T and norm."""
    return mysmartloss.SMARTLoss(
        encode,
        task.divergence,
        norm_fn=NORMS[config.smart_norm],
        num_steps=config.smart_steps,
        step_size=config.smart_step_size,
        epsilon=config.smart_epsilon,
        noise_var=config.smart_noise_var,
        noise_fn=batch.noise,
    )


def attack_evidence(
    smart: mysmartloss.SMARTLoss,
    delta: Tensor,
    embeddings: Tensor,
    logits: Tensor,
    value: Tensor,
    precision: str,
) -> dict[str, Tensor]:
    """`SMARTLoss.evidence`, and in bf16 and fp16 `smart_floor`, what R_s reads from rounding alone."""
    measured = smart.evidence(delta, embeddings, logits, value)
    if precision != "fp32":
        below = delta * (FLOOR_DELTA / delta.abs().amax())
        with torch.no_grad():
            measured["smart_floor"] = smart.at(below, embeddings, logits)
    return measured


def freelb_loss(
    encode: mysmartloss.DropoutReplay,
    task: Task,
    batch: Batch,
    embeddings: Tensor,
    mask: Tensor | None,
    config: TrainConfig,
) -> Tensor:
    """FreeLB's loss with the run's K, α and ε."""
    assert batch.labels is not None, "the settings refuse texts without labels"
    noise = batch.noise(embeddings)
    size = (config.smart_steps, config.smart_step_size, config.smart_epsilon)
    return mysmartloss.freelb_loss(encode, task.loss, embeddings, batch.labels, mask, noise, *size)


def contrastive_loss(model: MultitaskBERT, task: Task, batch: Batch, logits: Tensor) -> Tensor:
    """`in_batch_negatives` on the pairs of the batch that mean the same; each text in a pass of its own.

    Under torchrun the negatives are those of the process. 0 where there is only one such pair.
    """
    assert batch.labels is not None and task.alike_label is not None, "the settings say so"
    alike = batch.labels.eq(task.alike_label).nonzero().squeeze(1)  # syncs a GPU
    if len(alike) < 2:
        return logits.sum() * 0.0
    ids, mask, types = (None if tensor is None else tensor[alike] for tensor in batch.inputs)
    vectors = model.sentence_vectors(*split_pairs(cast(Tensor, ids), mask, types))  # (2N,H)
    return in_batch_negatives(vectors[0::2], vectors[1::2])


# ----------------------------------------------------------------------------------------- training


class Run(NamedTuple):
    """What belongs to one run. record: what every checkpoint says of it."""

    config: TrainConfig
    folder: Path
    tokenizer: Tokenizer
    record: dict
    progress: Progress
    log: RunLog | SilentLog


def optimizer_groups(model: MultitaskBERT, config: TrainConfig) -> list[dict]:
    """The trainable parameters, each group with its own learning rate and weight decay."""
    names = [name for name, _ in model.named_parameters()]
    factors = lr_factors(names, config.head_lr / config.lr, config.layer_lr_decay, model.bert.new_pooler)
    return parameter_groups(model, config.weight_decay, factors)


def log_interval(run: Run, lr: float, total: int, ends_epoch: bool) -> dict[str, dict[str, float]]:
    """Log the record of each task, and show a short line; with --log_level debug every number of it.

    Returns the records.
    """
    config = run.config
    step = run.progress.step
    left = run.progress.seconds / step * (total - step)
    records = run.progress.report(lr)
    for task in filter(records.get, config.sources):
        record = records[task]
        if "ascent_gain" in record:  # the ratio of the means, not the mean of the ratios of a batch's parts
            record["ascent_gain"] = record["ascent_divergence"] / max(record["random_divergence"], 1e-38)
        run.log.write(f"train/{task}", step, record)
        weights = config.weights(task)  # with --smart_every N an interval may have no R_s
        added = {name: weight * record[name] for name, weight in weights.items() if name in record}
        tqdm.write(step_line(step, total, task, record.get("task"), added, left))
        if config.log_level == "debug":
            tqdm.write(numbers_line(step, f"train/{task}", record))
    if ends_epoch:
        messages.warn_of_rounding(records, config.precision)
    return records


def score_dev(models: dict[str, MultitaskBERT], dev: list[TokenizedDataset], run: Run, when: str) -> None:
    """Score student and teacher on dev; save the one that --keep allows if it is the best so far."""
    config = run.config
    progress = run.progress
    results = {
        role: evaluate(model, dev, config.batch_size, config.tasks, config.select_by)
        for role, model in models.items()
    }
    for role, result in results.items():
        models[role].train()
        for task, scores in result.scores.items():
            run.log.write(f"{'dev' if role == 'student' else 'teacher'}/{task}", progress.step, scores)
    by = f", best by {config.select_by}" if config.select_by else ""
    kept = progress.take_scores(results, config.keep, when + by)
    if kept is None:
        return
    save_best(models, run)
    write_all_predictions(config.files, run.folder, "dev", dev, results[kept].predictions)
    write_dev_rows(run.folder, dev, results[kept])


def save_best(models: dict[str, MultitaskBERT], run: Run) -> None:
    """Write `best`: the models as they are, which `progress.best` describes."""
    if parallel.rank() == 0:
        kept = run.progress.best.get("kept", "student")
        with run.progress.saving():
            save_model(run.folder / "best", models, kept, run.tokenizer, run.record | run.progress.best)


def train(
    model: MultitaskBERT, data: Data, config: TrainConfig, folder: Path, tokenizer: Tokenizer, source: str
) -> dict:
    """Train, score dev every --eval_steps or after each epoch, keep the best model under `folder`/best.

    `folder`/last holds all that is needed to go on; with `config.resume` the run goes on from it. Returns
    what `results.json` says of the training. Raises checkpoint.Interrupted after a signal.
    """
    datasets = {name: data[name, "train"] for name in config.tasks}
    if config.unlabelled_task:
        datasets[UNLABELLED] = data[config.unlabelled_task, UNLABELLED]
    # a resumed run keeps the batches of the processes that it was started with
    processes = checkpoint.processes_of(folder) if config.resume else parallel.size()
    shares = processes * config.gradient_accumulation_steps  # parts of each batch that fit in memory
    parts = parallel.size() * -(-shares // parallel.size())  # every process computes as many
    loaders = {  # a task's batches depend on the seed and its name alone, not on which other tasks there are
        name: Loader(
            dataset, config.batch_size * shares, (config.seed, *name.encode()), config.max_tokens, shares
        )
        for name, dataset in datasets.items()
    }
    plan = plan_steps(
        loaders, config.tasks, config.schedule, config.epochs, config.steps_per_epoch, config.seed
    )
    total = len(plan.steps)
    warmup = round(0.1 * total) if config.warmup_steps is None else config.warmup_steps

    models = {"student": model.train()}
    teacher = None
    if config.has_teacher:
        teacher = mysmartloss.BregmanProximal(model)
        models["teacher"] = cast(MultitaskBERT, teacher.teacher)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = parameters[0].device
    optimizer = AdamW(optimizer_groups(model, config), lr=config.lr)
    # fp16 would round small gradients to 0, so the loss is scaled up there
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    if parts != shares and any("contrastive" in config.weights(name) for name in config.tasks):
        words = "--contrastive_weight: a batch is computed in %d parts now, not %d, so its negatives differ"
        log.warning(words, parts, shares)
    dry_run.describe(model, tokenizer, loaders, plan, warmup, config)
    dry_run.try_largest_batch(model, loaders, config, teacher, training_loss)

    # nothing can be wrong any more, so an earlier run may go
    if not config.resume and parallel.rank() == 0:
        prepare_folder(folder, config.overwrite_output_dir)
    write_own_rows(folder, data)

    record = checkpoint.run_record(config, data, source, processes) | {"total_steps": total}
    progress = Progress()
    if config.resume:
        progress = checkpoint.load_last(folder, models, optimizer, scaler, record)
        group = optimizer.param_groups[0]
        planned = config.lr * warmup_decay(progress.step - 1, warmup, total)
        now = config.lr * warmup_decay(progress.step, warmup, total)
        messages.say_new_rate(group["lr"] / group["lr_factor"], planned, now, progress.step, total)
    run_log = SilentLog() if parallel.rank() else RunLog(folder, progress.log_bytes, progress.step)
    run = Run(config, folder, tokenizer, record, progress, run_log)
    dev = [data[task, "dev"] for task in config.eval_tasks]
    constant_losses = {
        name: constant_loss(dataset.task, dataset.labels)
        for name, dataset in datasets.items()
        if dataset.labels is not None
    }
    left = plan.steps[progress.step :]
    if progress.out_of_patience(config.patience):
        left = []
        print(f"early stopping: {progress.stale} scorings without a better mean; raise --patience to go on")
    if left:
        expected = dry_run.forecast(models, loaders, plan, data, config, teacher, training_loss)
        expected.say(progress.step)
    saved_at = time.monotonic()
    steps = tqdm(left, "training", total, initial=progress.step, unit="step", disable=parallel.bar_disabled())
    with (
        contextlib.closing(run_log),
        checkpoint.StopSignal() as stop,
        parallel.lost_worker_advice(str(folder)),
    ):
        for tasks in steps:  # one batch of one task; of every task where --schedule is joint
            stop_watch = start_watch(device)
            names = [name for name, _ in tasks]
            batches = [loaders[name][k] for name, k in tasks]
            lr = config.lr * warmup_decay(progress.step, warmup, total)

            # forward and backward
            losses: list[dict[str, Tensor]] = []
            of_tasks = []  # gradients, where PCGrad combines them
            for name, batch in zip(names, batches, strict=True):
                sums: dict[str, Tensor] = {}  # over the parts that this process computes
                for number in range(parallel.rank(), parts, parallel.size()):
                    part = batch.share(number, parts).to(device)
                    with out_of_memory_advice(*part.input_ids.shape):
                        measure = progress.lacks(name, "ascent_gain")
                        values = training_loss(model, datasets[name].task, part, config, teacher, measure)
                        scaler.scale(values["total"] * (part.weight * part.batch_weight / parts)).backward()
                    for key, value in values.items():
                        sums[key] = sums.get(key, 0.0) + value.detach() * (
                            part.weight * parallel.size() / parts
                        )
                losses.append(parallel.all_reduce_mean(sums))
                if config.gradient_surgery == "pcgrad":
                    parallel.sum_gradients(parameters)
                    of_tasks.append([parameter.grad for parameter in parameters])
                    optimizer.zero_grad()
            if of_tasks:
                conflicts = combine_by_pcgrad(parameters, of_tasks, batches[0].seed)
                losses = [
                    values | {"conflict": conflict}
                    for values, conflict in zip(losses, conflicts, strict=True)
                ]
            else:
                parallel.sum_gradients(parameters)

            # clip; step, unless something is not finite; the teacher follows
            scaler.unscale_(optimizer)
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            clip_gradients(optimizer, norm, config.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_factor"]
            finite = torch.isfinite(torch.stack([norm, *(values["total"] for values in losses)])).all()
            if step_if_finite(optimizer, finite) and teacher:
                teacher.update(model, config.beta(progress.step, total))  # Algorithm 1, line 14
            scaler.update()
            optimizer.zero_grad()
            losses = [values | {"grad_norm": norm} for values in losses]
            progress.add(names, losses, batches, stop_watch())

            # what is due now; all processes stop and save at the same step
            ends_epoch = progress.step % plan.per_epoch == 0
            epoch = f"epoch {-(-progress.step // plan.per_epoch)}/{config.epochs}"
            logs = ends_epoch or progress.step % config.logging_steps == 0
            scores = progress.step % (config.eval_steps or plan.per_epoch) == 0 or progress.step == total
            due = time.monotonic() - saved_at > SAVE_SECONDS
            if config.save_steps:
                due = progress.step % config.save_steps == 0
            signal, saves = parallel.all_reduce_max(stop.received or 0, due or ends_epoch or scores)
            saves = saves or signal

            # log, which syncs a GPU
            if device.type == "cpu" or logs or saves or progress.step in (1, 20):
                progress.check(datasets, config.skip_nonfinite, scaler)
                loss = losses[0]["task" if "task" in losses[0] else "total"]
                steps.set_postfix_str(progress.bar_text(names[0], loss, epoch), refresh=False)
            messages.say_first_step(progress.first_losses, progress.step, progress.seconds)
            if progress.step == 20:
                if total > 20:
                    expected.say(20, progress.seconds)
                weights = {name: config.weights(name) for name in config.sources}
                messages.warn_of_first_losses(progress.first_losses, weights, config.precision)
            if logs:
                records = log_interval(run, lr, total, ends_epoch)
            if scores:
                score_dev(models, dev, run, epoch if ends_epoch else f"step {progress.step}")
            stops = progress.out_of_patience(config.patience)
            if stops and not logs:
                records = log_interval(run, lr, total, ends_epoch)
            if stops or progress.step == total:
                messages.warn_of_nothing_learned(records, constant_losses, progress.step)
            if saves:
                progress.log_bytes = run_log.size()
                with progress.saving():
                    checkpoint.save_last(folder, models, optimizer, scaler, record, progress)
                saved_at = time.monotonic()
            if signal:
                raise checkpoint.Interrupted(signal)
            if stops:
                tqdm.write(f"early stopping: {progress.stale} scorings without a better mean on dev")
                break
        if left:  # a run that was finished before has it
            run_log.write_hparams(progress.step, as_hparams(config), progress.best_scores())
    parallel.barrier()  # until `best` is written
    return progress.best | progress.cost() | peak_memory(device)


# ------------------------------------------------------------------------------------------ program


def finish(config: TrainConfig, model: MultitaskBERT, tests: list[TokenizedDataset], results: dict) -> None:
    """Predict the test files, write `results.json`, print the table of dev scores."""
    folder = Path(config.output_dir)
    predictions = {test.task.name: predict(model, test, config.batch_size) for test in tests}
    write_all_predictions(config.files, folder, "test", tests, predictions)
    if parallel.rank() == 0:
        text = json.dumps(results | {"config": config.to_dict()}, indent=2)
        write_text(folder / "results.json", text + "\n")
    which = ""
    if "best_step" in results:
        chosen = f", chosen by {config.select_by}" if config.select_by else ""
        which = f" ({results.get('kept', 'student')} after step {results['best_step']}{chosen})"
    untrained = results.get("untrained_cosine", {})
    print(f"\n{scores_table(results['dev'], untrained)}")
    print(f"mean {results['dev_mean']:.3f}{which}; everything is in {folder}")
    for task, score in untrained.items():
        reached = results["dev"][task][task_table(config.own)[task].main_metric]
        if reached < score:
            print(f"{task}: {reached:.3f} is below the {score:.3f} of the untrained encoder: train longer")
    if results["data"] == "sample":
        print("data: the project's own sample, which is too small to learn much from")
    if not config.no_report:
        make_report(folder)


def fit(config: TrainConfig) -> None:
    """--option finetune and pretrain: train, keep the best epoch, test it."""
    config = with_own_task(config)
    tasks = task_table(config.own)
    device = pick_device(config.use_gpu)
    folder = Path(config.output_dir)
    evaluated = [(name, split) for name in config.eval_tasks for split in ("dev", "test")]
    wanted = [*((name, "train") for name in config.tasks), *evaluated]
    files, source = input_files(config, wanted, needs_test=False)
    if config.unlabelled_file and config.unlabelled_task:
        files[config.unlabelled_task, UNLABELLED] = Path(config.unlabelled_file)
    check_outputs(folder, config.files, evaluated, files.values(), trains=True)
    if not config.resume and not config.overwrite_output_dir and parallel.rank() == 0:
        prepare_folder(folder, overwrite=False)  # now, before minutes are spent on reading
    differing = describe_settings(config, everything=config.log_level == "debug")
    print(f"settings that differ from the defaults:\n{differing}" if differing else "settings: the defaults")
    tokenizer = load_tokenizer(config.model_name_or_path)
    bert = BertModel.from_pretrained(config.model_name_or_path)
    where = f"--model_name_or_path {config.model_name_or_path}"
    check_fit(tokenizer, bert.config, config.max_length or 0, where)
    positions = bert.config.max_position_embeddings
    precision = choose_precision(device, config.precision, config.resume)
    print(f"precision: {precision.name}, {precision.reason}")
    config = replace(
        config,
        max_length=config.max_length or min(256, positions),
        precision=precision.name,
        differing=describe_settings(config),
    )
    bert.requires_grad_(config.option == "finetune")
    if bert.new_pooler and config.pooling == "cls":
        log.warning("%s has no pooler: --pooling cls starts with a new one", where)
    limits = {"train": config.max_train_samples, "dev": config.max_eval_samples}
    data = load_data(files, tasks, tokenizer, config.max_length, limits)
    own = next((name for name in config.tasks if name not in TASKS), None)
    if own:
        say_own(own, data, files)
    heads = [tasks[name] for name in (*config.tasks, *config.eval_tasks)]
    model = MultitaskBERT(
        bert,
        config.pooling,
        config.hidden_dropout_prob,
        config.precision,
        heads,
        config.seed,
        config.similarity,
    ).to(device)
    if config.compile:
        print("compiling the encoder" + (": on a CPU its steps are slower" if device.type == "cpu" else ""))
        bert.compile_layers()
        dry_run.check_compiled(model.train(), config)
    with_cosine = [name for name in config.eval_tasks if name in config.tasks and tasks[name].from_cosines]
    pairs = [(data[name, "train"], data[name, "dev"]) for name in with_cosine]
    untrained = untrained_scores(model, pairs, config.batch_size)
    # dropout starts from here, whatever was drawn before; each process has other rows and so other masks
    torch.manual_seed(config.seed + parallel.rank())
    trained = train(model, data, config, folder, tokenizer, source)
    best, _, _ = load_model(folder / "best")
    best.compute_type = model.compute_type
    tests = [data[name, "test"] for name in config.eval_tasks if (name, "test") in data]
    results = trained | {"trained_tasks": list(config.tasks), "data": source}
    results |= {"precision_reason": precision.reason, "untrained_cosine": untrained}
    finish(config, best.to(device), tests, results)


def open_checkpoint(config: TrainConfig) -> tuple[TrainConfig, MultitaskBERT, Tokenizer, dict]:
    """The model of --checkpoint on the best device, and the settings with those that it was trained with.

    Raises UserError.
    """
    assert config.checkpoint is not None, "the settings say so for evaluate and predict"
    device = pick_device(config.use_gpu)
    (folder,) = config.checkpoint
    model, tokenizer, run = load_model(folder)
    names = config.eval_tasks or tuple(run["trained_tasks"])
    if lacking := set(names) - set(model.heads):
        flag = "--task" if config.task else "--eval_tasks"
        raise UserError(
            f"{flag} {','.join(names)}: the model of {folder} has no head for"
            f" {', '.join(sorted(lacking))}; it has heads for {', '.join(model.heads)}"
        )
    if untrained := set(names) - set(run["trained_tasks"]):
        listed = ", ".join(sorted(untrained))
        log.warning("%s was not trained on %s: what it predicts there is chance", folder, listed)
    if run.get("data") == "sample":
        log.warning("%s was trained on the project's own sample, too small to learn much", folder)
    precision = choose_precision(device, config.precision)
    model.compute_type = COMPUTE_TYPES[precision.name]
    trained = TrainConfig.from_dict(run["config"])
    trained_with = {name: getattr(trained, name) for name in ("max_length", "pooling", "similarity")}
    config = replace(config, eval_tasks=names, precision=precision.name, **trained_with)
    return config, model.to(device), tokenizer, run


def evaluate_checkpoint(config: TrainConfig) -> None:
    """--option evaluate: dev scores, and dev and test predictions, of a saved model."""
    config, model, tokenizer, run = open_checkpoint(config)
    folder = Path(config.output_dir)
    wanted = [(name, split) for name in config.eval_tasks for split in ("dev", "test")]
    files, source = input_files(config, wanted, needs_test=False)
    check_outputs(folder, config.files, wanted, files.values(), trains=False)
    tasks = task_table(config.own)
    data = load_data(files, tasks, tokenizer, config.max_length, {"dev": config.max_eval_samples})
    dev = [data[name, "dev"] for name in config.eval_tasks]
    begin = time.perf_counter()
    result = evaluate(model, dev, config.batch_size, run["trained_tasks"])
    speed = sum(map(len, dev)) / (time.perf_counter() - begin)
    write_all_predictions(config.files, folder, "dev", dev, result.predictions)
    write_dev_rows(folder, dev, result)
    results = {"dev": result.scores, "dev_mean": result.dev_mean, "train_seconds": 0.0}
    results |= {"examples_per_second": round(speed, 2), "trained_tasks": run["trained_tasks"]}
    results |= {"data": source, "checkpoint": ", ".join(config.checkpoint or ())}
    tests = [data[name, "test"] for name in config.eval_tasks if (name, "test") in data]
    finish(config, model, tests, results)


def average_checkpoints(config: TrainConfig) -> None:
    """--option average: one model whose weights are the means of several, and its scores."""
    folder = Path(config.output_dir)
    if not config.overwrite_output_dir:
        prepare_folder(folder, overwrite=False)
    model, tokenizer, run = average.averaged(config.checkpoint or (), load_model)
    names = config.eval_tasks or tuple(run["trained_tasks"])
    wanted = [(name, split) for name in names for split in ("dev", "test")]
    files, _ = input_files(config, wanted, needs_test=False)
    check_outputs(folder, config.files, wanted, files.values(), trains=True)
    prepare_folder(folder, config.overwrite_output_dir)  # nothing can be wrong any more
    save_model(folder / "best", {"student": model}, "student", tokenizer, run | {"dev": {}})
    saved = (str(folder),)
    evaluate_checkpoint(replace(config, option="evaluate", checkpoint=saved, overwrite_output_dir=False))
    dev = read_json(folder / "results.json")["dev"]  # for the card
    save_model(folder / "best", {"student": model}, "student", tokenizer, run | {"dev": dev})


def predict_with_checkpoint(config: TrainConfig) -> int | None:
    """--option predict: a saved model's predictions for unlabelled files, or answers to raw text."""
    if config.task:
        return ask.answer_all(config, open_checkpoint)
    config, model, tokenizer, _ = open_checkpoint(config)
    folder = Path(config.output_dir)
    wanted = [(name, "test") for name in config.eval_tasks]
    files, _ = input_files(config, wanted, needs_test=True)
    check_outputs(folder, config.files, wanted, files.values(), trains=False)
    tests = list(load_data(files, task_table(config.own), tokenizer, config.max_length, {}).values())
    predictions = {test.task.name: predict(model, test, config.batch_size) for test in tests}
    paths = write_all_predictions(config.files, folder, "test", tests, predictions)
    for test, path in zip(tests, paths, strict=True):
        print(f"{test.task.name}: {len(test):,} predictions in {path}")
    return None


PROGRAMS = {
    "finetune": fit,
    "pretrain": fit,
    "evaluate": evaluate_checkpoint,
    "predict": predict_with_checkpoint,
    "submit": submit.submit,
    "adapt": adapt.adapt,
    "average": average_checkpoints,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Returns the exit status: 0, 1 if a text had no answer, or that of `exit_status`.
    """
    to_stderr = logging.StreamHandler()
    to_stderr.setFormatter(OneLine())
    logging.basicConfig(handlers=[to_stderr])
    return exit_status(NAME, lambda: run_program(arguments))


def run_program(arguments: Sequence[str] | None) -> int:
    """Parse the command line and run the program of its --option. Returns the exit status."""
    config, given = parse_arguments(arguments)
    try:
        # answers to texts go to no folder
        lock = contextlib.nullcontext() if config.task else checkpoint.locked(Path(config.output_dir))
        with checkpoint.signals_raise(), parallel.process_group(), lock:
            if config.resume:
                config = checkpoint.resumed_config(config, given, checkpoint.started_with(config.output_dir))
            warn_of_unused_flags(config, given)
            if config.deterministic:
                make_deterministic()
            return PROGRAMS[config.option](config) or 0
    except checkpoint.Interrupted as interruption:
        command = f"python multitask_classifier.py --resume --output_dir {config.output_dir}"
        if os.environ.get("RANK", "0") == "0":  # one of several processes says so
            print(f"{NAME}: interrupted, and saved; go on with: {command}", file=sys.stderr)
            if not config.no_report:
                make_report(Path(config.output_dir))
        return 128 + int(interruption.args[0])


if __name__ == "__main__":
    sys.exit(main())
