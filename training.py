"""The plan of a run, its step, where it stands, and what it says about itself. Knows modules and numbers, not
the model's class."""

import contextlib
import logging
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from config import TrainConfig
from datasets import SCHEDULES, Batch, Loader, Task, TokenizedDataset
from optimizer import AdamW, decay_groups
from support import parallel
from support.errors import UserError

log = logging.getLogger("smart_bert")
MAX_STEPS = 10**7  # months; the plan of more would not fit into memory


class Plan(NamedTuple):
    """steps: for each step of the run its task and which of that task's batches it takes. per_epoch, warmup:
    counts of steps."""

    steps: list[tuple[str, int]]
    per_epoch: int
    warmup: int


def plan_steps(config: TrainConfig, loaders: dict[str, Loader]) -> Plan:
    """Every task gets the same number of steps; an epoch has as many as the median task needs for one pass
    over its rows."""
    median = round(statistics.median(loader.batches_per_epoch for loader in loaders.values()))
    per_epoch = config.steps_per_epoch or median * len(loaders)
    if config.epochs * per_epoch > MAX_STEPS:
        raise UserError(
            f"--epochs {config.epochs}: with {per_epoch} steps each, more than {MAX_STEPS:,} steps"
        )
    taken, steps = Counter(), []
    for step in range(config.epochs * per_epoch):
        name = config.tasks[SCHEDULES[config.schedule](step, per_epoch, len(config.tasks))]
        steps.append((name, taken[name]))
        taken[name] += 1
    return Plan(
        steps, per_epoch, round(0.1 * len(steps)) if config.warmup_steps is None else config.warmup_steps
    )


