"""Fine-tune one BERT on sentiment, paraphrase and similarity at once, with SMART regularisation.

    python multitask_classifier.py --option finetune --use_smart

Read from top to bottom: the model, its loss, the training loop, the main program.

    Batch ─ BertModel.embed ─> embeddings (B,T,H) ─ [+ δ] ─ BertModel.encode ─> hidden (B,T,H) ─ pool ─> (B,H)
          ─ head ─> logits (B,C) ─ training_loss ─> {task, smart, bregman, ..., total} ─ Learner.step

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

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

import checkpoint
import mysmartloss
import raw_text
import submit
from base_bert import BertConfig, check_fit, load_tokenizer, parse_tokenizer, seeded_linear
from bert import BertModel
from checkpoint import ENDINGS, Checkpoint, has_checkpoint, load_checkpoint, save_checkpoint
from config import UNLABELLED, TrainConfig, describe_settings, parse_arguments, warn_of_unused_flags
from datasets import Batch, Loader, Task, TokenizedDataset, apart
from evaluation import answers, checked_rows, evaluate, predict, untrained_scores
from losses import TERMS, Passes
from model_card import model_card
from optimizer import warmup_decay
from progress import Progress
from run_files import (
    Data,
    check_outputs,
    find_files,
    load_data,
    locked_folder,
    make_report,
    prepare_folder,
    restore_dev_files,
    write_all_predictions,
    write_dev_rows,
)
from support import parallel
from support.devices import (
    COMPUTE_TYPES,
    choose_precision,
    make_deterministic,
    peak_memory,
    pick_device,
    start_watch,
)
from support.dropout import Dropout, keep_masks
from support.errors import UserError, exit_status, one_line
from support.files import write_text
from support.hub import hub_folder
from support.reporting import RunLog, SilentLog
from support.screen import scores_table
from tasks import TASKS
from training import (
    Learner,
    check_compiled,
    check_max_tokens,
    check_memory,
    describe,
    plan_steps,
    say_first_steps,
    say_interval,
    warn_of_nothing_learned,
)

log = logging.getLogger("smart_bert")
NAME = "multitask_classifier.py"
SAVE_SECONDS = 120.0  # between checkpoints, unless --save_steps

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
    """A BERT encoder, a sentence vector, dropout, and one linear head per task.

    precision: compute type of the encoder's layers, `fp32`, `bf16` or `fp16` by autocast. Weights,
    embeddings, sentence vector and heads are fp32 in any case: a score of 4 in bf16 has steps of 1/32.
    tasks: names of the tasks that get a head, by default all of TASKS. seed: of the heads' initial weights.
    similarity: `head`, or `cosine` for 5 times the cosine of the texts' mean vectors where a task allows it.
    """

    def __init__(
        self,
        bert: BertModel,
        pooling: str = "mean",
        hidden_dropout_prob: float = 0.1,
        precision: str = "fp32",
        tasks: Iterable[str] | None = None,
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
        for name in TASKS if tasks is None else tasks:
            # the first weights depend on the seed and the name alone, not on which other heads there are
            task = TASKS[name]
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
        narrow = torch.autocast(embeddings.device.type, self.compute_type) if self.compute_type else None
        with narrow or contextlib.nullcontext():
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
            return *apart(input_ids, attention_mask, token_type_ids), None
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
        rows = checked_rows(TASKS[task], texts)
        was_training = self.training
        try:
            return answers(self, self.tokenizer, TASKS[task], self.max_length, batch_size, rows)[0]
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
        if run["trained_tasks"] != list(settings.tasks):
            raise ValueError("its trained_tasks are not its --tasks")
        where = f"{folder}/config.json"
        bert = BertModel.without_weights(BertConfig.from_dict(saved.records["config"], where), where)
        bert.load_published(saved.tensors["model"], f"{folder}/model.safetensors")
        heads = {name.rpartition(".")[0] for name in saved.tensors["heads"]}
        if settings.similarity == "cosine":  # a head without weights
            heads |= {name for name in (*settings.tasks, *settings.eval_tasks) if TASKS[name].cosine_scale}
        if unknown := heads - set(TASKS):
            raise ValueError(f"it has a head for {', '.join(sorted(unknown))}, a task that tasks.py lacks")
        if lacking := set(settings.tasks) - heads:
            raise ValueError(f"it has no head for {', '.join(sorted(lacking))}, which it was trained on")
        model = MultitaskBERT(
            bert,
            settings.pooling,
            settings.hidden_dropout_prob,
            tasks=sorted(heads),
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
    bregman: mysmartloss.BregmanProximal | None = None,
    measure: bool = False,
) -> dict[str, Tensor]:
    """The loss of one batch by its parts, scalars: `task` (L), each term that is on, the weighted `total`.

    With SMART the total is F = L + λ_s R_s + μ D_Breg, of a batch without labels λ_s R_s + μ D_Breg. With
    `measure`, what the ascent achieved is there, too (one more forward pass; see `SMARTLoss.evidence`).
    """
    generator = mysmartloss.generator_state(batch.input_ids.device)
    weights = config.weights(UNLABELLED if batch.labels is None else task.name)
    with keep_masks(enabled=bool(weights)):
        ids, mask, types = model.sequences(task.name, *batch.inputs)
        embeddings = model.bert.embed(ids, types)  # (B,T,H), shared by all passes
        # every call reuses the dropout masks of the first
        encode = mysmartloss.DropoutReplay(lambda x: model.logits(task.name, x, mask))
        logits = encode(embeddings)  # (B,C), the clean pass
        passes = Passes(
            config, model, task, batch, embeddings, mask, logits, encode, generator, bregman, measure, {}
        )
        terms = {name: TERMS[name].function(passes) for name in weights}
    total = sum(weight * terms[name] for name, weight in weights.items())
    if batch.labels is None:
        return {**terms, **passes.measured, "total": cast(Tensor, total)}
    loss = task.loss(logits, batch.labels)
    total = config.task_weight(task.name) * loss + total
    return {"task": loss, **terms, **passes.measured, "total": total}


class TrainingLoss:
    """`training_loss` of one model with its settings and its teacher, as `Learner` calls it."""

    def __init__(
        self, model: MultitaskBERT, config: TrainConfig, bregman: mysmartloss.BregmanProximal | None = None
    ) -> None:
        self.model = model
        self.config = config
        self.bregman = bregman

    def __call__(self, task: Task, batch: Batch, measure: bool = False) -> dict[str, Tensor]:
        return training_loss(self.model, task, batch, self.config, self.bregman, measure)


# ----------------------------------------------------------------------------------------- training


class Run(NamedTuple):
    """What belongs to one run. record: what every checkpoint says of it."""

    config: TrainConfig
    folder: Path
    tokenizer: Tokenizer
    record: dict
    progress: Progress
    log: RunLog | SilentLog


def score_dev(models: dict[str, MultitaskBERT], dev: list[TokenizedDataset], run: Run, when: str) -> None:
    """Score student and teacher on dev; save the one that --keep allows if it is the best so far."""
    config = run.config
    progress = run.progress
    results = {role: evaluate(model, dev, config.batch_size, config.tasks) for role, model in models.items()}
    for role, result in results.items():
        models[role].train()
        for task, scores in result.scores.items():
            run.log.write(f"{'dev' if role == 'student' else 'teacher'}/{task}", progress.step, scores)
    kept = progress.take_scores(results, config.keep, when)
    if kept is None:
        return
    save_best(models, run)
    write_all_predictions(config, run.folder, "dev", dev, results[kept].predictions)
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
    shares = parallel.size() * config.gradient_accumulation_steps  # parts of each batch
    rows = config.batch_size * shares
    # a task's batches depend on the seed and its name alone, not on which other tasks there are
    cap = config.max_tokens and config.max_tokens * shares
    loaders = {name: Loader(datasets[name], rows, (config.seed, *name.encode()), cap) for name in datasets}
    plan = plan_steps(config, loaders)
    total = len(plan.steps)
    models = {"student": model.train()}
    bregman = None
    if config.has_teacher:
        bregman = mysmartloss.BregmanProximal(model)
        models["teacher"] = cast(MultitaskBERT, bregman.teacher)
    learner = Learner(TrainingLoss(model, config, bregman), config)
    record = checkpoint.run_record(config, data, source) | {"total_steps": total}
    describe(model, tokenizer, loaders, plan, config)
    progress = Progress()
    if config.resume:
        progress = checkpoint.load_last(folder, models, learner.optimizer, learner.scaler, record)
    run_log = SilentLog() if parallel.rank() else RunLog(folder, progress.log_bytes, progress.step)
    run = Run(config, folder, tokenizer, record, progress, run_log)
    dev = [data[task, "dev"] for task in config.eval_tasks]
    checkpoint.restore_best(folder, progress, lambda: score_dev(models, dev, run, f"step {progress.step}"))
    saved_at = time.monotonic()
    silent = parallel.bar_disabled()
    left = [] if progress.out_of_patience(config.patience) else plan.steps[progress.step :]
    steps = tqdm(left, "training", total, initial=progress.step, unit="step", disable=silent)
    own_parts = range(parallel.rank(), shares, parallel.size())
    with (
        contextlib.closing(run_log),
        checkpoint.StopSignal() as stop,
        parallel.lost_worker_advice(str(folder)),
    ):
        for tasks in steps:
            # one step, on one batch of one task; of every task where --schedule is joint
            stop_watch = start_watch(learner.device)
            names = [name for name, _ in tasks]
            wholes = [loaders[name][k] for name, k in tasks]
            batches = [[whole.share(i, shares).to(learner.device) for i in own_parts] for whole in wholes]
            parts = [(datasets[name].task, batch) for name, batch in zip(names, batches, strict=True)]
            lr = config.lr * warmup_decay(progress.step, plan.warmup, total)
            beta = config.beta(progress.step, total)
            measure = any(map(progress.interval.lacks, names))
            losses = learner.joint_step(parts, lr, beta, measure)
            progress.add(names, losses, wholes, stop_watch())

            # what is due after it; all processes stop and save at the same step
            epoch = f"epoch {-(-progress.step // plan.per_epoch)}/{config.epochs}"
            ends_epoch = progress.step % plan.per_epoch == 0
            logs = ends_epoch or progress.step % config.logging_steps == 0
            scores = progress.step % (config.eval_steps or plan.per_epoch) == 0 or progress.step == total
            if config.save_steps:
                due = progress.step % config.save_steps == 0
            else:
                due = time.monotonic() - saved_at > SAVE_SECONDS
            signal, saves = parallel.largest(stop.received or 0, due or ends_epoch or scores)
            saves = saves or signal

            # look at its numbers, which waits for a GPU
            if learner.device.type == "cpu" or logs or saves or progress.step in (1, 20):
                progress.check(datasets, config.skip_nonfinite, learner.scaler)
                loss = losses[0]["task" if "task" in losses[0] else "total"]
                steps.set_postfix_str(progress.bar_text(names[0], loss, epoch), refresh=False)
            say_first_steps(progress.first_losses, progress.step, progress.seconds, total, config)
            if logs:
                records = progress.interval.report(lr)
                say_interval(run_log, records, progress.step, progress.seconds, total, config, ends_epoch)
                warn_of_nothing_learned(records, datasets, progress.step, plan)
            if scores:
                when = epoch if ends_epoch else f"step {progress.step}"
                score_dev(models, dev, run, when)
            if saves:
                progress.log_bytes = run_log.size()
                with progress.saving():
                    checkpoint.save_last(folder, models, learner.optimizer, learner.scaler, record, progress)
                saved_at = time.monotonic()
            if signal:
                raise checkpoint.Interrupted(signal)
            if progress.out_of_patience(config.patience):
                tqdm.write(f"early stopping: {progress.stale} scorings without a better mean on dev")
                break
    parallel.wait_for_all()  # until `best` is written
    return progress.best | progress.cost() | peak_memory(learner.device)


# ------------------------------------------------------------------------------------------ program


def finish(config: TrainConfig, model: MultitaskBERT, tests: list[TokenizedDataset], results: dict) -> None:
    """Predict the test files, write `results.json`, print the table of dev scores."""
    folder = Path(config.output_dir)
    predictions = {test.task.name: predict(model, test, config.batch_size) for test in tests}
    write_all_predictions(config, folder, "test", tests, predictions)
    if parallel.rank() == 0:
        text = json.dumps(results | {"config": config.to_dict()}, indent=2)
        write_text(folder / "results.json", text + "\n")
    which = (
        f" ({results.get('kept', 'student')} after step {results['best_step']})"
        if "best_step" in results
        else ""
    )
    untrained = results.get("untrained_cosine", {})
    print(f"\n{scores_table(results['dev'], untrained)}")
    print(f"mean {results['dev_mean']:.3f}{which}; everything is in {folder}")
    for task, score in untrained.items():
        reached = results["dev"][task][TASKS[task].main_metric]
        if reached < score:
            print(f"{task}: {reached:.3f} is below the {score:.3f} of the untrained encoder: train longer")
    if results["data"] == "sample":
        print("data: the project's own sample, which is too small to learn much from")
    make_report(config)


def fit(config: TrainConfig) -> None:
    """--option finetune and pretrain: train, keep the best epoch, test it."""
    device = pick_device(config.use_gpu)
    folder = Path(config.output_dir)
    evaluated = [(name, split) for name in config.eval_tasks for split in ("dev", "test")]
    files, source = find_files(config, [*((name, "train") for name in config.tasks), *evaluated])
    check_outputs(config, files)
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
    data = load_data(config, files, tokenizer)
    heads = (*config.tasks, *config.eval_tasks)
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
        check_compiled(model.train(), config)
    check_max_tokens(data, config)
    check_memory(model, data, config)
    if not config.resume and parallel.rank() == 0:
        prepare_folder(folder, config.overwrite_output_dir)
    with_cosine = [name for name in config.eval_tasks if name in config.tasks and TASKS[name].from_cosines]
    pairs = [(data[name, "train"], data[name, "dev"]) for name in with_cosine]
    untrained = untrained_scores(model, pairs, config.batch_size)
    # dropout starts from here, whatever was drawn before; each process has other rows and so other masks
    torch.manual_seed(config.seed + parallel.rank())
    trained = train(model, data, config, folder, tokenizer, source)
    best, _, _ = load_model(folder / "best")
    best.compute_type = model.compute_type
    restore_dev_files(config, best.to(device), data)
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
    model, tokenizer, run = load_model(config.checkpoint)
    names = config.eval_tasks or tuple(run["trained_tasks"])
    if lacking := set(names) - set(model.heads):
        flag = "--task" if config.task else "--eval_tasks"
        raise UserError(
            f"{flag} {','.join(names)}: the model of {config.checkpoint} has no head for"
            f" {', '.join(sorted(lacking))}; it has heads for {', '.join(model.heads)}"
        )
    if untrained := set(names) - set(run["trained_tasks"]):
        listed = ", ".join(sorted(untrained))
        log.warning("%s was not trained on %s: what it predicts there is chance", config.checkpoint, listed)
    precision = choose_precision(device, config.precision)
    model.compute_type = COMPUTE_TYPES[precision.name]
    trained_with = {name: run["config"][name] for name in ("max_length", "pooling")}
    config = replace(config, eval_tasks=names, precision=precision.name, **trained_with)
    return config, model.to(device), tokenizer, run


def evaluate_checkpoint(config: TrainConfig) -> None:
    """--option evaluate: dev scores, and dev and test predictions, of a saved model."""
    check_outputs(config)
    config, model, tokenizer, run = open_checkpoint(config)
    folder = Path(config.output_dir)
    wanted = [(name, split) for name in config.eval_tasks for split in ("dev", "test")]
    files, source = find_files(config, wanted)
    check_outputs(config, files)
    data = load_data(config, files, tokenizer)
    dev = [data[name, "dev"] for name in config.eval_tasks]
    begin = time.perf_counter()
    result = evaluate(model, dev, config.batch_size, run["trained_tasks"])
    speed = sum(map(len, dev)) / (time.perf_counter() - begin)
    write_all_predictions(config, folder, "dev", dev, result.predictions)
    write_dev_rows(folder, dev, result)
    results = {"dev": result.scores, "dev_mean": result.dev_mean, "train_seconds": 0.0}
    results |= {"examples_per_second": round(speed, 2), "trained_tasks": run["trained_tasks"]}
    results |= {"data": source, "checkpoint": config.checkpoint}
    tests = [data[name, "test"] for name in config.eval_tasks if (name, "test") in data]
    finish(config, model, tests, results)


def predict_with_checkpoint(config: TrainConfig) -> int | None:
    """--option predict: a saved model's predictions for unlabelled files, or answers to raw text."""
    if config.task:
        return raw_text.answer_all(config, open_checkpoint)
    check_outputs(config)
    config, model, tokenizer, _ = open_checkpoint(config)
    files, _ = find_files(config, [(name, "test") for name in config.eval_tasks])
    check_outputs(config, files)
    tests = list(load_data(config, files, tokenizer).values())
    predictions = {test.task.name: predict(model, test, config.batch_size) for test in tests}
    paths = write_all_predictions(config, Path(config.output_dir), "test", tests, predictions)
    for test, path in zip(tests, paths, strict=True):
        print(f"{test.task.name}: {len(test):,} predictions in {path}")
    return None


PROGRAMS = {
    "finetune": fit,
    "pretrain": fit,
    "evaluate": evaluate_checkpoint,
    "predict": predict_with_checkpoint,
    "submit": submit.submit,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Returns the exit status: 0, 1 if a text had no answer, or that of `exit_status`.
    """
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    # a path or a text that the terminal's encoding lacks must not end a run
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    return exit_status(NAME, lambda: run_program(arguments))


def run_program(arguments: Sequence[str] | None) -> int:
    """Parse the command line and run the program of its --option. Returns the exit status."""
    config, given = parse_arguments(arguments)
    try:
        with checkpoint.signals_raise(), parallel.process_group(), locked_folder(config):
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
            make_report(config)
        return 128 + int(interruption.args[0])


if __name__ == "__main__":
    sys.exit(main())
