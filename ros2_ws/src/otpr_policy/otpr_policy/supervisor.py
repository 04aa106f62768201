# SPDX-License-Identifier: Apache-2.0
"""Child processes that live and end together: starts them, labels their output, and leaves none behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType

from otpr_policy.bringup import Process
from otpr_policy.errors import EnvironmentSetupError

SUPERVISOR_VARIABLE = "OTPR_SUPERVISOR_PID"  # tells a node whose child it is, so that it ends when that process is killed
_POLL_S = 0.02


@dataclass(frozen=True)
class Exit:
    """A process that has ended. ``status`` is negative for a signal's number, as in :mod:`subprocess`."""

    name: str
    status: int

    def __str__(self) -> str:
        """What happened, for a person."""
        how = f"by {signal.Signals(-self.status).name}" if self.status < 0 else f"with exit status {self.status}"
        return f"{self.name} ended {how}"


def print_line(name: str, line: str) -> None:
    """Prints one line of a process to standard error, after the process's name."""
    print(f"[{name}] {line}", file=sys.stderr, flush=True)


class Supervisor:
    """Starts processes and stops them together. As a context manager it stops whatever is left, however the block ends.

    The processes stay in our process group: Ctrl-C in a terminal reaches them even while we are busy.
    """

    def __init__(self, on_line: Callable[[str, str], None] = print_line) -> None:
        """``on_line`` gets each line of output with its process's name, from one thread per process."""
        self._on_line = on_line
        self._children: dict[str, subprocess.Popen[str]] = {}
        self._readers: list[threading.Thread] = []

    def __enter__(self) -> "Supervisor":
        """Nothing is started yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Stops what is left."""
        self.stop()

    def start(self, process: Process, environment: Mapping[str, str] | None = None) -> None:
        """Starts a process; without ``environment`` it inherits ours. Raises EnvironmentSetupError when it cannot be started."""
        if process.name in self._children:
            raise ValueError(f"{process.name} was started before")
        try:
            child = subprocess.Popen(
                process.argv,
                env={**(os.environ if environment is None else environment), SUPERVISOR_VARIABLE: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",  # a stray byte in a log line must not end the reader, or the process would block on a full pipe
            )
        except OSError as error:
            raise EnvironmentSetupError(f"cannot start {process.name} ({process.argv[0]}): {error.strerror}") from error
        self._children[process.name] = child
        reader = threading.Thread(target=self._read, args=(process.name, child), name=f"output of {process.name}", daemon=True)
        reader.start()
        self._readers.append(reader)

    def poll(self) -> Exit | None:
        """The first process, in starting order, that has ended; None while all run."""
        for name, child in self._children.items():
            status = child.poll()
            if status is not None:
                return Exit(name, status)
        return None

    def stop(self, grace_s: float = 5.0) -> list[Exit]:
        """Ends every process: SIGINT, after ``grace_s`` SIGTERM, after another ``grace_s`` SIGKILL. Returns how each ended.

        Interrupting the wait (a second Ctrl-C) skips the grace. Calling it again is harmless.
        """
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._send(number)
                if self._all_ended(grace_s):
                    break
        finally:
            self._send(signal.SIGKILL)
            exits = [Exit(name, child.wait()) for name, child in self._children.items()]
            for reader in self._readers:
                reader.join(timeout=1.0)  # a grandchild may still hold the pipe; its lines are not worth waiting for
        return exits

    def _send(self, number: signal.Signals) -> None:
        for child in self._children.values():
            if child.poll() is None:
                child.send_signal(number)

    def _all_ended(self, within_s: float) -> bool:
        deadline = time.monotonic() + within_s
        while any(child.poll() is None for child in self._children.values()):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def _read(self, name: str, child: "subprocess.Popen[str]") -> None:
        assert child.stdout is not None
        with child.stdout:
            for line in child.stdout:
                self._on_line(name, line.rstrip("\n"))
