# SPDX-License-Identifier: Apache-2.0
"""What every worker process of ours does first: leave Ctrl-C to its parent, and never outlive it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Around the start of a process: Ctrl-C waits for us until after it, and finds the new process deaf from its first instruction."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the mask is inherited
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def tie_to_parent() -> None:
    """To be called in a process that ``multiprocessing`` started, before its work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent alone decides what it means
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)  # the parent was killed and cannot shut us down; there is nothing of ours to save
