"""The run's diary: `metrics.jsonl`, TensorBoard, one console line an interval, `results.json` and the closing
table.

Knows numbers, no model class. Not handled: remote trackers; plots are drawn from `metrics.jsonl` by whoever
wants them.
"""

import json
import os
from collections import defaultdict
from pathlib import Path

from support.errors import UserError


class RunLog:
    """Appends one record an interval to `<folder>/metrics.jsonl` and to TensorBoard under
    `<folder>/tensorboard`.

    A resumed run gives the length in bytes that the file had, and the step, at its checkpoint: what came
    after is forgotten.
    Raises UserError when the folder or a file in it cannot be written.
    """

    def __init__(self, folder: str | Path, size: int = 0, step: int = 0):
        self._board, self._first_step = None, step
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = (self.folder / "metrics.jsonl").open("ab", buffering=0)
            if self._file.tell() < size:
                raise UserError(
                    f"{self.folder / 'metrics.jsonl'}: shorter than when the checkpoint was"
                    " saved; the run cannot be resumed"
                )
            self._file.truncate(size)
        except OSError as error:
            raise UserError(f"--output_dir {folder}: cannot be written ({error.strerror or error})") from None

    def size(self) -> int:
        """Length of `metrics.jsonl` in bytes, all of them on disk."""
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def write(self, prefix: str, step: int, record: dict) -> None:
        """`record` maps names to numbers; `prefix` is train/<task>, dev/<task> or teacher/<task>."""
        try:
            self._file.write((json.dumps({"step": step, "kind": prefix, **record}) + "\n").encode())
        except OSError as error:
            raise UserError(
                f"{self.folder / 'metrics.jsonl'}: cannot be written ({error.strerror or error})"
            ) from None
        if self._board is None:  # imported at the first record: it would hold up the first step by a second
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
    """Stands for the log in a process that leaves it to another: the same calls, nothing written."""

    def size(self) -> int:
        return 0

    def write(self, prefix: str, step: int, record: dict) -> None:
        pass

    def close(self) -> None:
        pass


class Interval:
    """Collects what the steps since the last log line measured, without waiting for a GPU until the line is
    due."""

    def __init__(self):
        self._steps = defaultdict(list)  # task -> [(values by name, tokens, seconds)]

    def add(self, task: str, values: dict, tokens: int, seconds: float) -> None:
        """One step: its values (detached 0-dim tensors or numbers), its real tokens, its wall-clock
        seconds."""
        self._steps[task].append((values, tokens, seconds))

    def remove(self, task: str, values: dict) -> None:
        """Take back the step that `values` are of."""
        self._steps[task] = [step for step in self._steps[task] if step[0] is not values]
        if not self._steps[task]:
            del self._steps[task]

    def to_dict(self) -> dict:
        """As JSON can hold it; waits for a GPU."""
        return {
            task: [
                ({name: float(value) for name, value in values.items()}, tokens, seconds)
                for values, tokens, seconds in steps
            ]
            for task, steps in self._steps.items()
        }

    @classmethod
    def from_dict(cls, steps: dict) -> "Interval":
        """Inverse of `to_dict`."""
        interval = cls()
        interval._steps.update({task: [tuple(step) for step in values] for task, values in steps.items()})
        return interval

    def lacks(self, task: str) -> bool:
        """Whether no step of this task has been added since the last report."""
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
            seconds = sum(spent for _, _, spent in steps)
            record |= {
                "lr": lr,
                "ms_per_step": 1000 * seconds / len(steps),
                "tokens_per_second": tokens / seconds,
            }
            records[task] = record
        self._steps.clear()
        return records
