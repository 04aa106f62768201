# SPDX-License-Identifier: Apache-2.0
"""Writing files so that a crash at any moment leaves either the old file or the new one, never half of one."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from otpr_policy.errors import OutputError


def _usual_mode() -> int:
    mask = os.umask(0)  # the only way to read it is to set it; done once, before there are threads
    os.umask(mask)
    return 0o666 & ~mask


_USUAL_MODE = _usual_mode()


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``target``; on success it is synced and renamed onto it, on failure removed.

    Raises:
        OutputError: the folder cannot be written or the disk is full. ``target`` then is what it was before.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        os.chmod(temporary, _USUAL_MODE)  # mkstemp makes 0600
        os.replace(temporary, target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    with suppress(OSError):  # the new file is in place; that its name survives a power cut is not every file system's to promise
        _sync(target.parent)


def write_bytes(target: Path, content: bytes) -> None:
    """Replaces ``target`` with ``content`` atomically. Raises OutputError, see :func:`atomic_path`."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def write_text(target: Path, content: str) -> None:
    """Replaces ``target`` with UTF-8 ``content`` atomically. Raises OutputError, see :func:`atomic_path`."""
    write_bytes(target, content.encode())


def refuse_existing(target: Path, overwrite: bool) -> None:
    """Raises OutputError when ``target`` exists and the user did not ask to overwrite it."""
    if Path(target).exists() and not overwrite:
        raise OutputError(f"{target} exists; choose another path or pass --overwrite")


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
