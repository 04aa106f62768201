# SPDX-License-Identifier: Apache-2.0
"""Lines from a terminal or a pipe, without waiting for them."""

import os
import select

END = "p"  # what a terminal that is gone answers: pause


class TerminalLines:
    """Lines that arrive on a file descriptor. Calling it returns the next line, None as long as there is none, ``p`` at its end."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pending = b""
        self._ended = False

    def __call__(self) -> str | None:
        """See the class."""
        while b"\n" not in self._pending and not self._ended and select.select([self._descriptor], [], [], 0)[0]:
            try:
                read = os.read(self._descriptor, 4096)
            except OSError:  # a terminal that was closed under us
                read = b""
            self._pending += read
            self._ended = not read
        line, newline, rest = self._pending.partition(b"\n")
        if newline:
            self._pending = rest
            return line.decode(errors="replace").rstrip("\r")
        return END if self._ended else None
