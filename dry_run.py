"""What a run is about to do, tried once before its first step: memory, time, and compiled layers.

    plan, loaders ─ describe ─> rows, tokens, TFLOP on the screen
    largest batch ─ try_largest_batch ─> memory, or the error that names the flag to lower
    typical batches ─ forecast ─> the seconds of the run

Weights, gradients and random state are afterwards as before.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

import mysmartloss
from config import UNLABELLED, TrainConfig
from datasets import Batch, Loader, Plan, TokenizedDataset
from evaluation import predicting_seconds
from support import messages, parallel
from support.devices import peak_memory
from support.errors import UserError, one_line
from support.messages import out_of_memory_advice
from support.screen import cut, duration, table
from tasks import Task

# `training_loss` of the main file: model, task, batch, settings, teacher -> losses, of which `total` counts
Loss = Callable[[Any, Task, Batch, TrainConfig, Any], dict[str, Tensor]]


def forward_passes(config: TrainConfig, task: str) -> float:
    """What a step on this task costs on average, in forward passes: a backward pass is 2, to δ alone 1.

    A plain step costs 3, SMART with one ascent step 5 more, D_Breg 1 more; with --smart_every 4 a quarter of
    that.
    """
    steps = config.smart_steps
    every = 1 if task == UNLABELLED else config.smart_every
    costs = {"smart": (2 * steps + 3) / every, "bregman": 1 / every, "rdrop": 3, "contrastive": 3}
    terms = config.weights(task)
    # FreeLB: K passes with their backward, K - 1 of them to the embeddings as well; and the clean pass, which
    # goes backward for other terms alone
    freelb = 4 * steps - 1 - (0 if terms else 2) if config.has_freelb(task) else 0
    return 3 + freelb + sum(costs.get(name, 0) for name in terms)


def describe(
    model: Any, tokenizer: Tokenizer, loaders: dict[str, Loader], plan: Plan, warmup: int, config: TrainConfig
) -> None:
    """Print what the run is about to do and what it will cost."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    several = f", {parallel.size()} processes" if parallel.size() > 1 else ""
    if config.gradient_accumulation_steps > 1:
        several += f", {config.gradient_accumulation_steps} batches a step"
    where = f"{config.option} on {trained[0].device} in {config.precision}{several}"
    print(f"{where}: {sum(parameter.numel() for parameter in trained):,} parameters to train")
    rows = [["task", "rows", "batches", "tokens/row", "padding", "steps", "passes"]]
    examples = []
    tokens = 0.0  # real ones that the run trains on
    flops = 0.0
    encoder = sum(parameter.numel() for parameter in model.bert.bert_layers.parameters())
    for name, loader in loaders.items():
        batches = loader.batches_per_epoch
        steps = sum(task == name for tasks in plan.steps for task, _ in tasks)
        of_task = steps * loader.dataset.lengths.sum() / batches
        tokens += of_task
        flops += 2 * encoder * of_task * forward_passes(config, name)
        sizes = [f"{len(loader.dataset):,}", f"{batches:,}", f"{loader.dataset.lengths.mean():.1f}"]
        rows.append([name, *sizes, f"{loader.padding():.1%}", f"{steps:,}", f"{steps / batches:.2f}"])
        first_row = loader.dataset.tokens[: loader.dataset.starts[1]].tolist()
        examples.append(cut(f"{name}, for example: {tokenizer.decode(first_row, skip_special_tokens=False)}"))
    print("\n".join([table(rows), *examples]))
    length = f"{len(plan.steps):,} steps, {plan.per_epoch:,} an epoch ({config.schedule}), warm-up {warmup:,}"
    print(f"{length}; {tokens:,.0f} tokens, about {flops / 1e12:,.1f} TFLOP of arithmetic")


