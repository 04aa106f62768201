# SPDX-License-Identifier: Apache-2.0
"""Starting child processes that a Ctrl-C in the terminal does not catch half-way through their imports."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    """SIGINT is ignored inside, and by every process started inside until it sets a handler of its own.

    Does nothing outside the main thread, where signals cannot be set.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
