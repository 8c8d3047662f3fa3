"""Saving a run, stopping it, and resuming it bit for bit.

1. StopSignal: Ctrl-C or SIGTERM asks for a checkpoint after the step.
2. save_last: weights, optimizer, RNG states, Progress ─> `last/`, whole or not at all. The checkpoint before
   it stays as `last.previous/`.
3. --resume: restore_last falls back to `last.previous/` if `last/` is damaged; resumed_config refuses flags
   that would change the result.
4. load_last: `last/` ─> weights, optimizer, RNG states, Progress. The next step is that of a run that was
   never interrupted.

A checkpoint folder holds `<name>.safetensors` (tensors), `<name>.json` (records) and `manifest.json` with the
SHA-256 of each file; no pickle. This module knows modules, optimizers and settings, not the model's class.
Not saved: Python's and NumPy's global RNGs, since nothing here draws from them.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import tokenizers
import torch
from torch import Tensor, nn

from config import UNLABELLED, TrainConfig
from datasets import TokenizedDataset
from mysmartloss import generator_state, set_generator_state
from support import parallel
from support.errors import UserError, one_line
from support.files import parse_json, read_bytes, sync_folder
from support.progress import Progress

try:
    import fcntl
except ImportError:  # Windows has no locks, and a run's folder is not protected there
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("smart_bert")
MANIFEST = "manifest.json"
ENDINGS = ("json", "safetensors")
PREVIOUS = ".previous"  # ending of the folder with the checkpoint before the last one
LOCK = "run.lock"  # its text says who holds it
# Settings that may change when a run is resumed, since its numbers stay the same. Files may, because their
# content is compared; epochs may only grow.
FREE_TO_CHANGE = {"epochs", "logging_steps", "log_level", "save_steps", "output_dir", "data_dir", "files"}
FREE_TO_CHANGE |= {"unlabelled_file", "use_gpu", "resume", "skip_nonfinite", "no_report"}
FREE_TO_CHANGE |= {"eval_steps", "patience"}  # which model is the best, not what is trained

# ------------------------------------------------------------------------------- checkpoint folders


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint folder, by file name without its ending.

    texts: files for people, by whole name. They are written and never read, so they may be edited.
    """

    tensors: dict[str, dict[str, Tensor]]
    records: dict[str, dict[str, Any]]
    texts: dict[str, str] = field(default_factory=dict)


def save_checkpoint(folder: str | Path, checkpoint: Checkpoint, keep_previous: bool = False) -> None:
    """Write the folder. A crash at any moment leaves the old or the new one whole.

    With `keep_previous` the old one stays as `<folder>.previous`. Raises UserError if the folder cannot be
    written; the old one is then kept.
    """
    folder = Path(folder).absolute()
    new, old, previous = (folder.with_name(folder.name + ending) for ending in (".new", ".old", PREVIOUS))
    try:
        if not folder.exists() and has_checkpoint(folder):
            os.replace(place_of(folder), folder)  # an earlier crash came between the renames below
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        _write_folder(new, checkpoint)
        if keep_previous and previous.exists():
            os.replace(previous, old)
        if folder.exists():
            os.replace(folder, previous if keep_previous else old)
        os.replace(new, folder)
        sync_folder(folder.parent)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UserError(f"{folder}: cannot write the checkpoint ({reason}); an earlier one is kept") from None
    shutil.rmtree(old, ignore_errors=True)


def _write_folder(folder: Path, checkpoint: Checkpoint) -> None:
    """Write all files and the manifest, and wait until they are on disk."""
    folder.mkdir(parents=True)
    digests = {}
    for name, tensors in checkpoint.tensors.items():
        rows = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        digests[f"{name}.safetensors"] = _write(folder / f"{name}.safetensors", rows)
    for name, record in checkpoint.records.items():
        digests[f"{name}.json"] = _write(folder / f"{name}.json", json.dumps(record, indent=1).encode())
    for name, text in checkpoint.texts.items():
        _write(folder / name, text.encode())
    _write(folder / MANIFEST, json.dumps(digests, indent=1).encode())
    sync_folder(folder)


