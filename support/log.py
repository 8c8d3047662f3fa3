"""The log of a run: `metrics.jsonl` and TensorBoard. Knows numbers, no model.

Not handled: remote trackers. `report.py` draws plots from `metrics.jsonl`.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.errors import UserError, one_line


class RunLog:
    """Appends records to `<folder>/metrics.jsonl` and to an event file of TensorBoard in `<folder>`.

    TensorBoard takes the name of a run from the folder of its event files.

    size, step: the length of the file in bytes and the step when the checkpoint was saved. A resumed run
        passes both; later records are removed.
    Raises UserError if the folder or a file in it cannot be written.
    """

    def __init__(self, folder: str | Path, size: int = 0, step: int = 0):
        self.path = Path(folder) / "metrics.jsonl"
        self._board: Any = None  # torch's SummaryWriter
        self._first_step = step
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
            self._file.truncate(min(size, self._file.tell()))  # it is shorter if the user deleted it
        except OSError as error:
            raise UserError(f"--output_dir {folder}: cannot be written ({one_line(error)})") from None

    def size(self) -> int:
        """Length of `metrics.jsonl` in bytes, after all bytes are on disk."""
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def write(self, kind: str, step: int, record: Mapping[str, Any]) -> None:
        """Add a record, name -> number. kind: train/<task>, dev/<task> or teacher/<task>."""
        try:
            self._file.write((json.dumps({"step": step, "kind": kind, **record}) + "\n").encode())
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({one_line(error)})") from None
        if self._board is None:  # at the first record, since the import takes a second
            from torch.utils.tensorboard import SummaryWriter

            purge_step = self._first_step + 1 if self._first_step else None
            self._board = SummaryWriter(self.path.parent, purge_step=purge_step)
        for name, value in record.items():
            self._board.add_scalar(f"{kind}/{name}", float(value), step)

    def write_hparams(self, step: int, settings: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """At the end of a run, after its records: its row in TensorBoard's table of runs (HParams).

        settings: name -> number or text. scores: metric -> value.
        """
        from torch.utils.tensorboard.summary import hparams

        assert self._board is not None, "a run ends with records"
        # SummaryWriter.add_hparams would write them to a folder of their own, a second run
        for summary in hparams(dict(settings), dict(scores)):
            self._board.file_writer.add_summary(summary)
        for name, value in scores.items():
            self._board.add_scalar(name, float(value), step)

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

    def write_hparams(self, step: int, settings: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass
