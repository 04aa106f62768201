# SPDX-License-Identifier: Apache-2.0
"""A terminal that gives each key as it is pressed, and is as it was afterwards, whatever happens in between."""

import os
import select
import sys
import termios
from contextlib import suppress
from types import TracebackType

from otpr_policy.errors import EnvironmentSetupError

_ERASE_LINE = "\r\x1b[K"
_COLUMNS = 100


class Terminal:
    """The terminal on a file descriptor, as a context manager.

    Keys come at once and are not echoed. Ctrl-C and Ctrl-Z keep their meaning, and so does a new line in what is printed.
    """

    def __init__(self, keys: int = 0, screen: int = 1) -> None:
        """Takes the descriptors of the keys and of the screen. Raises EnvironmentSetupError when the keys are no terminal."""
        if not os.isatty(keys):
            raise EnvironmentSetupError(
                "keys are read from a terminal, and standard input is none; over SSH use 'ssh -t', in a container 'docker run -it'"
            )
        self._keys = keys
        self._screen = screen
        self._saved = termios.tcgetattr(keys)
        self._status = ""

    def __enter__(self) -> "Terminal":
        """From here on each key comes at once."""
        changed = termios.tcgetattr(self._keys)
        changed[3] &= ~(termios.ICANON | termios.ECHO)
        changed[6][termios.VMIN], changed[6][termios.VTIME] = 0, 0
        termios.tcsetattr(self._keys, termios.TCSANOW, changed)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """As it was."""
        self.restore()

    def restore(self) -> None:
        """Gives the terminal its former settings back; harmless when it is gone or was restored before."""
        try:
            termios.tcsetattr(self._keys, termios.TCSADRAIN, self._saved)
            self._write("\n" if self._status else "")
        except termios.error:
            pass
        self._status = ""

    def read(self) -> str | None:
        """What was typed since the last call; None when the terminal is gone."""
        try:
            if not select.select([self._keys], [], [], 0)[0]:
                return ""
            typed = os.read(self._keys, 1024)
        except OSError:
            return None
        return typed.decode("ascii", errors="replace") if typed else None

    def print(self, text: str) -> None:
        """Prints lines above the status."""
        self._write(f"{_ERASE_LINE}{text}\n{self._status}")

    def status(self, text: str) -> None:
        """Shows a line that the next one replaces."""
        text = text[: _columns(self._screen) - 1]
        if text != self._status:
            self._status = text
            self._write(f"{_ERASE_LINE}{text}")

    def _write(self, text: str) -> None:
        with suppress(OSError):  # a screen that is gone is noticed where keys are read
            os.write(self._screen, text.encode(errors="replace"))


def _columns(descriptor: int) -> int:
    try:
        return os.get_terminal_size(descriptor).columns or _COLUMNS  # a pseudo-terminal may have none
    except OSError:
        return _COLUMNS


def standard_terminal() -> Terminal:
    """That of standard input and output. Raises EnvironmentSetupError where there is none."""
    return Terminal(sys.stdin.fileno(), sys.stdout.fileno())
