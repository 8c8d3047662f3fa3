"""Fine-tune one BERT on sentiment, paraphrase and similarity at once, with SMART regularisation: loss,
training, main program.

    python multitask_classifier.py --option finetune --use_smart

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

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

import mysmartloss
import resume
from base_bert import BertConfig, load_tokenizer
from bert import BertModel
from config import NORMS, TrainConfig, parse_arguments
from datasets import Batch, Loader, Task, TokenizedDataset
from evaluation import evaluate, predict
from optimizer import warmup_decay
from resume import (
    Interrupted,
    Progress,
    StopSignal,
    fingerprint,
    load_last,
    resumed_config,
    started_with,
    versions,
)
from run_files import Data, check_outputs, find_files, load_data, prepare_folder, write_all_predictions
from support import parallel
from support.checkpoint import Checkpoint, has_checkpoint, load_checkpoint, save_checkpoint
from support.devices import COMPUTE_TYPES, default_precision, pick_device
from support.dropout import Dropout, keep_masks
from support.errors import UserError, first_line, one_line
from support.files import write_text
from support.reporting import RunLog, SilentLog, scores_table
from tasks import TASKS
from training import Learner, describe, plan_steps, warn_of_terms_without_effect

log = logging.getLogger("smart_bert")
SAVE_SECONDS = 120.0  # between checkpoints, unless --save_steps

# -------------------------------------------------------------------------------------------- model


class MultitaskBERT(nn.Module):
    """A BERT encoder, a sentence vector, dropout, and one linear head per task.

    tasks: names of the tasks that get a head, by default all of TASKS. seed: of the heads' initial weights.

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
        tasks: Iterable[str] | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.bert = bert
        self.pooling = pooling
        self.compute_type = COMPUTE_TYPES[precision]
        self.dropout = Dropout(hidden_dropout_prob)
        names = dict.fromkeys(TASKS if tasks is None else tasks)
        self.heads = nn.ModuleDict({name: new_head(TASKS[name], bert.config, seed) for name in names})

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


def new_head(task: Task, config: BertConfig, seed: int) -> nn.Linear:
    """The task's linear head, H -> C. Its initial weights depend on the seed and the task's name alone, so a
    run's numbers do not change when other tasks are added."""
    head = nn.Linear(config.hidden_size, task.num_outputs)
    generator = torch.Generator().manual_seed(
        int(np.random.default_rng((seed, *task.name.encode())).integers(2**63))
    )
    shape = (task.num_outputs, config.hidden_size)
    with torch.no_grad():
        head.weight.copy_(torch.randn(shape, generator=generator, device="cpu") * config.initializer_range)
        head.bias.fill_(task.first_output)
    return head


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
    folder: Path, candidates: dict[str, MultitaskBERT], kept: str, tokenizer: Tokenizer, run: dict
) -> None:
    """A self-contained checkpoint. As a folder it is also a model that `transformers` and
    --model_name_or_path can read.

    Of student and teacher the one that is kept is the model; the other's weights are saved beside it.
    """
    model = candidates[kept]
    tensors = {"model": model.bert.published_weights(), "heads": model.heads.state_dict()}
    tensors |= {role: candidate.state_dict() for role, candidate in candidates.items() if role != kept}
    records = {"config": model.bert.config.to_dict(), "tokenizer": json.loads(tokenizer.to_str()), "run": run}
    save_checkpoint(folder, Checkpoint(tensors, records))


