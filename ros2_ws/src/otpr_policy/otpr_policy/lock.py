# SPDX-License-Identifier: Apache-2.0
"""One command at a time in a directory that it goes on in."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from otpr_policy.errors import OutputError
from otpr_policy.files import make_directory


@contextmanager
def locked(directory: Path, command: str) -> Iterator[None]:
    """Keeps a second process out of a directory, and makes the directory. A process that ends in any way gives it back.

    Args:
        directory: holds the file ``.lock`` from now on.
        command: what works there, for the message.

    Raises:
        OutputError: another process is in it, or it cannot be made.
    """
    make_directory(directory)
    handle = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(f"another '{command}' is at work in {directory}") from error
        yield
    finally:
        os.close(handle)