def _write(path: Path, content: bytes | dict[str, Tensor]) -> str:
    """Write bytes, or tensors as safetensors, and wait until they are on disk. Returns the file's SHA-256."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        safetensors.torch.save_file(content, path, metadata={"format": "pt"})
    with open(path, "rb+") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest


def place_of(folder: str | Path) -> Path:
    """The folder, or the name under which a crash between two renames has left it."""
    names = [Path(f"{folder}{ending}") for ending in ("", PREVIOUS, ".old")]
    return next((name for name in names if os.path.isdir(name)), names[0])


def has_checkpoint(folder: str | Path) -> bool:
    """Whether `load_checkpoint` finds a folder there."""
    return os.path.isdir(place_of(folder))


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a folder. The checksum of each file is compared before the file is parsed.

    Raises UserError that names the file if one is missing, damaged or of another kind.
    """
    folder = place_of(folder)
    digests = parse_json(folder / MANIFEST, read_bytes(folder / MANIFEST, "not a checkpoint folder"))
    checkpoint = Checkpoint({}, {})
    for file, digest in digests.items():
        if file == MANIFEST:  # earlier versions list the manifest itself
            continue
        path = folder / Path(file).name  # never a file outside the folder
        data = read_bytes(path, "the checkpoint is incomplete")
        if hashlib.sha256(data).hexdigest() != digest:
            why = f"damaged, its checksum is not the one in {MANIFEST}; use another checkpoint"
            raise UserError(f"{path}: {why}")
        if path.suffix == ".json":
            checkpoint.records[path.stem] = parse_json(path, data)
            continue
        try:
            checkpoint.tensors[path.stem] = safetensors.torch.load(data)
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            raise UserError(f"{path}: not a safetensors file ({one_line(error)})") from None
    return checkpoint


# ----------------------------------------------------------------------------- the last checkpoint


def run_record(config: TrainConfig, data: Mapping[tuple[str, str], TokenizedDataset], source: str) -> dict:
    """What every checkpoint says of its run. source: where the data is from, in a word or two."""
    return {
        "config": config.to_dict(),
        "trained_tasks": list(config.tasks),
        "data": source,
        "processes": parallel.size(),
        "versions": {package.__name__: package.__version__ for package in (torch, np, tokenizers)},
        "content": {f"{task}_{split}": fingerprint(dataset) for (task, split), dataset in data.items()},
    }


def fingerprint(dataset: TokenizedDataset) -> str:
    """SHA-256 of its content. A resumed run compares it, to go on with the same data."""
    content = [dataset.tokens.tobytes(), dataset.starts.tobytes(), dataset.segment_starts.tobytes()]
    content.append(b"" if dataset.labels is None else dataset.labels.numpy().tobytes())
    content.append("\n".join(dataset.ids).encode())
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in content)).hexdigest()


def save_last(
    folder: Path,
    models: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    run_record: dict,
    progress: Progress,
) -> None:
    """Write `folder`/last: everything that `load_last` needs. Every process calls it; process 0 writes.

    models: by role (student, teacher). Raises UserError if the folder cannot be written.
    """
    tensors = {role: model.state_dict() for role, model in models.items()}
    tensors["optimizer"], optimizer_record = optimizer_state(optimizer)
    device = optimizer.param_groups[0]["params"][0].device
    generators = {"cpu": torch.get_rng_state(), device.type: generator_state(device)}
    of_ranks = enumerate(parallel.gather(generators))
    tensors["random"] = {
        f"{kind}.{rank}": state for rank, states in of_ranks for kind, state in states.items()
    }
    records = {
        "run": run_record,
        "progress": progress.to_dict(),
        "optimizer": optimizer_record,
        "scaler": scaler.state_dict(),
    }
    if parallel.rank() == 0:
        save_checkpoint(folder / "last", Checkpoint(tensors, records), keep_previous=True)