def try_largest_batch(
    model: Any,
    loaders: dict[str, Loader],
    config: TrainConfig,
    teacher: mysmartloss.BregmanProximal | None,
    training_loss: Loss,
) -> None:
    """Run the largest batch once, forward and backward, so that memory runs out now and not in an hour.

    Drops its gradients and restores the random state. Raises UserError that names the flag to lower.
    """
    batches = {name: loader.largest_batch() for name, loader in loaders.items()}
    name = max(batches, key=lambda name: batches[name].input_ids.numel())
    rows, tokens = batches[name].input_ids.shape
    print(f"memory: trying the largest batch, {rows} rows of {tokens} tokens", end="", flush=True)
    try:
        seconds = try_batch(model, loaders[name].dataset.task, batches[name], config, teacher, training_loss)
    except UserError:
        print()  # the error begins a line
        raise
    peaks = peak_memory(next(model.parameters()).device)
    peak = peaks.get("peak_gpu_memory_gib", peaks.get("peak_memory_gib", math.nan))
    print(f": {duration(seconds)}, {peak:.2g} GiB at most so far")


def try_batch(
    model: Any,
    task: Task,
    batch: Batch,
    config: TrainConfig,
    teacher: mysmartloss.BregmanProximal | None,
    training_loss: Loss,
) -> float:
    """Seconds of a batch, forward and backward. Drops its gradients and restores the random state."""
    device = next(model.parameters()).device
    state = mysmartloss.generator_state(device)
    begin = time.perf_counter()
    with out_of_memory_advice(*batch.input_ids.shape), mysmartloss.generator_at(device, state):
        loss = training_loss(model, task, batch.to(device), config, teacher)["total"]
        loss.backward()
        float(loss.detach())  # syncs a GPU
    model.zero_grad()
    return time.perf_counter() - begin


def forecast(
    models: Mapping[str, Any],
    loaders: dict[str, Loader],
    plan: Plan,
    data: Mapping[tuple[str, str], TokenizedDataset],
    config: TrainConfig,
    teacher: mysmartloss.BregmanProximal | None,
    training_loss: Loss,
) -> messages.Forecast:
    """The seconds that the run will take, from a batch of typical length of each data set."""
    model = models["student"]
    batches = {}
    for name, loader in loaders.items():
        batch = loader.typical_batch()
        for _ in range(2 if config.compile else 1):  # a new shape may be compiled in its first pass
            seconds = try_batch(model, loader.dataset.task, batch, config, teacher, training_loss)
        tried = forward_passes(replace(config, smart_every=1), name)  # --smart_every has R_s in batch 0
        parts = loader.shares / parallel.size()  # of each batch, for this process
        batches[name] = parts * seconds * forward_passes(config, name) / tried
    steps = [sum(batches[name] for name, _ in tasks) for tasks in plan.steps]
    seconds_of: dict[str, float] = defaultdict(float)  # by split
    for (_, split), dataset in data.items():
        if split in ("dev", "test"):
            seconds_of[split] += predicting_seconds(model, dataset, config.batch_size)
    model.train()
    evaluation = len(models) * seconds_of["dev"]
    return messages.Forecast(steps, config.eval_steps or plan.per_epoch, evaluation, seconds_of["test"])


def check_compiled(model: Any, config: TrainConfig) -> None:
    """Try the compiled layers: compiling, and repeating a pass with its dropout masks, which SMART needs.

    Leaves the random generator where it was. Raises UserError if one of the two fails on this machine.
    """
    device = next(model.parameters()).device
    embeddings = torch.randn(8, 2, model.bert.config.hidden_size, generator=torch.Generator().manual_seed(0))
    embeddings = embeddings.to(device).requires_grad_()
    repeat = mysmartloss.DropoutReplay(lambda x: model.logits(config.tasks[0], x))
    with mysmartloss.generator_at(device, mysmartloss.generator_state(device)):
        try:
            clean = repeat(embeddings).detach()
            with torch.no_grad():  # compiled anew, and so perhaps with other random numbers
                again = [repeat(embeddings)]
            again.append(repeat(embeddings + 0).detach())
        except Exception as error:  # compilers raise anything: no C++ compiler, no Triton, no Python headers
            why = f"the encoder can't be compiled on this machine ({one_line(error)[:100]})"
            raise UserError(f"--compile: {why}; leave the flag out") from None
    # other masks change the logits by a fifth, rounding in bf16 by less than a hundredth
    off = max(float((other - clean).norm() / clean.norm()) for other in again)
    if off > 0.05 and any(config.weights(name) for name in config.tasks):
        why = "compiled passes draw new dropout masks when they are repeated on this machine"
        raise UserError(f"--compile: {why}, and SMART needs the same ones; leave out one of the two")
