# SPDX-License-Identifier: Apache-2.0
"""What child processes print, in one file each, and their last lines at hand for a message."""

import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO


class ProcessLogs:
    """Log files ``<process>.log`` in a folder, made when the process first speaks.

    A full disk loses lines, never more: the processes' pipes must be read whatever happens.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, BinaryIO] = {}
        self._last: dict[str, str] = {}

    def write(self, name: str, line: str) -> None:
        """Adds a line of a process."""
        if line.strip():
            self._last[name] = line
        with suppress(OSError):
            if name not in self._files:
                self._files[name] = open(self._directory / f"{name}.log", "wb", buffering=0)  # noqa: SIM115 (closed in __exit__)
            self._files[name].write(f"{time.strftime('%H:%M:%S')} {line}\n".encode())

    def last_line(self, name: str) -> str:
        """The last thing that a process said."""
        return self._last.get(name, "it said nothing")

    def __enter__(self) -> "ProcessLogs":
        """Nothing is opened yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Closes the files."""
        for file in self._files.values():
            with suppress(OSError):
                file.close()