def load_model(folder: str | Path) -> tuple[MultitaskBERT, Tokenizer, dict]:
    """Model, tokenizer and the run's record from a checkpoint folder, or a run folder that has one under
    `best`. Raises UserError."""
    folder = Path(folder)
    folder = folder / "best" if has_checkpoint(folder / "best") else folder
    saved = load_checkpoint(folder)
    try:
        run = saved.records["run"]
        settings = TrainConfig.from_dict(run["config"])
        if run["trained_tasks"] != list(settings.tasks):
            raise ValueError("its trained_tasks are not its --tasks")
        # no memory is taken for what the file claims before its weights are seen to fit
        with torch.device("meta"):
            bert = BertModel(BertConfig.from_dict(saved.records["config"], f"{folder}/config.json"))
        bert.load_published(saved.tensors["model"], f"{folder}/model.safetensors")
        heads = {name.rpartition(".")[0] for name in saved.tensors["heads"]}
        if unknown := heads - set(TASKS):
            raise ValueError(f"it has a head for {', '.join(sorted(unknown))}, a task that tasks.py lacks")
        if lacking := set(settings.tasks) - heads:
            raise ValueError(f"it has no head for {', '.join(sorted(lacking))}, which it was trained on")
        model = MultitaskBERT(bert, settings.pooling, settings.hidden_dropout_prob, tasks=sorted(heads))
        model.heads.load_state_dict(saved.tensors["heads"])
        tokenizer = Tokenizer.from_str(json.dumps(saved.records["tokenizer"]))
        check_fit(tokenizer, bert, settings.max_length or 0, str(folder))
        tokenizer.enable_truncation(settings.max_length)  # fails where that leaves no room for a word
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
    """The loss of one batch by its parts, scalars: `task` (L), each term that is on, and `total` = L + λ_s
    R_s + μ D_Breg.

    With `measure`, what the ascent achieved, too (one more forward pass; see `SMARTLoss.evidence`).
    """
    # perturbed passes and the teacher's are to have the dropout masks of the model's own: replayed by a GPU,
    # kept on a CPU
    generator, masks = mysmartloss.generator_state(batch.input_ids.device), []
    with keep_masks(masks):
        embeddings = model.bert.embed(batch.input_ids, batch.token_type_ids)  # (B,T,H), shared by all passes
    of_embeddings = len(masks)

    def logits_at(perturbed: Tensor) -> Tensor:
        with keep_masks(masks, of_embeddings):
            return model.logits(task.name, perturbed, batch.attention_mask)

    def teacher_logits(teacher: MultitaskBERT) -> Tensor:
        with keep_masks(masks):
            return teacher(task.name, *batch.inputs)

    encode = mysmartloss.DropoutReplay(logits_at)
    logits = encode(embeddings)  # (B,C)
    losses, weights = {"task": task.loss(logits, batch.labels)}, config.weights(task.name)
    if "smart" in weights:
        smart = mysmartloss.SMARTLoss(
            encode,
            task.divergence,
            norm_fn=NORMS[config.smart_norm],
            num_steps=config.smart_steps,
            step_size=config.smart_step_size,
            epsilon=config.smart_epsilon,
            noise_var=config.smart_noise_var,
            noise_fn=batch.noise,
        )
        delta = smart.perturbation(embeddings, logits, batch.attention_mask)
        losses["smart"] = smart.at(delta, embeddings, logits)
        if measure:
            losses |= smart.evidence(delta, embeddings, logits, losses["smart"])
    if "bregman" in weights:
        losses["bregman"] = bregman(logits, teacher_logits, task.divergence, generator)
    if "rdrop" in weights:
        losses["rdrop"] = task.divergence(model(task.name, *batch.inputs), logits)
    losses["total"] = losses["task"] + sum(weight * losses[term] for term, weight in weights.items())
    return losses


class TrainingLoss(nn.Module):
    """`training_loss` as a module: what `DistributedDataParallel` has to wrap, so that gradients within
    (SMART's ascent) don't reach it."""

    def __init__(
        self, model: MultitaskBERT, config: TrainConfig, bregman: mysmartloss.BregmanProximal | None = None
    ):
        super().__init__()
        self.model, self.config, self.bregman = model, config, bregman

    def forward(self, task: Task, batch: Batch, measure: bool = False) -> dict[str, Tensor]:
        return training_loss(self.model, task, batch, self.config, self.bregman, measure)


# ----------------------------------------------------------------------------------------- training


