# SPDX-License-Identifier: Apache-2.0
"""A program in a terminal of its own, whose keys are ours to press and whose screen is ours to read."""

import fcntl
import os
import pty
import signal
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType

_POLL_S = 0.02
_KEPT = 200_000  # bytes of the screen


class Console:
    """A program in a pseudo-terminal, as a context manager that leaves none behind. To be made before there are threads."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        """Starts it."""
        self._screen = b""
        self._master, slave = pty.openpty()
        try:
            self.process = subprocess.Popen(
                list(argv), stdin=slave, stdout=slave, stderr=slave, env=dict(environment), start_new_session=True, preexec_fn=_own_terminal
            )
        finally:
            os.close(slave)
        os.set_blocking(self._master, False)

    def __enter__(self) -> "Console":
        """It runs already."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Ends it."""
        if self.ended() is None:
            self.process.send_signal(signal.SIGTERM)
        self.wait(10.0)
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def press(self, keys: str) -> None:
        """Types them."""
        with suppress(OSError):  # a program that has ended is noticed by who waits for what it does
            os.write(self._master, keys.encode())

    def text(self) -> str:
        """What it has shown; to be asked for often, for a full screen buffer would block it."""
        with suppress(OSError):  # nothing more, or the program has ended
            while shown := os.read(self._master, 65536):
                self._screen = (self._screen + shown)[-_KEPT:]
        return self._screen.decode(errors="replace")

    def last_line(self) -> str:
        """Its last line that says something: why it ended."""
        lines = [line.strip() for line in self.text().replace("\r", "\n").split("\n")]
        return next((line for line in reversed(lines) if line), "")

    def ended(self) -> int | None:
        """Its exit status, None while it runs."""
        return self.process.poll()

    def wait(self, timeout_s: float) -> int | None:
        """Waits for its end. Returns the exit status, or None when it goes on."""
        end = time.monotonic() + timeout_s
        while self.ended() is None and time.monotonic() < end:
            self.text()
            time.sleep(_POLL_S)
        return self.ended()


def _own_terminal() -> None:
    """Makes standard input the terminal that the new session belongs to, so that Ctrl-C is a signal in it as in any other."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
