"""The log of a run: `metrics.jsonl`, TensorBoard, console lines and the tables of scores.

This module knows numbers, no model class. Not handled: remote trackers. Plots are drawn from `metrics.jsonl`
by other programs.
"""

import json
import logging
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat

from support.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger("smart_bert")


class RunLog:
    """Appends records to `<folder>/metrics.jsonl` and to TensorBoard in `<folder>/tensorboard`.

    size, step: the length of the file in bytes and the step when the checkpoint was saved. A resumed run
        passes both; later records are removed. Where records are missing, a warning says so and the log goes
        on with what is there.
    Raises UserError if the folder or a file in it cannot be written.
    """

    def __init__(self, folder: str | Path, size: int = 0, step: int = 0):
        self._board: SummaryWriter | None = None
        self._first_step = step
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = (self.folder / "metrics.jsonl").open("ab", buffering=0)
            if self._file.tell() < size:
                size = self._whole_lines()
                words = "%s: it lacks records that the checkpoint counts; the log goes on without them"
                log.warning(words, self.folder / "metrics.jsonl")
            self._file.truncate(size)
        except OSError as error:
            raise UserError(f"--output_dir {folder}: cannot be written ({error.strerror or error})") from None

    def _whole_lines(self) -> int:
        """Length in bytes of the records that are complete."""
        return (self.folder / "metrics.jsonl").read_bytes().rfind(b"\n") + 1

    def size(self) -> int:
        """Length of `metrics.jsonl` in bytes, after all bytes are on disk.

        Raises UserError if the file no longer stands where it was opened: the folder was moved or removed.
        """
        path = self.folder / "metrics.jsonl"
        if not (path.exists() and os.path.samestat(path.stat(), os.fstat(self._file.fileno()))):
            raise UserError(
                f"{path}: gone; its folder was moved or removed during the run, so nothing is saved"
            )
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def write(self, prefix: str, step: int, record: dict[str, Any]) -> None:
        """Adds one record (name -> number). `prefix` is train/<task>, dev/<task> or teacher/<task>."""
        try:
            self._file.write((json.dumps({"step": step, "kind": prefix, **record}) + "\n").encode())
        except OSError as error:
            raise UserError(
                f"{self.folder / 'metrics.jsonl'}: cannot be written ({error.strerror or error})"
            ) from None
        if self._board is None:  # imported at the first record, since the import takes a second
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(
                self.folder / "tensorboard", purge_step=self._first_step + 1 if self._first_step else None
            )
        for name, value in record.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(f"{prefix}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


class SilentLog:
    """The log of a process that does not write: the same methods without effect."""

    def size(self) -> int:
        return 0

    def write(self, prefix: str, step: int, record: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


# one step: values by name, tokens, seconds
Step = tuple[Mapping[str, "Tensor | float"], int, SupportsFloat]


class Interval:
    """Collects the measurements of the steps since the last log line. The host waits for a GPU only when the
    line is written."""

    def __init__(self) -> None:
        self._steps: dict[str, list[Step]] = defaultdict(list)  # by task

    def add(
        self, task: str, values: "Mapping[str, Tensor | float]", tokens: int, seconds: SupportsFloat
    ) -> None:
        """Adds one step: values (detached 0-dim tensors or numbers), real tokens, seconds of work."""
        self._steps[task].append((values, tokens, seconds))

    def remove(self, task: str, values: "Mapping[str, Tensor | float]") -> None:
        """Removes the step that was added with this `values` object."""
        self._steps[task] = [step for step in self._steps[task] if step[0] is not values]
        if not self._steps[task]:
            del self._steps[task]

    def to_dict(self) -> dict[str, list[tuple[dict[str, float], int, float]]]:
        """The steps as JSON can hold them. Waits for a GPU."""
        return {
            task: [
                ({name: float(value) for name, value in values.items()}, tokens, float(seconds))
                for values, tokens, seconds in steps
            ]
            for task, steps in self._steps.items()
        }

    @classmethod
    def from_dict(cls, steps: dict[str, Any]) -> "Interval":
        """The interval of a `to_dict` result, also after JSON made lists of its tuples."""
        interval = cls()
        interval._steps.update({task: [tuple(step) for step in values] for task, values in steps.items()})
        return interval

    def lacks(self, task: str) -> bool:
        """Whether this task has no step since the last report."""
        return task not in self._steps

    def report(self, lr: float) -> dict[str, dict[str, float]]:
        """A record for each task, means over its steps since the last report; then starts anew."""
        records = {}
        for task, steps in self._steps.items():
            # some numbers are measured in some steps only
            names = dict.fromkeys(name for values, _, _ in steps for name in values)
            columns = {
                name: [float(values[name]) for values, _, _ in steps if name in values] for name in names
            }
            record = {name: sum(column) / len(column) for name, column in columns.items()}
            tokens = sum(count for _, count, _ in steps)
            seconds = sum(float(spent) for _, _, spent in steps)
            record |= {
                "lr": lr,
                "ms_per_step": 1000 * seconds / len(steps),
                "tokens_per_second": tokens / seconds,
            }
            records[task] = record
        self._steps.clear()
        return records
