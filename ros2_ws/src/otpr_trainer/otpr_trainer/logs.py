# SPDX-License-Identifier: Apache-2.0
"""Training metrics, to a CSV file for scripts and to TensorBoard for people."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter

from otpr_policy.errors import OutputError
from otpr_policy.files import write_text


class MetricsLog:
    """Rows of metrics by step. After a resume, rows beyond the checkpoint are dropped, as they are about to be written again."""

    def __init__(self, directory: Path, resume_step: int) -> None:
        """Opens ``metrics.csv`` and ``tensorboard/`` in ``directory``. Raises OutputError when they cannot be written."""
        self._path = directory / "metrics.csv"
        self._columns: list[str] | None = None
        try:
            self._drop_rows_after(resume_step)
            self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=resume_step + 1)
        except OSError as error:
            raise OutputError(f"cannot write metrics in {directory}: {error.strerror or error}") from error

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one row. The first row fixes the columns. Raises OutputError when the disk is full."""
        row = {"step": step, **metrics}
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns or list(row), lineterminator="\n")
        if self._columns is None:
            self._columns = list(row)
            writer.writeheader()
        writer.writerow(row)
        try:
            with self._path.open("a") as file:
                file.write(text.getvalue())
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()
        except OSError as error:
            raise OutputError(f"cannot write metrics to {self._path}: {error.strerror or error}") from error

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._board.close()

    def _drop_rows_after(self, step: int) -> None:
        if not self._path.exists():
            return
        header, *rows = self._path.read_text().splitlines() or [""]
        kept = [row for row in rows if row.split(",")[0].isdigit() and int(row.split(",")[0]) <= step]
        if kept:
            self._columns = header.split(",")
        write_text(self._path, "".join(line + "\n" for line in ([header, *kept] if kept else [])))
