"""Stopping a run and going on with it, bit for bit.

    Progress, weights, optimizer, random generators ─ save_last ─> <run>/last ─ load_last ─> all of them again
    started_with, resumed_config: the settings with which a run goes on
    StopSignal, Interrupted: a signal ends the run after the step that it falls into

Knows modules, optimizers and settings, not the model's class.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, SupportsFloat

import numpy as np
import tokenizers
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

from config import UNLABELLED, TrainConfig
from datasets import Batch, TokenizedDataset
from evaluation import Evaluation
from mysmartloss import generator_state, set_generator_state
from run_files import Data
from support import parallel
from support.checkpoint import (
    DISCARDED,
    PREVIOUS,
    Checkpoint,
    has_checkpoint,
    load_checkpoint,
    place_of,
    save_checkpoint,
    verify_checkpoint,
)
from support.errors import UserError, one_line
from support.files import sync_folder
from support.log import Interval, RunLog, SilentLog
from support.screen import duration, epoch_table

log = logging.getLogger("smart_bert")
# The settings that may change when a run is resumed: they do not change its numbers. Files may, because their
# content is compared; epochs may only grow.
FREE_TO_CHANGE = {"epochs", "logging_steps", "log_level", "save_steps", "output_dir", "data_dir", "files"}
FREE_TO_CHANGE |= {"unlabelled_file", "use_gpu", "resume", "skip_nonfinite", "no_report"}
FREE_TO_CHANGE |= {"eval_steps", "patience"}  # which model is the best, not what is trained
MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # what AdamW keeps of each weight
Losses = dict[str, Tensor]  # of one batch, by their names

# ------------------------------------------------------------------------------- where a run stands


class Part(NamedTuple):
    """The seconds of a step, divided by its number of batches. A GPU is waited for when they are read."""

    seconds: SupportsFloat
    batches: int

    def __float__(self) -> float:
        return float(self.seconds) / self.batches


@dataclass
class Progress:
    """Where a run stands. With the weights, it is all that is needed to go on as if nothing had happened."""

    step: int = 0  # steps done, so also the number of the next one
    best: dict = field(default_factory=dict)  # what `results.json` will say of the best epoch so far
    dev: dict[str, dict[str, float]] = field(default_factory=dict)  # last dev scores: by role, then by task
    seconds: float = 0.0  # spent in steps
    save_seconds: float = 0.0  # spent on writing checkpoints
    examples: int = 0  # rows trained on
    skipped: int = 0  # batches left out as not finite
    interval: Interval = field(default_factory=Interval)
    first_losses: list[tuple[str, dict[str, Tensor]]] = field(default_factory=list)  # of the first 20 steps
    log_bytes: int = 0  # length of metrics.jsonl
    stale: int = 0  # scorings of dev since the best

    def __post_init__(self) -> None:
        # steps since the last `check`, with task, rows and losses of each part, and the seconds; empty when a
        # checkpoint is written
        self._unchecked: list[tuple[int, list[tuple[str, np.ndarray, Losses]], SupportsFloat]] = []

    def to_dict(self) -> dict:
        """As JSON can hold it; waits for a GPU."""
        first = [
            (name, {part: float(value) for part, value in losses.items()})
            for name, losses in self.first_losses
        ]
        values = {setting.name: getattr(self, setting.name) for setting in fields(self)}
        return values | {"interval": self.interval.to_dict(), "first_losses": first}

    def add(
        self, tasks: list[str], losses: list[Losses], batches: list[Batch], seconds: SupportsFloat
    ) -> None:
        """Count a step on a batch of each task; `check` says later whether it was one.

        `check` also adds up the seconds of its work; the log gives each task its part of them.
        """
        parts = list(zip(tasks, [batch.rows for batch in batches], losses, strict=True))
        self._unchecked.append((self.step, parts, seconds))
        for (task, rows, values), batch in zip(parts, batches, strict=True):
            self.interval.add(task, values, batch.num_tokens, Part(seconds, len(parts)))
            self.examples += len(rows)
            if self.step < 20:
                self.first_losses.append((task, values))
        self.step += 1

    def check(
        self, datasets: dict[str, TokenizedDataset], allowed: int, scaler: torch.amp.GradScaler
    ) -> None:
        """Forget the steps since the last check whose loss or gradient was not finite. Waits for a GPU.

        Raises UserError if there have been more than `allowed`. Gradients too large for fp16 don't count
        while its scale can be lowered.
        """
        unchecked = self._unchecked
        self._unchecked = []
        self.seconds += sum(float(seconds) for *_, seconds in unchecked)
        for step, parts, _ in unchecked:
            # the first part with an infinite loss, or the first where the gradient alone is infinite
            totals = [part for part in parts if not torch.isfinite(part[2]["total"])]
            task, rows, losses = (totals or parts)[0]
            if not totals and torch.isfinite(losses["grad_norm"]):
                continue
            for name, taken, values in parts:
                self.interval.remove(name, values)
                self.first_losses = [first for first in self.first_losses if first[1] is not values]
                self.examples -= len(taken)
            if scaler.is_enabled() and not totals and scaler.get_scale() >= 1:
                continue
            self.skipped += 1
            problem = not_finite(losses, step, datasets[task], rows)
            if self.skipped > allowed:
                raise problem
            log.warning("%s; batch %d of at most %d left out", problem, self.skipped, allowed)

    def take_scores(self, results: dict[str, Evaluation], keep: str, when: str) -> str | None:
        """Take in dev scores, by role, and show them beside the last ones.

        keep: the setting. when: epoch or step, for the screen. Returns the role to save if its
        `selection_mean` is the best so far, else None.
        """
        kept = max(results if keep == "best" else [keep], key=lambda role: results[role].selection_mean)
        result = results[kept]
        is_best = not self.best or result.selection_mean > self.best["selection_mean"]
        before = self.dev
        self.dev = {role: result.main_scores for role, result in results.items()}
        tqdm.write("\n" + epoch_table(f"dev after {when}", self.dev, before, kept if is_best else None))
        if not is_best:
            self.stale += 1
            tqdm.write(
                f"best so far: {self.best['selection_mean']:.3f} after step {self.best['best_step']}\n"
            )
            return None
        tqdm.write(f"* best so far: the {kept} is saved in best/\n")
        self.stale = 0
        self.best = {"best_step": self.step, "dev": result.scores, "dev_mean": result.dev_mean}
        self.best["selection_mean"] = result.selection_mean
        if len(results) > 1:
            self.best |= {"kept": kept} | {f"dev_{role}": other.scores for role, other in results.items()}
        return kept

    def out_of_patience(self, patience: int | None) -> bool:
        """Whether early stopping ends the run here."""
        return patience is not None and self.stale >= patience

    def bar_text(self, task: str, loss: Tensor, epoch: str) -> str:
        """What the progress bar says: epoch, task loss, last dev score. Waits for a GPU."""
        dev = "".join(f", {role} dev {scores['mean']:.3f}" for role, scores in self.dev.items())
        return f"{epoch}, {task} loss {float(loss):.3f}{dev}"

    def cost(self) -> dict[str, float]:
        """What the run has taken, for `results.json`."""
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

    @classmethod
    def from_dict(cls, values: dict) -> "Progress":
        """Inverse of `to_dict`. Raises TypeError, KeyError, ValueError or AttributeError if it is none."""
        progress = cls(**values | {"interval": Interval.from_dict(values["interval"])})
        progress.to_dict()  # fails where a loss is no number
        counts = (progress.step, progress.examples, progress.skipped, progress.log_bytes, progress.stale)
        best = progress.best or {"dev": {}, "dev_mean": 0, "selection_mean": 0, "best_step": 0}
        tables = [*best["dev"].values(), *progress.dev.values()]
        numbers = [progress.seconds, progress.save_seconds, best["dev_mean"], best["selection_mean"]]
        numbers += [best["best_step"], *(scores["mean"] for scores in progress.dev.values())]
        numbers += [value for scores in tables for value in scores.values()]
        numbers += [value for steps in values["interval"].values() for _, *rest in steps for value in rest]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("not a place in a run")
        if not all(isinstance(number, (int, float)) for number in numbers):
            raise ValueError("its scores or times are not numbers")
        if not all(0 <= seconds < math.inf for seconds in (progress.seconds, progress.save_seconds)):
            raise ValueError("its times are no times")  # also NaN
        return progress


def not_finite(
    losses: dict[str, Tensor], step: int, dataset: TokenizedDataset, rows: np.ndarray
) -> UserError:
    """The error that says which loss was inf or NaN, at which step, on which rows."""
    values = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
    ids = ", ".join(dataset.ids[row] for row in rows)
    where = f"step {step}, task {dataset.task.name}, rows {ids}"
    return UserError(
        f"loss or gradient is not finite ({values}) at {where}; no update was made; try a smaller --lr"
    )


class Run(NamedTuple):
    """What belongs to one run. record: what every checkpoint says of it."""

    config: TrainConfig
    folder: Path
    tokenizer: Tokenizer
    record: dict
    progress: Progress
    diary: RunLog | SilentLog


def versions() -> dict[str, str]:
    """Of the packages on which the numbers depend."""
    return {package.__name__: package.__version__ for package in (torch, np, tokenizers)}


def fingerprint(data: Data) -> dict[str, str]:
    """SHA-256 of the content of each data set. A resumed run compares it, to go on with the same data."""
    digests = {}
    for (task, split), dataset in data.items():
        labels = b"" if dataset.labels is None else dataset.labels.numpy().tobytes()
        content = (
            dataset.tokens.tobytes(),
            dataset.starts.tobytes(),
            dataset.segment_starts.tobytes(),
            labels,
            "\n".join(dataset.ids).encode(),
        )
        digests[f"{task}_{split}"] = hashlib.sha256(
            b"".join(hashlib.sha256(part).digest() for part in content)
        ).hexdigest()
    return digests


def run_record(config: TrainConfig, data: Data, source: str) -> dict:
    """What every checkpoint says of its run. source: where the data is from, in a word or two."""
    return {
        "config": config.to_dict(),
        "trained_tasks": list(config.tasks),
        "data": source,
        "processes": parallel.size(),
        "versions": versions(),
        "content": fingerprint(data),
    }


# -------------------------------------------------------------------------- what a checkpoint holds


def training_state(
    modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, device: torch.device
) -> tuple[dict, dict]:
    """Everything that decides how training goes on, as (tensors, record).

    Weights, optimizer, and every random generator of every process.
    """
    tensors = {role: module.state_dict() for role, module in modules.items()}
    moments = optimizer.state_dict()["state"]
    tensors["optimizer"] = {
        f"{i}.{key}": torch.as_tensor(value) for i, state in moments.items() for key, value in state.items()
    }
    generators = {"cpu": torch.get_rng_state()}
    state = generator_state(device)
    if state is not None:
        generators[device.type] = state
    of_processes = enumerate(parallel.gather(generators))
    tensors["random"] = {
        f"{name}.{rank}": state for rank, states in of_processes for name, state in states.items()
    }
    name, keys, *rest = np.random.get_state(legacy=True)
    return tensors, {"python": random.getstate(), "numpy": [name, np.asarray(keys).tolist(), *rest]}


def restore_training_state(
    tensors: dict,
    record: dict,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> None:
    """Inverse of `training_state`, in place. Warns if the run goes on on another kind of device.

    Raises LookupError, RuntimeError, TypeError, ValueError, AttributeError or OverflowError if the state is
    another model's or not a training state at all.
    """
    for role, module in modules.items():
        module.load_state_dict(tensors[role])
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for name, value in tensors["optimizer"].items():
        i, _, key = name.partition(".")
        param = params[int(i)]
        if value.shape != (() if key == "step" else param.shape) or (key == "step" and value < 1):
            raise ValueError(f"optimizer state {name} does not fit")
        optimizer.state[param][key] = int(value) if key == "step" else torch.empty_like(param).copy_(value)
    if any(state.keys() != MOMENTS for state in optimizer.state.values()):
        raise ValueError("the optimizer state is incomplete")
    rank = parallel.rank()
    generators = tensors["random"]
    torch.set_rng_state(generators[f"cpu.{rank}"])
    kinds = {name.partition(".")[0] for name in generators} - {"cpu"} or {"cpu"}  # of the device it ran on
    if device.type in kinds:
        set_generator_state(device, generators[f"{device.type}.{rank}"])
    else:
        words = "the run was saved on %s and goes on on %s: its dropout masks differ from here on"
        log.warning(words, *kinds, device.type)
    version, internal, gauss = record["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, place, *rest = record["numpy"]
    if not 0 <= place <= len(keys):  # numpy would take it and read beyond its array
        raise ValueError(f"{place} is no place in a random generator's state")
    np.random.set_state((name, np.array(keys, dtype=np.uint32), place, *rest))


def save_last(
    folder: Path,
    models: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    run: dict,
    progress: Progress,
) -> None:
    """Write `folder`/last: everything that `load_last` needs to go on from here."""
    tensors, generators = training_state(models, optimizer, device_of(models))
    records = {
        "run": run,
        "progress": progress.to_dict(),
        "random": generators,
        "scaler": scaler.state_dict(),
    }
    if parallel.rank() == 0:
        save_checkpoint(folder / "last", Checkpoint(tensors, records), keep_previous=True)


def device_of(models: Mapping[str, nn.Module]) -> torch.device:
    return next(next(iter(models.values())).parameters()).device


def load_last(
    folder: Path,
    models: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    run: dict,
) -> Progress:
    """Put models, optimizer and random generators where `folder`/last left them.

    Raises UserError if that is not this run's checkpoint, with its whole cause.
    """
    saved = load_checkpoint(folder / "last")
    try:
        before = saved.records["run"]
        for name, digest in run["content"].items():
            # a test file is in no step of training, so one that was missing may come later
            expected = before["content"].get(name, digest if name.endswith("_test") else None)
            if expected != digest:
                name = "unlabelled_file" if name.endswith(f"_{UNLABELLED}") else name
                raise UserError(f"--{name}: its content is not what the run in {folder} was started with")
        if before["processes"] != run["processes"]:
            count = before["processes"]
            mend = f"restart with --nproc_per_node {count}" if count != 1 else "restart without torchrun"
            raise UserError(f"{folder}: its run has {count} process(es), not {run['processes']}; {mend}")
        progress = Progress.from_dict(saved.records["progress"])
        restore_training_state(saved.tensors, saved.records["random"], models, optimizer, device_of(models))
        scaler.load_state_dict(saved.records["scaler"])
        earlier = before["versions"]
    except UserError:
        raise
    except (LookupError, TypeError, RuntimeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(f"{folder / 'last'}: not a checkpoint of this run ({one_line(error)})") from None
    if earlier != run["versions"]:
        words = "%s was saved with %s, now it is %s: results may differ in the last digits"
        log.warning(words, folder, earlier, run["versions"])
    print(f"resuming {folder} at step {progress.step}")
    return progress


# ----------------------------------------------------------------------------------------- resuming


def mend_last(folder: Path) -> None:
    """Put the checkpoint before the last one in the place of a damaged one, and say what that loses.

    The damaged one is kept as `last.damaged`. Raises UserError if neither can be used.
    """
    last = folder / "last"
    previous = folder / f"last{PREVIOUS}"
    for ending in (".new", DISCARDED):  # one that was never finished, one that was being deleted
        shutil.rmtree(folder / f"last{ending}", ignore_errors=True)
    try:
        verify_checkpoint(last)
        return
    except UserError as error:
        if place_of(last) != last or not previous.is_dir():
            raise
        damage = error
    try:
        before = load_checkpoint(previous, endings=("json",)).records["progress"]
        verify_checkpoint(previous)
    except (UserError, KeyError) as error:
        raise UserError(f"{damage}; the one before it cannot be used either ({one_line(error)})") from None
    shutil.rmtree(folder / "last.damaged", ignore_errors=True)
    os.replace(last, folder / "last.damaged")
    os.replace(previous, last)
    sync_folder(folder)
    lost = "the steps after it are lost"
    with contextlib.suppress(Exception):  # the record may be what is damaged
        after = json.loads((folder / "last.damaged" / "progress.json").read_bytes())
        steps, seconds = (after[name] - before[name] for name in ("step", "seconds"))
        lost = f"{steps} steps, {duration(seconds)} of training, are lost"
    log.warning("%s; going on from the checkpoint before it, at step %d: %s", damage, before["step"], lost)


def mend_best(folder: Path, progress: Progress, save: Callable[[], None]) -> None:
    """Look at `folder`/best before the rest of a run is computed.

    A damaged one is saved anew by `save` if the model of this very step is the best; else it is given up with
    a warning, and the best of the epochs that follow takes its place.
    """
    try:
        problem = ""
        if progress.best and parallel.rank() == 0:
            verify_checkpoint(folder / "best")
    except UserError as error:
        problem = str(error)
    if not (problem := parallel.gather(problem)[0]):
        return
    if progress.best["best_step"] == progress.step:
        log.warning("%s; it is saved anew", problem)
        save()
        return
    lost = f"the model of step {progress.best['best_step']}, {progress.best['selection_mean']:.3f} on dev"
    log.warning("%s; %s, is lost, and the best of what follows will be kept", problem, lost)
    progress.best = {}


def started_with(folder: str) -> dict:
    """The settings of the run that `folder`/last can go on with. Raises UserError if there is none."""
    last = Path(folder) / "last"
    if not has_checkpoint(last):
        raise UserError(f"--resume: {last} does not exist, so there is no run to go on with")
    if parallel.rank() == 0:
        mend_last(Path(folder))
    parallel.barrier()
    try:
        return load_checkpoint(last, endings=("json",)).records["run"]["config"]
    except (KeyError, TypeError):
        raise UserError(f"{last}: not a checkpoint of a run") from None


def resumed_config(config: TrainConfig, given: Iterable[str], started: dict) -> TrainConfig:
    """The settings with which a run goes on.

    They are those that it was `started` with, apart from the `given` flags that don't change its result.
    Raises UserError that names a given flag that would.
    """
    try:
        started = TrainConfig.from_dict(started).to_dict()
    except UserError as error:
        raise UserError(f"{config.output_dir}: the settings of its run cannot be read ({error})") from None
    for name in given:
        now = config.to_dict()[name]
        before = started[name]
        if name not in FREE_TO_CHANGE and now != before:
            raise UserError(
                f"--{name} {now}: the run was started with {before}; another value would change its result"
            )
    if "epochs" in given and config.epochs != started["epochs"] and started["schedule"] == "annealed":
        raise UserError(f"--epochs {config.epochs}: with --schedule annealed they decide over every step")
    if "epochs" in given and config.epochs < started["epochs"]:
        raise UserError(
            f"--epochs {config.epochs}: the run was started with {started['epochs']};"
            " it can only be given more"
        )
    return TrainConfig.from_dict(
        started | {name: getattr(config, name) for name in given if name in FREE_TO_CHANGE}
    )


# ----------------------------------------------------------------------------------------- stopping


STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def heeded() -> list[int]:
    """The signals that end a run. One that is ignored stays so: nohup and background jobs set that."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN]


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, raised where Ctrl-C raises KeyboardInterrupt. The argument is the number."""


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP raise Terminated, so that they end the program like Ctrl-C."""

    def stop(number: int, frame: object) -> None:
        raise Terminated(number)

    before = {number: signal.signal(number, stop) for number in heeded() if number != signal.SIGINT}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) == stop:  # not where something within has set another
                signal.signal(number, handler)


class StopSignal:
    """Within, Ctrl-C, SIGTERM and SIGHUP only leave their number in `received`, so that a step is finished.

    A second signal acts at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}  # handlers by signal

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._receive) for number in heeded()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._receive:  # not where something within has set another
                signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        self.received = number
        self.__exit__()


class Interrupted(Exception):
    """A signal, after the checkpoint was saved; the argument is the signal's number."""