def score_epoch(
    models: dict[str, MultitaskBERT],
    data: Data,
    config: TrainConfig,
    folder: Path,
    diary: RunLog,
    now: Progress,
    tokenizer: Tokenizer,
    run: dict,
) -> None:
    """Score student and teacher on dev; if the better of those that --keep allows is the best so far, save it
    and its predictions."""
    dev = [data[task, "dev"] for task in config.eval_tasks]
    evaluations = {
        role: evaluate(candidate, dev, config.batch_size, config.tasks) for role, candidate in models.items()
    }
    for role, result in evaluations.items():
        models[role].train()
        for task, scores in result.scores.items():
            diary.write(f"{'dev' if role == 'student' else 'teacher'}/{task}", now.step, scores)
    kept = max(
        evaluations if config.keep == "best" else [config.keep], key=lambda role: evaluations[role].dev_mean
    )
    best = evaluations[kept]
    if now.best is None or best.dev_mean > now.best["dev_mean"]:
        now.best = {"best_step": now.step, "dev": best.scores, "dev_mean": best.dev_mean}
        if len(models) > 1:
            now.best |= {"kept": kept} | {
                f"dev_{role}": result.scores for role, result in evaluations.items()
            }
        if parallel.rank() == 0:
            with now.saving():
                save_model(folder / "best", models, kept, tokenizer, run | now.best)
        write_all_predictions(config, folder, "dev", dev, best.predictions)


def train(
    model: MultitaskBERT, data: Data, config: TrainConfig, folder: Path, tokenizer: Tokenizer, source: str
) -> dict:
    """Train, score after each epoch, keep the best epoch under `folder`/best. Returns what `results.json`
    says of the training.

    `folder`/last holds everything to go on from (with `config.resume` it is gone on from). Raises Interrupted
    after a signal.
    """
    datasets, rows = {name: data[name, "train"] for name in config.tasks}, config.batch_size * parallel.size()
    loaders = {
        name: Loader(dataset, rows, (config.seed, *name.encode())) for name, dataset in datasets.items()
    }
    plan = plan_steps(config, loaders)
    models, bregman = {"student": model.train()}, None
    if any("bregman" in config.weights(name) for name in config.tasks):
        bregman = mysmartloss.BregmanProximal(model)
        models["teacher"] = bregman.teacher
    learner = Learner(TrainingLoss(model, config, bregman), config)
    run = {
        "config": config.to_dict(),
        "trained_tasks": list(config.tasks),
        "data": source,
        "processes": parallel.size(),
        "versions": versions(),
        "content": fingerprint(data),
    }
    describe(model, tokenizer, loaders, plan, config)
    now = load_last(folder, models, learner, run) if config.resume else Progress()
    diary, saved_at = (
        SilentLog() if parallel.rank() else RunLog(folder, now.log_bytes, now.step),
        time.monotonic(),
    )

    def save_last() -> None:
        with now.saving():
            now.log_bytes = diary.size()
            resume.save_last(folder, models, learner, run, now)

    ahead = plan.steps[now.step :]
    bar = tqdm(
        ahead,
        desc="training",
        unit="step",
        initial=now.step,
        total=len(plan.steps),
        disable=parallel.bar_disabled(),
    )
    with contextlib.closing(diary), StopSignal() as stop, parallel.lost_worker_advice(folder):
        for name, k in bar:
            begin = time.perf_counter()
            batch = loaders[name][k].share(parallel.rank(), parallel.size()).to(learner.device)
            lr = config.lr * warmup_decay(now.step, plan.warmup, len(plan.steps))
            losses = learner.step(
                TASKS[name],
                batch,
                lr,
                config.beta(now.step, len(plan.steps)),
                measure=now.interval.lacks(name),
            )
            now.add(name, losses, batch, time.perf_counter() - begin)
            ends_epoch = now.step % plan.per_epoch == 0
            logs = ends_epoch or now.step % config.logging_steps == 0
            due = (
                now.step % config.save_steps == 0
                if config.save_steps
                else time.monotonic() - saved_at > SAVE_SECONDS
            )
            signal, due = parallel.largest(
                stop.received or 0, due
            )  # all processes stop and save at the same step
            saves = due or signal or ends_epoch
            if learner.device.type == "cpu" or logs or saves or now.step == 20:
                now.check(datasets, config.skip_nonfinite, learner.scaler)
            if now.step == 20:
                tqdm.write(
                    f"about {now.seconds / 20 * len(plan.steps) / 60:.1f} minutes of training at"
                    " the pace of the first 20 steps"
                )
                warn_of_terms_without_effect(now.first_losses, config)
            if logs:
                now.interval.report(diary, now.step, lr)
            if ends_epoch:
                score_epoch(models, data, config, folder, diary, now, tokenizer, run)
            if saves:
                save_last()
                saved_at = time.monotonic()
            if signal:
                raise Interrupted(signal)
    parallel.wait_for_all()  # until `best` is written
    speed = {
        "examples_per_second": round(now.examples / max(now.seconds, 1e-9), 2),
        "save_seconds": round(now.save_seconds, 3),
    }
    if now.best is None:
        raise UserError(f"{folder / 'last'}: at the end of its run, but it has no best epoch")
    return {**now.best, "train_seconds": round(now.seconds, 3), **speed}


