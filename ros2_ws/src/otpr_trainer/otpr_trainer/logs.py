# SPDX-License-Identifier: Apache-2.0
"""What training measures, to CSV files for scripts and to TensorBoard for people."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter

from otpr_policy.errors import OutputError
from otpr_policy.files import write_text

NO_STEP = -1  # the step before any row


class TrainingLog:
    """``metrics.csv``, ``evaluations.csv`` and ``tensorboard/``, where evaluations are under ``eval/``.

    Rows have a step and the seconds since training began. Those beyond the checkpoint that training goes on from are dropped, as
    they are about to be written again.
    """

    def __init__(self, directory: Path, last_step: int) -> None:
        """Opens the files in ``directory`` and drops rows after ``last_step``. Raises OutputError when they cannot be written."""
        self._directory = directory
        self._metrics = RowFile(directory / "metrics.csv")
        self._evaluations = RowFile(directory / "evaluations.csv")
        self._board = self._rewound(last_step)

    def metrics(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        """Writes one row of metrics. Raises OutputError when the disk is full, ValueError when the names changed."""
        self._write(self._metrics, "", step, seconds, metrics)

    def evaluation(self, step: int, seconds: float, numbers: Mapping[str, float]) -> None:
        """Writes one row of an evaluation. Raises as :meth:`metrics` does."""
        self._write(self._evaluations, "eval/", step, seconds, numbers)

    def rewind(self, last_step: int) -> None:
        """Drops rows after ``last_step``."""
        self._board.close()
        self._board = self._rewound(last_step)

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._board.close()

    def _rewound(self, last_step: int) -> SummaryWriter:
        try:
            self._metrics.drop_after(last_step)
            self._evaluations.drop_after(last_step)
            return SummaryWriter(str(self._directory / "tensorboard"), purge_step=last_step + 1)
        except OSError as error:
            raise OutputError(f"cannot write metrics in {self._directory}: {error.strerror or error}") from error

    def _write(self, file: "RowFile", prefix: str, step: int, seconds: float, numbers: Mapping[str, float]) -> None:
        try:
            file.append({"step": step, "seconds": round(seconds, 3), **numbers})
            for name, value in numbers.items():
                self._board.add_scalar(prefix + name, value, step)
            self._board.flush()
        except OSError as error:
            raise OutputError(f"cannot write metrics in {self._directory}: {error.strerror or error}") from error


class RowFile:
    """A CSV file of numbers by step. The first row that is appended fixes the columns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: list[str] = []  # of every row that is appended
        self._columns: list[str] = []  # of the file; a run that an earlier version began may have others too

    def append(self, row: Mapping[str, float]) -> None:
        """Appends one row, a column ``step`` included. Raises ValueError when its names are not those of the first."""
        if not self._names:
            self._begin(list(row))
        if list(row) != self._names:
            changed = ", ".join(sorted(set(row) ^ set(self._names))) or "their order"
            raise ValueError(f"{self._path.name}: each row needs the names of the first; at step {row['step']} these changed: {changed}")
        with self._path.open("a") as file:
            file.write(_csv(self._columns, [row]))

    def drop_after(self, step: int) -> None:
        """Keeps rows up to ``step``, and drops a last line that was cut off."""
        columns, rows = self._read()
        kept = [row for row in rows if int(row["step"]) <= step]
        if self._path.exists():
            write_text(self._path, _csv(columns, kept, header=True) if kept else "")

    def _begin(self, names: list[str]) -> None:
        """Settles the columns. Rows of an earlier version of the program get the new ones, empty, and lose none."""
        before, rows = self._read()
        self._names = names
        self._columns = names + [name for name in before if name not in names]
        if before != self._columns:
            write_text(self._path, _csv(self._columns, rows, header=True))

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        if not self._path.exists():
            return [], []
        reader = csv.DictReader(io.StringIO(self._path.read_text()))
        columns = list(reader.fieldnames or [])
        whole = (row for row in reader if None not in row and None not in row.values())
        return columns, [row for row in whole if row.get("step", "").isdigit()]


def _csv(columns: list[str], rows: list[dict[str, str]] | list[Mapping[str, float]], header: bool = False) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