def load_last(
    folder: Path,
    models: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    run_record: dict,
) -> Progress:
    """Restore models, optimizer, scaler and RNG states, in place, from `folder`/last.

    Raises UserError if it is not this run's: other data, processes, model or optimizer.
    """
    saved = load_checkpoint(folder / "last")
    try:
        before = saved.records["run"]
        for name, digest in run_record["content"].items():
            # a test file is in no step of training, so one that was missing may come later
            expected = before["content"].get(name, digest if name.endswith("_test") else None)
            if expected != digest:
                name = "unlabelled_file" if name.endswith(f"_{UNLABELLED}") else name
                raise UserError(f"--{name}: its content is not what the run in {folder} was started with")
        count = before["processes"]
        if count != run_record["processes"]:
            mend = f"restart with --nproc_per_node {count}" if count != 1 else "restart without torchrun"
            raise UserError(
                f"{folder}: its run has {count} process(es), not {run_record['processes']}; {mend}"
            )
        progress = Progress.from_dict(saved.records["progress"])
        for role, model in models.items():
            model.load_state_dict(saved.tensors[role])
        load_optimizer(optimizer, saved.tensors["optimizer"], saved.records.get("optimizer", {}))
        scaler.load_state_dict(saved.records["scaler"])
        restore_generators(saved.tensors["random"], optimizer.param_groups[0]["params"][0].device)
        versions = before["versions"]
    except UserError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'last'}: not a checkpoint of this run ({one_line(error)})") from None
    if versions != run_record["versions"]:
        words = "%s was saved with %s, now it is %s: results may differ in the last digits"
        log.warning(words, folder, versions, run_record["versions"])
    print(f"resuming {folder} at step {progress.step}")
    return progress


