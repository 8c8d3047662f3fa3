"""The plan of a run, where it stands, and what it says about itself. Knows modules and numbers, not the model's class."""

import logging
import statistics
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from config import TrainConfig
from datasets import SCHEDULES, Batch, Loader, TokenizedDataset
from errors import UserError
from optimizer import decay_groups
from reporting import Interval

log = logging.getLogger("smart_bert")
MAX_STEPS = 10**7  # months; the plan of more would not fit into memory


class Plan(NamedTuple):
    """steps: for each step of the run its task and which of that task's batches it takes. per_epoch, warmup: counts of steps."""

    steps: list[tuple[str, int]]
    per_epoch: int
    warmup: int


def plan_steps(config: TrainConfig, loaders: dict[str, Loader]) -> Plan:
    """Every task gets the same number of steps; an epoch has as many as the median task needs for one pass over its rows."""
    median = round(statistics.median(loader.batches_per_epoch for loader in loaders.values()))
    per_epoch = config.steps_per_epoch or median * len(loaders)
    if config.epochs * per_epoch > MAX_STEPS:
        raise UserError(f"--epochs {config.epochs}: with {per_epoch} steps each, more than {MAX_STEPS:,} steps")
    taken, steps = Counter(), []
    for step in range(config.epochs * per_epoch):
        name = config.tasks[SCHEDULES[config.schedule](step, per_epoch, len(config.tasks))]
        steps.append((name, taken[name]))
        taken[name] += 1
    return Plan(steps, per_epoch, round(0.1 * len(steps)) if config.warmup_steps is None else config.warmup_steps)


@dataclass
class Progress:
    """Where a run stands, beside its weights: with them, all that is needed to go on as if it had never been interrupted."""

    step: int = 0  # the next one
    best: dict | None = None  # what `results.json` will say of the best epoch so far
    seconds: float = 0.0  # spent in steps
    save_seconds: float = 0.0  # spent on writing checkpoints
    examples: int = 0  # rows trained on
    skipped: int = 0  # batches left out as not finite
    interval: Interval = field(default_factory=Interval)
    first_losses: list[tuple[str, dict[str, float]]] = field(default_factory=list)  # of the first 20 steps, by task
    log_bytes: int = 0  # length of metrics.jsonl

    def to_dict(self) -> dict:
        """As JSON can hold it; waits for a GPU."""
        first = [(name, {part: float(value) for part, value in losses.items()}) for name, losses in self.first_losses]
        return vars(self) | {"interval": self.interval.to_dict(), "first_losses": first}

    def add(self, task: str, losses: dict[str, Tensor], batch: Batch, seconds: float) -> None:
        """Count a step that was made."""
        values = {name: value.detach() for name, value in losses.items()}
        self.interval.add(task, values, batch.num_tokens, seconds)
        self.seconds, self.examples = self.seconds + seconds, self.examples + len(batch.rows)
        if self.step < 20:
            self.first_losses.append((task, values))

    @contextmanager
    def saving(self):
        """Count the time spent within as spent on checkpoints."""
        begin = time.perf_counter()
        yield
        self.save_seconds += time.perf_counter() - begin

    def skip(self, problem: UserError, allowed: int) -> None:
        """Count a batch that was left out. Raises the problem if there have been more than `allowed`."""
        self.skipped += 1
        if self.skipped > allowed:
            raise problem
        log.warning("%s; batch %d of at most %d left out", problem, self.skipped, allowed)

    @classmethod
    def from_dict(cls, values: dict) -> "Progress":
        """Inverse of `to_dict`. Raises TypeError, KeyError, ValueError or AttributeError if it is not such a record."""
        progress = cls(**values | {"interval": Interval.from_dict(values["interval"])})
        progress.to_dict()  # fails where a loss is no number
        counts = (progress.step, progress.examples, progress.skipped, progress.log_bytes)
        best = progress.best or {"dev": {}, "dev_mean": 0}
        measured = [
            progress.seconds,
            progress.save_seconds,
            best["dev_mean"],
            *(value for scores in best["dev"].values() for value in scores.values()),
            *(value for steps in values["interval"].values() for _, *rest in steps for value in rest),
        ]
        if not all(type(count) is int and count >= 0 for count in counts) or not all(isinstance(value, (int, float)) for value in measured):
            raise ValueError("not a place in a run")
        return progress


