# SPDX-License-Identifier: Apache-2.0
"""One job's process: deaf to the terminal's Ctrl-C, because we tell it when to stop, and never outliving us."""

import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from otpr_policy.errors import EnvironmentSetupError, OutputError
from otpr_policy.files import make_directory

OTPR = (sys.executable, "-m", "otpr_policy.cli")
_TAIL_LINES = 8
_TAIL_BYTES = 8192
_PR_SET_PDEATHSIG = 1


class Child:
    """A running command. Its messages go to a log, what it prints (one JSON object) is kept for :meth:`result`."""

    def __init__(self, program: tuple[str, ...], words: list[str], log: Path) -> None:
        """Starts it. Raises EnvironmentSetupError when it cannot be started, OutputError when the log cannot be written."""
        self.log = log
        self._output = log.with_suffix(".out")
        self._started = time.monotonic()
        make_directory(log.parent)
        environment = {"TQDM_MININTERVAL": "10", **os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        try:
            with log.open("ab") as messages, self._output.open("wb") as output:
                messages.write(f"$ otpr {shlex.join(words)}\n".encode())
                messages.flush()
                self._process = subprocess.Popen(
                    [*program, *words],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=messages,
                    start_new_session=True,  # a training that gets Ctrl-C twice does not save, and the terminal's would be one of two
                    preexec_fn=_tied_to(os.getpid()),
                )
        except OSError as error:
            if error.filename and str(error.filename) == program[0]:
                raise EnvironmentSetupError(f"cannot start {program[0]}: {error.strerror}") from error
            raise OutputError(f"cannot write {log}: {error.strerror}") from error

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def poll(self) -> int | None:
        """Exit status, None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Asks it to end: SIGTERM, which our command takes as Ctrl-C, and which unlike that no shell can have made it deaf to."""
        if self.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it and its workers at once, and waits for it."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def result(self) -> dict[str, Any] | None:
        """The JSON object that it printed, None when it printed none. Removes the file that held it."""
        try:
            data = json.loads(self._output.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        finally:
            self._output.unlink(missing_ok=True)
        return data if isinstance(data, dict) else None

    def tail(self) -> list[str]:
        """The last lines of its log."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
        lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.splitlines()]  # of a progress bar, its last state
        return [line for line in lines if line][-_TAIL_LINES:]


def _tied_to(parent: int) -> Callable[[], None] | None:
    """What a child does first: asks the kernel for SIGTERM when its parent dies. Linux has that; elsewhere None."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is None:
        return None

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return tie
