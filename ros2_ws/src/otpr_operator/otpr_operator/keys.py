# SPDX-License-Identifier: Apache-2.0
"""Single keys from a plain terminal, without waiting: works over SSH and in containers, and needs no thread."""

import os
import select
import sys
import termios
import tty
from collections.abc import Mapping
from typing import Any

from otpr_operator.session import Action

ACTIONS: Mapping[str, Action] = {
    "s": Action.START,
    "y": Action.SUCCESS,
    "n": Action.FAILURE,
    " ": Action.SAVE,
    "d": Action.DISCARD,
    "r": Action.REDO,
}
LEGEND = "keys: s start · y success · n failure · space save · d discard · r redo · Ctrl-C end"


class Keys:
    """Keys pressed in the terminal of this process. Without a terminal, or in the background, there are none."""

    def __init__(self, descriptor: int | None = None) -> None:
        """``descriptor``: of the terminal, by default standard input."""
        self._descriptor = sys.stdin.fileno() if descriptor is None else descriptor
        self._before: list[Any] | None = None
        if os.isatty(self._descriptor) and os.tcgetpgrp(self._descriptor) == os.getpgrp():
            self._before = termios.tcgetattr(self._descriptor)
            tty.setcbreak(self._descriptor)  # single keys and no echo; Ctrl-C stays a signal

    @property
    def active(self) -> bool:
        """Whether there is a terminal."""
        return self._before is not None

    def pressed(self) -> str:
        """The keys since the last call."""
        if not self.active or not select.select([self._descriptor], [], [], 0)[0]:
            return ""
        return os.read(self._descriptor, 64).decode(errors="ignore")

    def close(self) -> None:
        """Gives the terminal back as it was."""
        if self._before is not None:
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)
            self._before = None