def not_finite(losses: dict[str, Tensor], step: int, dataset: TokenizedDataset, batch: Batch) -> UserError | None:
    """If the loss or the gradient of this batch is inf or NaN, an error that names step, task and rows."""
    if torch.isfinite(losses["grad_norm"]) and torch.isfinite(losses["total"]):
        return None
    values = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
    ids = ", ".join(dataset.ids[row] for row in batch.rows)
    where = f"step {step}, task {dataset.task.name}, rows {ids}"
    return UserError(f"loss or gradient is not finite ({values}) at {where}; no update was made; try a smaller --lr")


@contextmanager
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


def describe(model: nn.Module, tokenizer: Tokenizer, loaders: dict[str, Loader], plan: Plan, config: TrainConfig) -> None:
    """Print what the run is about to do and what it will cost."""
    device, params = next(model.parameters()).device, [p for p in model.parameters() if p.requires_grad]
    decayed, plain = (sum(p.numel() for p in group["params"]) for group in decay_groups(model, config.weight_decay))
    print(f"{config.option} on {device}: {decayed + plain:,} parameters in {len(params)} tensors, {decayed:,} of them decay")
    tokens = {}
    for name, loader in loaders.items():
        lengths, batches = loader.dataset.lengths, loader.epoch_batches(0)
        padded = sum(lengths[rows].max() * len(rows) for rows in batches)
        count = sum(task == name for task, _ in plan.steps)
        tokens[name] = count * lengths.sum() / len(batches)
        rows = len(loader.dataset)
        print(
            f"  {name}: {rows:,} rows, {len(batches):,} batches of {config.batch_size}, {lengths.mean():.1f} tokens a row,"
            f" {1 - lengths.sum() / padded:.1%} padding; {count:,} steps = {count / len(batches):.2f} passes"
        )
        print(f"    for example: {tokenizer.decode(loader[0].input_ids[0].tolist(), skip_special_tokens=False)[:120]}")
    # in forward passes: a backward pass is 2, or 1 where only the input's gradient is wanted (the ascent)
    cost = {"smart": 2 * config.smart_steps + 3, "bregman": 1, "rdrop": 3}
    encoder = sum(p.numel() for name, p in model.bert.named_parameters() if "embedding" not in name)
    flops = sum(2 * encoder * count * (3 + sum(cost[term] for term in config.weights(name))) for name, count in tokens.items())
    print(
        f"  {len(plan.steps):,} steps, {plan.per_epoch:,} an epoch ({config.schedule}), warm-up {plan.warmup}, peak lr {config.lr:g};"
        f" {sum(tokens.values()):,.0f} tokens, about {flops / 1e12:,.0f} TFLOP"
    )


def warn_of_terms_without_effect(first_losses: list[tuple[str, dict]], config: TrainConfig) -> None:
    """One warning if a term that is on has stayed below a millionth of the task loss."""
    dead = set()
    for name in dict(first_losses):
        for term, weight in config.weights(name).items():
            parts = [(float(losses[term]), float(losses["task"])) for task, losses in first_losses if task == name]
            if weight * sum(part for part, _ in parts) < 1e-6 * abs(sum(whole for _, whole in parts)):
                dead.add((term, name))
    if dead:
        advice = {
            "smart": "--smart_epsilon or --smart_step_size",
            "bregman": "--bregman_weight or --bregman_beta",
            "rdrop": "--rdrop_weight",
        }
        said = "; ".join(f"{term} on {name} (raise {advice[term]})" for term, name in sorted(dead))
        log.warning("no measurable effect in the first %d steps, below a millionth of the task loss: %s", len(first_losses), said)
