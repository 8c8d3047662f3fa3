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
from support.files import parse_json, read_bytes, read_json, sync_folder
from support.progress import Progress

try:
    import fcntl
except ImportError:  # Windows has no locks, and a run's folder is not protected there
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("smart_bert")
MANIFEST = "manifest.json"
ENDINGS = ("json", "safetensors")
PREVIOUS = ".previous"  # ending of the folder with the checkpoint before
LOCK = "run.lock"  # its text says who holds it
# Settings that may change when a run is resumed, since its numbers stay the same. Files may, because their
# content is compared; epochs may only grow.
FREE_TO_CHANGE = {"epochs", "logging_steps", "log_level", "save_steps", "output_dir", "data_dir", "files"}
FREE_TO_CHANGE |= {"unlabelled_file", "test_file", "use_gpu", "resume", "skip_nonfinite", "no_report"}
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
        if not folder.exists() and previous.exists():
            os.replace(previous, folder)  # an earlier crash came between the renames below
        shutil.rmtree(new, ignore_errors=True)
        _write_folder(new, checkpoint)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            if previous.exists():  # a crash while it is deleted must not leave half of it under its name
                os.replace(previous, old)
            os.replace(folder, previous)
        os.replace(new, folder)
        sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        why = f"cannot write the checkpoint ({one_line(error)}); an earlier one is kept"
        raise UserError(f"{folder}: {why}") from None
    if not keep_previous:
        shutil.rmtree(previous, ignore_errors=True)


def _write_folder(folder: Path, checkpoint: Checkpoint) -> None:
    """Write all files and the manifest, and wait until they are on disk."""
    folder.mkdir(parents=True)
    for name, tensors in checkpoint.tensors.items():
        rows = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        safetensors.torch.save_file(rows, folder / f"{name}.safetensors", metadata={"format": "pt"})
    for name, record in checkpoint.records.items():
        (folder / f"{name}.json").write_text(json.dumps(record, indent=1))
    digests = {file.name: _sync_file(file) for file in sorted(folder.iterdir())}
    for name, text in checkpoint.texts.items():
        (folder / name).write_text(text, encoding="utf-8")
        _sync_file(folder / name)
    (folder / MANIFEST).write_text(json.dumps(digests, indent=1))
    _sync_file(folder / MANIFEST)
    sync_folder(folder)


def _sync_file(file: Path) -> str:
    """Wait until a file is on disk. Returns its SHA-256."""
    with open(file, "rb+") as opened:
        os.fsync(opened.fileno())
        return hashlib.file_digest(opened, "sha256").hexdigest()


def place_of(folder: str | Path) -> Path:
    """The folder, or `<folder>.previous` if a crash between two renames has left that one alone."""
    previous = Path(f"{folder}{PREVIOUS}")
    return previous if not os.path.isdir(folder) and previous.is_dir() else Path(folder)


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
            why = "damaged, by its checksum; use another checkpoint"
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


