"""Where a run stands: its counts, its statistics since the last log line, its best scores on dev.

1. Each step: Progress.add(losses) keeps tensors, and does not sync the GPU.
2. Before numbers are read: Progress.check() removes NaN/inf steps.
3. At a log line: Progress.report() gives each task's means.
4. After each evaluation on dev: Progress.take_scores() says whether a model is the best so far.
5. checkpoint.py writes Progress.to_dict() to `last/progress.json`.

Batches, data sets and evaluations are those of `datasets.py` and `evaluation.py`.
"""

import contextlib
import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, SupportsFloat

import torch
from torch import Tensor
from tqdm import tqdm

from support.errors import UserError
from support.screen import epoch_table

log = logging.getLogger("smart_bert")
Losses = dict[str, Tensor]  # scalars of one batch by name


class BatchRecord(NamedTuple):
    """The measurements of one batch of a step. Reading losses or step time syncs the GPU."""

    step: int
    task: str
    rows: Sequence[int]
    losses: dict[str, Any]  # scalars by name: tensors, or floats after `to_floats`
    tokens: int  # without padding
    step_time: SupportsFloat  # seconds of the whole step
    batches: int  # of the step, which share its time

    def to_floats(self) -> "BatchRecord":
        """As JSON can hold it, without the rows."""
        losses = {name: float(loss) for name, loss in self.losses.items()}
        return self._replace(rows=[], losses=losses, step_time=float(self.step_time))


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
    interval: list[BatchRecord] = field(default_factory=list)  # since the last log line
    first_losses: list[tuple[str, Losses]] = field(default_factory=list)  # of the first 20 steps, by task
    log_bytes: int = 0  # length of metrics.jsonl
    stale: int = 0  # evaluations on dev since the best one

    def __post_init__(self) -> None:
        self._checked = len(self.interval)  # records that `check` has found finite

    def to_dict(self) -> dict:
        """As JSON can hold it, after `check`. Syncs the GPU."""
        values = {setting.name: getattr(self, setting.name) for setting in fields(self)}
        first = [(task, {name: float(loss) for name, loss in of.items()}) for task, of in self.first_losses]
        return values | {"interval": [record.to_floats() for record in self.interval], "first_losses": first}

    @classmethod
    def from_dict(cls, values: dict) -> "Progress":
        """Inverse of `to_dict`."""
        return cls(**values | {"interval": [BatchRecord(*record) for record in values["interval"]]})

    def add(
        self, tasks: list[str], losses: list[Losses], batches: list[Any], step_time: SupportsFloat
    ) -> None:
        """Add a step on one batch of each task. `check` counts it later if its numbers were finite."""
        for task, values, batch in zip(tasks, losses, batches, strict=True):
            size = (batch.num_tokens, step_time, len(batches))
            self.interval.append(BatchRecord(self.step, task, batch.rows, values, *size))
        self.step += 1

    def check(self, datasets: Mapping[str, Any], allowed: int, scaler: torch.amp.GradScaler) -> None:
        """Count the finite steps since the last call, remove NaN/inf steps. Syncs the GPU.

        Raises UserError if there were more than `allowed`. Gradients too large for fp16 don't count while the
        scaler can lower its scale.
        """
        unchecked = self.interval[self._checked :]
        del self.interval[self._checked :]
        for step, group in itertools.groupby(unchecked, lambda record: record.step):
            records = list(group)
            self.seconds += float(records[0].step_time)
            # the first batch with an infinite loss, or the first one if only the gradient is infinite
            infinite = [record for record in records if not torch.isfinite(record.losses["total"])]
            first = (infinite or records)[0]
            if not infinite and torch.isfinite(first.losses["grad_norm"]):
                self.interval += records
                self.examples += sum(len(record.rows) for record in records)
                if step < 20:
                    self.first_losses += [(record.task, record.losses) for record in records]
                continue
            if scaler.is_enabled() and not infinite and scaler.get_scale() >= 1:
                continue
            self.skipped += 1
            values = ", ".join(f"{name} {value.item():.4g}" for name, value in first.losses.items())
            ids = [datasets[first.task].ids[row] for row in first.rows]
            where = f"step {step}, task {first.task}, rows {', '.join(ids[:4])}{', ...' * (len(ids) > 4)}"
            problem = f"{where}: loss or gradient is not finite ({values})"
            if self.skipped > allowed:
                raise UserError(f"{problem}; no update was made; try a smaller --lr or --head_lr")
            log.warning("%s; batch %d of at most %d left out", problem, self.skipped, allowed)
        self._checked = len(self.interval)

    def lacks(self, task: str, name: str) -> bool:
        """Whether no step of this task since the last log line has a value of this name."""
        return not any(record.task == task and name in record.losses for record in self.interval)

    def report(self, lr: float) -> dict[str, dict[str, float]]:
        """A record for each task, means over its steps since the last log line. Syncs the GPU."""
        reports = {}
        for task in dict.fromkeys(record.task for record in self.interval):
            records = [record.to_floats() for record in self.interval if record.task == task]
            means = {}
            # some numbers are measured in some steps only
            for name in dict.fromkeys(name for record in records for name in record.losses):
                column = [record.losses[name] for record in records if name in record.losses]
                means[name] = sum(column) / len(column)
            tokens = sum(record.tokens for record in records)
            seconds = sum(float(record.step_time) / record.batches for record in records)
            speed = {"ms_per_step": 1000 * seconds / len(records), "tokens_per_second": tokens / seconds}
            reports[task] = means | {"lr": lr} | speed
        self.interval = []
        self._checked = 0
        return reports

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

    def best_scores(self) -> dict[str, float]:
        """Every dev score of the best model, and the mean of the main ones, for TensorBoard."""
        scores = {"best/mean": self.best["dev_mean"]}
        for task, of_task in self.best["dev"].items():
            scores |= {f"best/{task}/{name}": value for name, value in of_task.items() if name != "trained"}
        return scores

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
