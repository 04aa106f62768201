# SPDX-License-Identifier: Apache-2.0
"""Reading ``.npz`` files that a stranger may have made: every claim of the file is checked before memory is given to it.

An archive's member names are names of arrays and nothing else: no member is ever extracted to a path. Arrays of Python objects,
which only pickle could read, are refused by name.
"""

import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from otpr_policy.errors import DemonstrationError

MAX_BYTES = 2 << 30
"""Largest sum of all arrays of one file, and largest file."""
MAX_ARRAYS = 10_000
_KINDS = "biufSU"  # numbers, truth values and text
_DAMAGE = (OSError, ValueError, TypeError, SyntaxError, EOFError, RuntimeError, MemoryError, OverflowError, zipfile.BadZipFile, zlib.error)
"""What numpy's and Python's parsers raise on bytes that they did not write."""
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an ``.npz`` file, by name.

    Raises:
        DemonstrationError: the file is missing, damaged, too large, or holds something that is no plain array; names file and array.
    """
    path = Path(path)
    try:
        check_size(path)
        with path.open("rb") as file:
            if file.read(1) == b"\x80":  # as DPPO's first releases wrote, under the same name
                raise DemonstrationError(f"{path} is a pickle, not an .npz file; pickle can run code and is never read")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MAX_ARRAYS:
                raise DemonstrationError(f"{path} has {len(members)} arrays; at most {MAX_ARRAYS} are read")
            arrays: dict[str, NDArray[Any]] = {}
            left = MAX_BYTES
            for member in members:
                name = _array_name(path, member.filename)
                if name in arrays:
                    raise DemonstrationError(f"{path} has two arrays named {name!r}")
                with archive.open(member) as stream:
                    arrays[name] = _read(path, name, stream, left)
                left -= arrays[name].nbytes
            return arrays
    except _DAMAGE as error:
        raise DemonstrationError(f"{path} is missing or damaged: {error}") from error


def check_size(path: Path) -> None:
    """Raises DemonstrationError when a file is larger than what is read, OSError when there is none."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DemonstrationError(f"{path} has {size} bytes; files up to {MAX_BYTES} bytes are read")


def check_dtype(path: Path, name: str, dtype: np.dtype[Any]) -> None:
    """Raises DemonstrationError unless arrays of the type are plain numbers or text."""
    if dtype.hasobject:
        raise DemonstrationError(f"{path}: {name!r} holds Python objects, which only pickle reads; pickle can run code and is never read")
    if dtype.kind not in _KINDS:
        raise DemonstrationError(f"{path}: {name!r} holds {dtype}, neither numbers nor text")


def _array_name(path: Path, member: str) -> str:
    name = member.removesuffix(".npy")
    if name == member or "/" in name or "\\" in name or not name.isprintable():
        raise DemonstrationError(f"{path}: member {member!r} is no array of an .npz file")
    return name


def _read(path: Path, name: str, stream: IO[bytes], left: int) -> NDArray[Any]:
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        raise DemonstrationError(f"{path}: {name!r} has npy version {version}; known: 1.0 and 2.0")
    shape, fortran, dtype = _HEADERS[version](stream)
    check_dtype(path, name, dtype)
    if any(length < 0 for length in shape) or prod(shape) * dtype.itemsize > left:
        raise DemonstrationError(f"{path}: {name!r} claims shape {shape}; all arrays of a file together may have {MAX_BYTES} bytes")
    size = prod(shape) * dtype.itemsize
    content = stream.read(size + 1)  # inflates no more than was claimed
    if len(content) != size:
        raise DemonstrationError(f"{path} is missing or damaged: {name!r} does not have the {size} bytes that its shape {shape} needs")
    values = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    return values.copy()