# ------------------------------------------------------------------------------------------ program


def finish(
    config: TrainConfig, folder: Path, model: MultitaskBERT, tests: list[TokenizedDataset], results: dict
) -> None:
    """Predict the test files, write `results.json`, print the table of dev scores."""
    write_all_predictions(
        config,
        folder,
        "test",
        tests,
        {test.task.name: predict(model, test, config.batch_size) for test in tests},
    )
    if parallel.rank() == 0:
        write_text(
            folder / "results.json", json.dumps(results | {"config": config.to_dict()}, indent=2) + "\n"
        )
    print(f"\n{scores_table(results['dev'])}\nmean {results['dev_mean']:.3f}; everything is in {folder}")
    if results["data"] == "sample":
        print(
            "data: sample (the project's own sentences, too few to learn much from), not the course's files"
        )


def fit(config: TrainConfig) -> None:
    """--option finetune and pretrain: train, keep the best epoch, test it."""
    device = pick_device(config.use_gpu)
    folder = Path(config.output_dir)
    check_outputs(config)
    if not config.resume and not config.overwrite_output_dir and parallel.rank() == 0:
        prepare_folder(folder, overwrite=False)  # now, before minutes are spent on reading
    evaluated = [(name, split) for name in config.eval_tasks for split in ("dev", "test")]
    files, source = find_files(config, [*((name, "train") for name in config.tasks), *evaluated])
    tokenizer, bert = load_pretrained(config)
    config = replace(config, max_length=config.max_length or min(256, bert.config.max_position_embeddings))
    config = replace(config, precision=config.precision or default_precision(device))
    print("settings:", " ".join(f"{name}={value}" for name, value in config.to_dict().items()))
    bert.requires_grad_(config.option == "finetune")
    data = load_data(config, files, tokenizer)
    heads = (*config.tasks, *config.eval_tasks)
    model = MultitaskBERT(
        bert, config.pooling, config.hidden_dropout_prob, config.precision, heads, config.seed
    ).to(device)
    if not config.resume and parallel.rank() == 0:
        prepare_folder(folder, config.overwrite_output_dir)
    # dropout starts from here whatever was drawn before; each process has other rows and so other masks
    torch.manual_seed(config.seed + parallel.rank())
    trained = train(model, data, config, folder, tokenizer, source)
    best, _, _ = load_model(folder / "best")
    tests = [data[name, "test"] for name in config.eval_tasks]
    finish(
        config,
        folder,
        best.to(device),
        tests,
        {**trained, "trained_tasks": list(config.tasks), "data": source},
    )


