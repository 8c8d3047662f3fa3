"""Where a run stands: its counts, its statistics since the last log line, its best scores on dev.

1. Each step: Progress.add(losses) keeps tensors, and does not sync the GPU.
2. Before numbers are read: Progress.check() removes NaN/inf steps.
3. After each evaluation on dev: Progress.take_scores() says whether a model is the best so far.
4. checkpoint.py writes Progress.to_dict() to `last/progress.json`.

Batches, data sets and evaluations are those of `datasets.py` and `evaluation.py`.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, SupportsFloat

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from support.errors import UserError
from support.log import Interval
from support.screen import epoch_table

log = logging.getLogger("smart_bert")
Losses = dict[str, Tensor]  # scalars of one batch by name


def not_finite(losses: dict[str, Tensor], step: int, dataset: Any, rows: np.ndarray) -> UserError:
    """The error that says which loss was inf or NaN, at which step, on which rows."""
    values = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
    ids = ", ".join(dataset.ids[row] for row in rows)
    where = f"step {step}, task {dataset.task.name}, rows {ids}"
    return UserError(
        f"loss or gradient is not finite ({values}) at {where}; no update was made; try a smaller --lr"
    )


class BatchTime(NamedTuple):
    """Step time per batch. Reading it syncs the GPU."""

    step_time: SupportsFloat
    batches: int

    def __float__(self) -> float:
        return float(self.step_time) / self.batches


@dataclass
class Progress:
    """Where a run stands: with weights, optimizer and RNG states, all that resuming needs."""

    step: int = 0  # steps done, so also the number of the next one
    best: dict = field(default_factory=dict)  # what `results.json` will say of the best model so far
    dev: dict[str, dict[str, float]] = field(default_factory=dict)  # last dev scores: by role, then by task
    seconds: float = 0.0  # spent in steps
    save_seconds: float = 0.0  # spent on writing checkpoints
    examples: int = 0  # rows trained on
    skipped: int = 0  # batches left out because of NaN or inf
    interval: Interval = field(default_factory=Interval)
    first_losses: list[tuple[str, Losses]] = field(
        default_factory=list
    )  # of the first 20 steps, with the task
    log_bytes: int = 0  # length of metrics.jsonl
    stale: int = 0  # evaluations on dev since the best one

    def __post_init__(self) -> None:
        # Steps since the last `check`: number, (task, rows, losses) of each batch, step time. Empty when a
        # checkpoint is written.
        self._unchecked: list[tuple[int, list[tuple[str, np.ndarray, Losses]], SupportsFloat]] = []

    def to_dict(self) -> dict:
        """As JSON can hold it. Syncs the GPU."""
        values = {setting.name: getattr(self, setting.name) for setting in fields(self)}
        first = [
            (task, {name: float(value) for name, value in losses.items()})
            for task, losses in self.first_losses
        ]
        return values | {"interval": self.interval.to_dict(), "first_losses": first}

    @classmethod
    def from_dict(cls, values: dict) -> "Progress":
        """Inverse of `to_dict`."""
        return cls(**values | {"interval": Interval.from_dict(values["interval"])})

    def add(
        self, tasks: list[str], losses: list[Losses], batches: list[Any], step_time: SupportsFloat
    ) -> None:
        """Count a step on one batch of each task. `check` says later whether its numbers were finite."""
        parts = list(zip(tasks, [batch.rows for batch in batches], losses, strict=True))
        self._unchecked.append((self.step, parts, step_time))
        for (task, rows, values), batch in zip(parts, batches, strict=True):
            self.interval.add(task, values, batch.num_tokens, BatchTime(step_time, len(parts)))
            self.examples += len(rows)
            if self.step < 20:
                self.first_losses.append((task, values))
        self.step += 1

    def check(self, datasets: Mapping[str, Any], allowed: int, scaler: torch.amp.GradScaler) -> None:
        """Remove NaN/inf steps from the statistics. Syncs the GPU.

        Raises UserError if there were more than `allowed`. Gradients too large for fp16 don't count while the
        scaler can lower its scale.
        """
        unchecked = self._unchecked
        self._unchecked = []
        self.seconds += sum(float(step_time) for *_, step_time in unchecked)
        for step, parts, _ in unchecked:
            # the first batch with an infinite loss, or the first one if only the gradient is infinite
            infinite = [part for part in parts if not torch.isfinite(part[2]["total"])]
            task, rows, losses = (infinite or parts)[0]
            if not infinite and torch.isfinite(losses["grad_norm"]):
                continue
            for name, batch_rows, values in parts:
                self.interval.remove(name, values)
                self.first_losses = [first for first in self.first_losses if first[1] is not values]
                self.examples -= len(batch_rows)
            if scaler.is_enabled() and not infinite and scaler.get_scale() >= 1:
                continue
            self.skipped += 1
            problem = not_finite(losses, step, datasets[task], rows)
            if self.skipped > allowed:
                raise problem
            log.warning("%s; batch %d of at most %d left out", problem, self.skipped, allowed)

    def take_scores(self, results: Mapping[str, Any], keep: str, when: str) -> str | None:
        """Store dev scores, by role, and show them beside the last ones.

        keep: the setting. when: epoch or step, for the screen. Returns the role to save if its
        `selection_mean` is the best so far, else None.
        """
        role = max(results if keep == "best" else [keep], key=lambda name: results[name].selection_mean)
        result = results[role]
        is_best = not self.best or result.selection_mean > self.best["selection_mean"]
        before = self.dev
        self.dev = {name: other.main_scores for name, other in results.items()}
        tqdm.write("\n" + epoch_table(f"dev after {when}", self.dev, before, role if is_best else None))
        if not is_best:
            self.stale += 1
            best = f"{self.best['selection_mean']:.3f} after step {self.best['best_step']}"
            tqdm.write(f"best so far: {best}\n")
            return None
        tqdm.write(f"* best so far: the {role} is saved in best/\n")
        self.stale = 0
        self.best = {"best_step": self.step, "dev": result.scores, "dev_mean": result.dev_mean}
        self.best["selection_mean"] = result.selection_mean
        if len(results) > 1:
            self.best |= {"kept": role} | {f"dev_{name}": other.scores for name, other in results.items()}
        return role

    def out_of_patience(self, patience: int | None) -> bool:
        """Whether early stopping ends the run here."""
        return patience is not None and self.stale >= patience

    def bar_text(self, task: str, loss: Tensor, epoch: str) -> str:
        """Text of the progress bar: epoch, task loss, last dev score. Syncs the GPU."""
        dev = "".join(f", {role} dev {scores['mean']:.3f}" for role, scores in self.dev.items())
        return f"{epoch}, {task} loss {float(loss):.3f}{dev}"

    def cost(self) -> dict[str, float]:
        """Steps and times of the run, for `results.json`."""
        return {
            "steps": self.step,
            "train_seconds": round(self.seconds, 3),
            "examples_per_second": round(self.examples / max(self.seconds, 1e-9), 2),
            "save_seconds": round(self.save_seconds, 3),
        }

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Count the time spent within as spent on checkpoints."""
        begin = time.perf_counter()
        yield
        self.save_seconds += time.perf_counter() - begin
