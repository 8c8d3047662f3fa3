"""The log of a run: `metrics.jsonl`, TensorBoard, and what a log line says of the steps since the one before.

Knows numbers, no model. Not handled: remote trackers. `report.py` draws plots from `metrics.jsonl`.
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
        passes both; later records are removed. A file that is shorter keeps its whole lines, with a warning.
    Raises UserError if the folder or a file in it cannot be written.
    """

    def __init__(self, folder: str | Path, size: int = 0, step: int = 0):
        self.path = Path(folder) / "metrics.jsonl"
        self._board: SummaryWriter | None = None
        self._first_step = step
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
            if self._file.tell() < size:
                size = self.path.read_bytes().rfind(b"\n") + 1
                words = "%s: it lacks records that the checkpoint counts; the log goes on without them"
                log.warning(words, self.path)
            self._file.truncate(size)
        except OSError as error:
            raise UserError(f"--output_dir {folder}: cannot be written ({error.strerror or error})") from None

    def size(self) -> int:
        """Length of `metrics.jsonl` in bytes, after all bytes are on disk.

        Raises UserError if the file no longer stands where it was opened.
        """
        if not (self.path.exists() and os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))):
            raise UserError(f"{self.path}: its folder was moved or removed during the run; nothing is saved")
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def write(self, kind: str, step: int, record: Mapping[str, Any]) -> None:
        """Add a record, name -> number. kind: train/<task>, dev/<task> or teacher/<task>."""
        try:
            self._file.write((json.dumps({"step": step, "kind": kind, **record}) + "\n").encode())
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror or error})") from None
        if self._board is None:  # at the first record, since the import takes a second
            from torch.utils.tensorboard import SummaryWriter

            purge_step = self._first_step + 1 if self._first_step else None
            self._board = SummaryWriter(self.path.parent / "tensorboard", purge_step=purge_step)
        for name, value in record.items():
            self._board.add_scalar(f"{kind}/{name}", float(value), step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


class SilentLog:
    """The log of a rank other than 0: the same methods without effect."""

    def size(self) -> int:
        return 0

    def write(self, kind: str, step: int, record: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


# one step: values by name, tokens, seconds
Step = tuple[Mapping[str, "Tensor | float"], int, SupportsFloat]


class Interval:
    """The measurements of the steps since the last log line, by task. Reading them syncs the GPU."""

    def __init__(self) -> None:
        self._steps: dict[str, list[Step]] = defaultdict(list)

    def add(
        self, task: str, values: "Mapping[str, Tensor | float]", tokens: int, seconds: SupportsFloat
    ) -> None:
        """Add a step: values (detached scalars or numbers), tokens without padding, seconds of work."""
        self._steps[task].append((values, tokens, seconds))

    def remove(self, task: str, values: "Mapping[str, Tensor | float]") -> None:
        """Remove the step that was added with this `values` object."""
        self._steps[task] = [step for step in self._steps[task] if step[0] is not values]
        if not self._steps[task]:
            del self._steps[task]

    def to_dict(self) -> dict[str, list[tuple[dict[str, float], int, float]]]:
        """The steps as JSON can hold them. Syncs the GPU."""
        return {
            task: [
                ({name: float(value) for name, value in values.items()}, tokens, float(seconds))
                for values, tokens, seconds in steps
            ]
            for task, steps in self._steps.items()
        }

    @classmethod
    def from_dict(cls, steps: Mapping[str, Any]) -> "Interval":
        """Inverse of `to_dict`, also after JSON made lists of its tuples."""
        interval = cls()
        interval._steps.update({task: [tuple(step) for step in values] for task, values in steps.items()})
        return interval

    def lacks(self, task: str, name: str) -> bool:
        """Whether no step of this task since the last report has a value of this name."""
        return not any(name in values for values, _, _ in self._steps.get(task, []))

    def report(self, lr: float) -> dict[str, dict[str, float]]:
        """A record for each task, means over its steps since the last report; then start anew."""
        records = {}
        for task, steps in self.to_dict().items():
            record = {}
            # some numbers are measured in some steps only
            for name in dict.fromkeys(name for values, _, _ in steps for name in values):
                column = [values[name] for values, _, _ in steps if name in values]
                record[name] = sum(column) / len(column)
            tokens = sum(count for _, count, _ in steps)
            seconds = sum(spent for _, _, spent in steps)
            speed = {"ms_per_step": 1000 * seconds / len(steps), "tokens_per_second": tokens / seconds}
            records[task] = record | {"lr": lr} | speed
        self._steps.clear()
        return records