def open_checkpoint(config: TrainConfig) -> tuple[TrainConfig, MultitaskBERT, Tokenizer, dict]:
    """The model of --checkpoint on the best device, and the settings with those that it was trained with.
    Raises UserError."""
    device = pick_device(config.use_gpu)
    check_outputs(config)
    if os.path.lexists(Path(config.output_dir) / "metrics.jsonl"):
        raise UserError(
            f"--output_dir {config.output_dir}: holds a training run, whose results would be"
            " replaced; name another folder"
        )
    model, tokenizer, run = load_model(config.checkpoint)
    names = config.eval_tasks or tuple(run["trained_tasks"])
    if lacking := set(names) - set(model.heads):
        raise UserError(
            f"--eval_tasks {','.join(names)}: the model of {config.checkpoint} has no head for"
            f" {', '.join(sorted(lacking))}; it has heads for {', '.join(model.heads)}"
        )
    if untrained := set(names) - set(run["trained_tasks"]):
        log.warning(
            "%s was not trained on %s: what it predicts there is chance",
            config.checkpoint,
            ", ".join(sorted(untrained)),
        )
    precision = config.precision or default_precision(device)
    model.compute_type = COMPUTE_TYPES[precision]
    trained_with = {name: run["config"][name] for name in ("max_length", "pooling")}
    config = replace(config, eval_tasks=names, precision=precision, **trained_with)
    return config, model.to(device), tokenizer, run


def evaluate_checkpoint(config: TrainConfig) -> None:
    """--option evaluate: dev scores and dev and test predictions of a saved model."""
    config, model, tokenizer, run = open_checkpoint(config)
    names, folder = config.eval_tasks, Path(config.output_dir)
    files, source = find_files(config, [(name, split) for name in names for split in ("dev", "test")])
    data = load_data(config, files, tokenizer)
    dev = [data[name, "dev"] for name in names]
    begin = time.perf_counter()
    result = evaluate(model, dev, config.batch_size, run["trained_tasks"])
    speed = sum(map(len, dev)) / (time.perf_counter() - begin)
    write_all_predictions(config, folder, "dev", dev, result.predictions)
    results = {
        "dev": result.scores,
        "dev_mean": result.dev_mean,
        "train_seconds": 0.0,
        "examples_per_second": round(speed, 2),
    }
    results |= {"trained_tasks": run["trained_tasks"], "data": source, "checkpoint": config.checkpoint}
    finish(config, folder, model, [data[name, "test"] for name in names], results)


def predict_with_checkpoint(config: TrainConfig) -> None:
    """--option predict: a saved model's predictions for unlabelled files."""
    config, model, tokenizer, _ = open_checkpoint(config)
    files, _ = find_files(config, [(name, "test") for name in config.eval_tasks])
    tests = list(load_data(config, files, tokenizer).values())
    paths = write_all_predictions(
        config,
        Path(config.output_dir),
        "test",
        tests,
        {t.task.name: predict(model, t, config.batch_size) for t in tests},
    )
    for test, path in zip(tests, paths, strict=True):
        print(f"{test.task.name}: {len(test):,} predictions in {path}")


PROGRAMS = {
    "finetune": fit,
    "pretrain": fit,
    "evaluate": evaluate_checkpoint,
    "predict": predict_with_checkpoint,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, 2 for a user's mistake (one line on stderr), 130 for
    Ctrl-C, 143 for SIGTERM."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    if hasattr(
        sys.stdout, "reconfigure"
    ):  # a path or a text that the terminal's encoding lacks must not end a run
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        config, given = parse_arguments(arguments)
        if config.resume:
            config = resumed_config(config, given, started_with(config.output_dir))
        with parallel.process_group():
            PROGRAMS[config.option](config)
    except UserError as error:
        print(f"multitask_classifier.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        what = f"{error.filename or 'input or output'}: {error.strerror or first_line(error)}"
        print(f"multitask_classifier.py: error: {' '.join(what.split())}", file=sys.stderr)
        return 2
    except Interrupted as interruption:
        where = f"python multitask_classifier.py --resume --output_dir {config.output_dir}"
        if os.environ.get("RANK", "0") == "0":  # of several processes, one says so
            print(f"multitask_classifier.py: interrupted, and saved; go on with: {where}", file=sys.stderr)
        return 128 + interruption.args[0]
    except KeyboardInterrupt:
        print("multitask_classifier.py: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