def restore_generators(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore this process's RNG states. Warns if the run goes on on another kind of device."""
    rank = parallel.rank()
    torch.set_rng_state(states[f"cpu.{rank}"])
    kinds = {name.partition(".")[0] for name in states} - {"cpu"} or {"cpu"}  # of the device it ran on
    if device.type in kinds:
        set_generator_state(device, states[f"{device.type}.{rank}"])
    else:
        words = "the run was saved on %s and goes on on %s: its dropout masks differ from here on"
        log.warning(words, *kinds, device.type)


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`optimizer.state_dict()` as tensors, by "<parameter's index>.<key>", and a record for JSON."""
    state = optimizer.state_dict()
    entries = sorted(state["state"].items())  # their order is that in which parameters got gradients
    values = {f"{i}.{key}": value for i, entry in entries for key, value in entry.items()}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    others = {name: value for name, value in values.items() if name not in tensors}
    record = {"class": class_name(optimizer), "state": others, "param_groups": state["param_groups"]}
    return tensors, record


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], record: dict) -> None:
    """Inverse of `optimizer_state`, by `optimizer.load_state_dict()`.

    record: {} in a checkpoint of an earlier version: our AdamW, its integer `step` among the tensors.
    Raises RuntimeError or ValueError if the state is another optimizer's or another model's.
    """
    saved = record.get("class", "optimizer.AdamW")
    if saved != class_name(optimizer):
        raise ValueError(f"its optimizer is {saved}, not {class_name(optimizer)}")
    state: dict[int, dict[str, Any]] = defaultdict(dict)
    values: dict[str, Any] = {**tensors, **record.get("state", {})}
    for name, value in values.items():
        index, _, key = name.partition(".")
        state[int(index)][key] = int(value) if key == "step" and not record else value
    groups = record.get("param_groups", optimizer.state_dict()["param_groups"])
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for param, entry in optimizer.state.items():
        for key, value in entry.items():
            # torch does not compare shapes; every state of its optimizers broadcasts to the parameter
            if isinstance(value, Tensor) and torch.broadcast_shapes(value.shape, param.shape) != param.shape:
                raise ValueError(f"its {key} does not fit a parameter of shape {tuple(param.shape)}")


def class_name(optimizer: torch.optim.Optimizer) -> str:
    """E.g. `torch.optim.adamw.AdamW`."""
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


# ----------------------------------------------------------------------------------------- resuming


def started_with(folder: str) -> dict:
    """The settings of the run that `folder`/last can go on with. Raises UserError if there is none."""
    last = Path(folder) / "last"
    if not has_checkpoint(last):
        raise UserError(f"--resume: {last} does not exist, so there is no run to go on with")
    if parallel.rank() == 0:
        restore_last(Path(folder))
    parallel.barrier()
    path = place_of(last) / "run.json"
    try:
        return parse_json(path, read_bytes(path))["config"]
    except (KeyError, UserError):
        raise UserError(f"{last}: not a checkpoint of a run") from None


def restore_last(folder: Path) -> None:
    """Put `last.previous` in the place of a damaged `last`, with a warning. That one becomes `last.damaged`.

    Raises UserError if neither is whole.
    """
    last, previous, damaged = (folder / f"last{ending}" for ending in ("", PREVIOUS, ".damaged"))
    try:
        load_checkpoint(last)
        return
    except UserError as error:
        problem = str(error)
    if not previous.is_dir():
        raise UserError(problem)
    try:
        step = load_checkpoint(previous).records["progress"]["step"]
    except (UserError, KeyError) as error:
        raise UserError(f"{problem}; the one before it cannot be used either ({one_line(error)})") from None
    shutil.rmtree(damaged, ignore_errors=True)
    os.replace(last, damaged)
    os.replace(previous, last)
    words = "%s; going on from the checkpoint before it, at step %d: the steps after it are trained again"
    log.warning(words, problem, step)


def restore_best(folder: Path, progress: Progress, score_dev: Callable[[], None]) -> None:
    """Replace a damaged `folder`/best by the model of this step, before the rest of a run is trained.

    score_dev: scores the model on dev, and saves it if there is no better one.
    """
    problem = ""
    if progress.best and parallel.rank() == 0:
        try:
            load_checkpoint(folder / "best")
        except UserError as error:
            problem = str(error)
    problem = parallel.gather(problem)[0]
    if problem:
        lost = f"the model of step {progress.best['best_step']}, {progress.best['selection_mean']:.3f} on dev"
        log.warning("%s; %s, is lost, and that of step %d takes its place", problem, lost, progress.step)
        progress.best = {}
        score_dev()


def resumed_config(config: TrainConfig, given: Iterable[str], started: dict) -> TrainConfig:
    """The settings of a resumed run: those that it was `started` with, and the `given` flags that are free.

    Raises UserError that names a given flag that would change the run's result.
    """
    try:
        started = TrainConfig.from_dict(started).to_dict()
    except UserError as error:
        raise UserError(f"{config.output_dir}: the settings of its run cannot be read ({error})") from None
    now = config.to_dict()
    for name in given:
        if name not in FREE_TO_CHANGE and now[name] != started[name]:
            why = f"the run was started with {started[name]}; another value would change its result"
            raise UserError(f"--{name} {now[name]}: {why}")
    if "epochs" in given and config.epochs != started["epochs"] and started["schedule"] == "annealed":
        raise UserError(f"--epochs {config.epochs}: with --schedule annealed they decide over every step")
    if "epochs" in given and config.epochs < started["epochs"]:
        why = f"the run was started with {started['epochs']}; it can only be given more"
        raise UserError(f"--epochs {config.epochs}: {why}")
    free = {name: getattr(config, name) for name in given if name in FREE_TO_CHANGE}
    return TrainConfig.from_dict(started | free)


# ------------------------------------------------------------------------- one process in a folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder within the block. It is made if it is missing, and removed again if it stays empty.

    The operating system drops the lock when the process ends, however that happens. Raises UserError that
    says who holds it, or that the folder cannot be written.
    """
    try:
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a+")  # noqa: SIM115  # closed below
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise UserError(f"--output_dir {str(folder)[:200]}: cannot be written ({reason})") from None
    with file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(f"--output_dir {folder}: in use by {holder}; wait, or name another") from None
        except OSError as error:
            log.warning("%s: this file system has no locks (%s); start one run at a time", folder, error)
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(folder / LOCK)
                if made:
                    folder.rmdir()  # fails if it is not empty


# ----------------------------------------------------------------------------------------- stopping


@contextlib.contextmanager
def handled_signals(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Within, `handler` gets SIGINT (Ctrl-C), SIGTERM and SIGHUP.

    A signal that is ignored stays so: nohup and background jobs set that.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows lacks one
            if number and signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            if signal.getsignal(number) == handler:  # not if something within has set another
                signal.signal(number, old)


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Within, a signal raises KeyboardInterrupt with its number, as Ctrl-C does."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt(number)

    with handled_signals(stop):
        yield


class StopSignal(contextlib.ExitStack):
    """Within, a signal only sets `received` to its number, so that the step is finished and saved.

    A second signal acts at once.
    """

    received: int | None = None

    def __enter__(self) -> "StopSignal":
        self.enter_context(handled_signals(self._receive))
        return self

    def _receive(self, number: int, frame: object) -> None:
        self.received = number
        self.close()  # puts the handlers from before back


class Interrupted(Exception):
    """The run was stopped by a signal and saved. The argument is the signal's number."""