class Learner:
    """A model, its optimizer, its teacher if there is one, and the step that moves them.

    loss: a module with the attributes `model` and `bregman` (or None), whose forward(task, batch, measure) is
    the whole training loss
    by its parts, `total` among them. Several processes each give the step their share of a batch and end up
    with the same weights.
    """

    def __init__(self, loss: nn.Module, config: TrainConfig):
        self.model, self.bregman, self.max_grad_norm = loss.model, loss.bregman, config.max_grad_norm
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.device = self.parameters[0].device
        self.optimizer = AdamW(decay_groups(self.model, config.weight_decay), lr=config.lr)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=config.precision == "fp16"
        )  # small gradients would be 0 there
        self.loss = parallel.synchronised(loss)

    def step(
        self, task: Task, batch: Batch, lr: float, beta: float, measure: bool = False
    ) -> dict[str, Tensor]:
        """Train on one batch. Returns the loss by its parts, means over all processes, and `grad_norm` before
        clipping; detached.

        Where total or norm is not finite no update is made. The CPU sees that at once. A GPU is not waited
        for: there AdamW counts the
        step all the same, and the teacher moves on towards weights that stand still.
        """
        with out_of_memory_advice(batch):
            losses = self.loss(task, batch, measure)
            self.scaler.scale(losses["total"] * batch.weight).backward()
        self.scaler.unscale_(self.optimizer)
        losses = parallel.mean(losses, batch.weight)
        losses["grad_norm"] = nn.utils.get_total_norm(
            [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        )
        bad = ~(torch.isfinite(losses["grad_norm"]) & torch.isfinite(losses["total"]))
        if self.device.type != "cpu" or not bad:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            excess = ((losses["grad_norm"] + 1e-6) / self.max_grad_norm).clamp_min(
                1.0
            )  # clips as `clip_grad_norm_` does
            self.optimizer.step(grad_scale=excess, found_inf=bad.to(excess.dtype))
            if self.bregman:
                self.bregman.update(self.model, beta)
        self.scaler.update()
        self.optimizer.zero_grad()
        return losses


def not_finite(
    losses: dict[str, Tensor], step: int, dataset: TokenizedDataset, rows: Sequence[int]
) -> UserError:
    """The error that says which loss was inf or NaN, at which step, on which rows."""
    values = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
    ids = ", ".join(dataset.ids[row] for row in rows)
    where = f"step {step}, task {dataset.task.name}, rows {ids}"
    return UserError(
        f"loss or gradient is not finite ({values}) at {where}; no update was made; try a smaller --lr"
    )


@contextlib.contextmanager
def out_of_memory_advice(batch: Batch):
    """Turns running out of memory within into a UserError that says which batch size to try."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator raises a bare one
        if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error):
            raise
        rows, tokens = batch.input_ids.shape
        advice = f"--batch_size {rows // 2}" if rows > 1 else f"--max_length {tokens // 2}"
        raise UserError(f"out of memory with {rows} rows of {tokens} tokens; try {advice}") from None


def describe(
    model: nn.Module, tokenizer: Tokenizer, loaders: dict[str, Loader], plan: Plan, config: TrainConfig
) -> None:
    """Print what the run is about to do and what it will cost."""
    device, params = next(model.parameters()).device, [p for p in model.parameters() if p.requires_grad]
    decayed, plain = (
        sum(p.numel() for p in group["params"]) for group in decay_groups(model, config.weight_decay)
    )
    processes = f", {parallel.size()} processes" if parallel.size() > 1 else ""
    print(
        f"{config.option} on {device} in {config.precision}{processes}: {decayed + plain:,}"
        f" parameters in {len(params)} tensors,"
        f" {decayed:,} of them decay"
    )
    tokens = {}
    for name, loader in loaders.items():
        lengths, batches = loader.dataset.lengths, loader.epoch_batches(0)
        padded = sum(lengths[rows].max() * len(rows) for rows in batches)
        count = sum(task == name for task, _ in plan.steps)
        tokens[name] = count * lengths.sum() / len(batches)
        rows = len(loader.dataset)
        print(
            f"  {name}: {rows:,} rows, {len(batches):,} batches of {loader.batch_size},"
            f" {lengths.mean():.1f} tokens a row,"
            f" {1 - lengths.sum() / padded:.1%} padding; {count:,} steps = {count / len(batches):.2f} passes"
        )
        print(
            "    for example:"
            f" {tokenizer.decode(loader[0].input_ids[0].tolist(), skip_special_tokens=False)[:120]}"
        )
    # in forward passes: a backward pass is 2, or 1 where only the input's gradient is wanted (the ascent)
    cost = {"smart": 2 * config.smart_steps + 3, "bregman": 1, "rdrop": 3}
    encoder = sum(p.numel() for name, p in model.bert.named_parameters() if "embedding" not in name)
    flops = sum(
        2 * encoder * count * (3 + sum(cost[term] for term in config.weights(name)))
        for name, count in tokens.items()
    )
    print(
        f"  {len(plan.steps):,} steps, {plan.per_epoch:,} an epoch ({config.schedule}), warm-up"
        f" {plan.warmup}, peak lr {config.lr:g};"
        f" {sum(tokens.values()):,.0f} tokens, about {flops / 1e12:,.0f} TFLOP"
    )


def warn_of_terms_without_effect(first_losses: list[tuple[str, dict]], config: TrainConfig) -> None:
    """One warning if a term that is on has stayed below a millionth of the task loss."""
    dead = set()
    for name in dict(first_losses):
        for term, weight in config.weights(name).items():
            parts = [
                (float(losses[term]), float(losses["task"])) for task, losses in first_losses if task == name
            ]
            if weight * sum(part for part, _ in parts) < 1e-6 * abs(sum(whole for _, whole in parts)):
                dead.add((term, name))
    if dead:
        advice = {
            "smart": "--smart_epsilon or --smart_step_size",
            "bregman": "--bregman_weight or --bregman_beta",
            "rdrop": "--rdrop_weight",
        }
        said = "; ".join(f"{term} on {name} (raise {advice[term]})" for term, name in sorted(dead))
        log.warning(
            "no measurable effect in the first %d steps, below a millionth of the task loss: %s",
            len(first_losses),
            said,
        )