def run_record(
    config: TrainConfig, data: Mapping[tuple[str, str], TokenizedDataset], source: str, processes: int
) -> dict:
    """The record of a run in each of its checkpoints.

    source: where the data is from, in a word or two. processes: how many the run was started with.
    """
    return {
        "config": config.to_dict(),
        "trained_tasks": list(config.tasks),
        "data": source,
        "processes": processes,
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
    """Write `folder`/last: everything that `load_last` needs. Every rank calls it; rank 0 writes.

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

    Warns if `folder`/best is damaged, or of a later step because the run died before it saved `last`: the
    best of the remaining evaluations takes its place. Raises UserError if `last` is not this run's: other
    data, model or optimizer.
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
        progress = Progress.from_dict(saved.records["progress"])
        for role, model in models.items():
            model.load_state_dict(saved.tensors[role])
        load_optimizer(optimizer, saved.tensors["optimizer"], saved.records["optimizer"])
        scaler.load_state_dict(saved.records["scaler"])
        restore_generators(saved.tensors["random"], optimizer.param_groups[0]["params"][0].device)
        versions = before["versions"]
    except UserError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'last'}: not a checkpoint of this run ({one_line(error)})") from None
    if progress.best:
        try:
            step = load_checkpoint(folder / "best").records["run"].get("best_step")
            if step != progress.best["best_step"]:
                raise UserError(f"{folder / 'best'}: is of step {step}, later than step {progress.step}")
        except UserError as error:
            log.warning("%s; the best of the remaining evaluations takes its place", error)
            progress.best = {}
    if versions != run_record["versions"]:
        words = "%s was saved with %s, now it is %s: results may differ in the last digits"
        log.warning(words, folder, versions, run_record["versions"])
    print(f"resuming {folder} at step {progress.step}")
    return progress


def restore_generators(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore this rank's RNG states.

    Warns if the run moved to another kind of device, or to another number of processes. A rank without saved
    states gets a stream of its own, by rank 0's state.
    """
    rank = parallel.rank()
    saved = sum(name.startswith("cpu.") for name in states)  # number of ranks
    if saved != parallel.size():
        words = "the run goes from %d to %d process(es): its dropout masks differ from here on"
        log.warning(words + ", its batches stay the same", saved, parallel.size())
    if rank >= saved:
        torch.set_rng_state(states["cpu.0"])
        torch.manual_seed(int(torch.randint(2**62, ())) + rank)  # of all devices
        return
    torch.set_rng_state(states[f"cpu.{rank}"])
    kinds = {name.partition(".")[0] for name in states} - {"cpu"} or {"cpu"}  # of the device it ran on
    if device.type in kinds:
        set_generator_state(device, states[f"{device.type}.{rank}"])
    else:
        log.warning("the run moves from %s to %s: its dropout masks differ from here on", *kinds, device.type)


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`optimizer.state_dict()` as tensors, by "<parameter's index>.<key>", and a record for JSON."""
    state = optimizer.state_dict()
    entries = sorted(state["state"].items())  # unsorted, in the order in which parameters got gradients
    values = {f"{i}.{key}": value for i, entry in entries for key, value in entry.items()}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    others = {name: value for name, value in values.items() if name not in tensors}
    record = {"class": class_name(optimizer), "state": others, "param_groups": state["param_groups"]}
    return tensors, record


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], record: dict) -> None:
    """Inverse of `optimizer_state`. Raises ValueError if the state is another optimizer's or model's."""
    if record["class"] != class_name(optimizer):
        raise ValueError(f"its optimizer is {record['class']}, not {class_name(optimizer)}")
    state: dict[int, dict[str, Any]] = defaultdict(dict)
    values: dict[str, Any] = {**tensors, **record["state"]}
    for name, value in values.items():
        index, _, key = name.partition(".")
        state[int(index)][key] = value
    optimizer.load_state_dict({"state": state, "param_groups": record["param_groups"]})


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
    try:
        return read_json(place_of(last) / "run.json")["config"]
    except (KeyError, UserError):
        raise UserError(f"{last}: not a checkpoint of a run") from None


def processes_of(folder: Path) -> int:
    """How many processes the run in `folder` was started with: its batches are made for so many."""
    try:
        return int(read_json(place_of(folder / "last") / "run.json")["processes"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{folder / 'last'}: not a checkpoint of a run") from None


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
    try:
        step = load_checkpoint(previous).records["progress"]["step"]
    except (UserError, KeyError) as error:
        before = one_line(error).replace(f"{folder}/", "")
        raise UserError(f"{problem}; the one before it cannot be used either ({before})") from None
    shutil.rmtree(damaged, ignore_errors=True)
    os.replace(last, damaged)
    os.replace(previous, last)
    words = "%s; going on from the checkpoint before it, at step %d: the steps after it are trained again"
    log.warning(words, problem, step)


def resumed_config(config: TrainConfig, given: Iterable[str], started: dict) -> TrainConfig:
    """The settings of a resumed run: those that it was `started` with, and the `given` flags that are free.

    A file flag replaces that file alone; the others stay.

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
    free["files"] = started["files"] | config.files
    return TrainConfig.from_dict(started | free)


# ----------------------------------------------------------------------------- one run in a folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder within the block; the ranks of one run hold it together.

    It is made if it is missing, and removed again if it stays empty. The operating system drops the lock when
    the process ends, however that happens. Raises UserError that says who holds it, or that the folder cannot
    be written.
    """
    with contextlib.ExitStack() as stack:
        problem = ""
        if parallel.rank() == 0:
            try:
                stack.enter_context(_lock_file(folder))
            except BlockingIOError as error:
                problem = f"--output_dir {folder}: in use by {error}; wait, or name another"
            except OSError as error:
                problem = f"--output_dir {str(folder)[:200]}: cannot be written ({one_line(error)})"
        if problem := parallel.gather(problem)[0]:
            raise UserError(problem)
        yield


@contextlib.contextmanager
def _lock_file(folder: Path) -> Iterator[None]:
    """Raises BlockingIOError with the name of the holder."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a+") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise BlockingIOError(file.read().strip() or "another process") from None
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


def signals_raise() -> contextlib.AbstractContextManager[None]:
    """Within, a signal raises KeyboardInterrupt with its number, as Ctrl-C does."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt(number)

    return handled_signals(stop)


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
