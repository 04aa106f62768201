# SPDX-License-Identifier: Apache-2.0
"""Reading HDF5 files that a stranger may have made. The only file that imports h5py.

HDF5 can point out of a file (external links, external storage, virtual datasets), load code to inflate data (filter plugins) and
carry pickled bytes as opaque data. A file that does any of this is refused by the name of the object, before anything is read.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from otpr_policy.errors import DemonstrationError, EnvironmentSetupError
from otpr_trainer.data.archives import MAX_BYTES, check_size

MAX_OBJECTS = 200_000
MAX_DEPTH = 16
MAX_CHUNK_BYTES = 256 << 20
"""Largest piece that a dataset is stored in: all of it is unpacked, however little of it is read."""
_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}  # those that h5py brings itself
_KINDS = "biuf"


_DAMAGE = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError)
"""What h5py raises on bytes that it did not write."""
_Method = TypeVar("_Method", bound=Callable[..., Any])


def library() -> Any:
    """Module h5py. Raises EnvironmentSetupError when it is not installed."""
    try:
        import h5py

        return h5py
    except ImportError as error:
        raise EnvironmentSetupError("robomimic files are HDF5, which needs h5py; install it with 'pip install h5py'") from error


def _guarded(method: _Method) -> _Method:
    """Damage that shows only when something is read, said like any other."""

    @wraps(method)
    def call(self: "Hdf5File", name: str, *rest: Any) -> Any:
        try:
            return method(self, name, *rest)
        except _DAMAGE as error:
            raise DemonstrationError(f"{self._path} is damaged at {name!r}: {error}") from error

    return call  # type: ignore[return-value]


class Hdf5File:
    """An open file that has been looked through. Names are paths within the file, such as ``data/demo_0/actions``."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file = path, file
        self._left = MAX_BYTES

    @_guarded
    def names(self, group: str) -> list[str]:
        """Names in a group, sorted; none where there is no such group."""
        found = self._file.get(group)
        return sorted(found) if isinstance(found, library().Group) else []

    @_guarded
    def has(self, name: str) -> bool:
        """Whether there is an object of this name."""
        return name in self._file

    @_guarded
    def array(self, name: str) -> NDArray[Any]:
        """A dataset of numbers. Raises DemonstrationError naming it, when there is none or it is no plain array."""
        dataset = self._file.get(name)
        if not isinstance(dataset, library().Dataset):
            siblings = ", ".join(self.names(name.rpartition("/")[0])) or "nothing"
            raise DemonstrationError(f"{self._path}: dataset {name!r} is missing; its group has {siblings}")
        if dataset.dtype.kind not in _KINDS or dataset.shape is None:
            raise DemonstrationError(f"{self._path}: {name!r} holds {dataset.dtype}, not numbers")
        size = prod(dataset.shape) * dataset.dtype.itemsize
        chunk = prod(dataset.chunks or (0,)) * dataset.dtype.itemsize
        if chunk > MAX_CHUNK_BYTES:
            raise DemonstrationError(f"{self._path}: {name!r} is stored in pieces of {chunk} bytes; at most {MAX_CHUNK_BYTES} are read")
        if size > self._left:
            raise DemonstrationError(f"{self._path}: {name!r} has {size} bytes; {MAX_BYTES} bytes are read of one file")
        self._left -= size
        return np.asarray(dataset[()])

    def numbers(self, name: str, shape: tuple[int | None, ...]) -> NDArray[np.float64]:
        """A dataset of finite numbers of a shape, in which None fits any length. Raises DemonstrationError naming it and the place."""
        values = self.array(name)
        if values.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, values.shape, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise DemonstrationError(f"{self._path}: {name!r} has shape {values.shape}, expected ({wanted})")
        values = values.astype(np.float64)
        if not np.isfinite(values).all():
            where = tuple(map(int, np.argwhere(~np.isfinite(values))[0]))
            raise DemonstrationError(f"{self._path}: {name!r} holds a number that is not finite: {values[where]} at {list(where)}")
        return values

    @_guarded
    def texts(self, name: str) -> list[str]:
        """A dataset of text. Raises DemonstrationError naming it."""
        dataset = self._file.get(name)
        if not isinstance(dataset, library().Dataset) or dataset.ndim != 1 or len(dataset) > MAX_OBJECTS:
            raise DemonstrationError(f"{self._path}: {name!r} is no list of names")
        if dataset.dtype.kind != "S" and library().check_string_dtype(dataset.dtype) is None:
            raise DemonstrationError(f"{self._path}: {name!r} holds {dataset.dtype}, not names")
        return [_decoded(self._path, name, value) for value in dataset[()]]

    @_guarded
    def text(self, name: str, key: str) -> str | None:
        """A text attribute, or None where there is none. Raises DemonstrationError when it is something else."""
        attributes = self._file[name].attrs
        if key not in attributes:
            return None
        kind = attributes.get_id(key).dtype
        if attributes.get_id(key).shape != () or (kind.kind != "S" and library().check_string_dtype(kind) is None):
            raise DemonstrationError(f"{self._path}: attribute {key!r} of {name!r} holds {kind}, not text")
        return _decoded(self._path, f"{name}.{key}", attributes[key])

    @_guarded
    def integer(self, name: str, key: str) -> int | None:
        """A whole-number attribute, or None where there is none. Raises DemonstrationError when it is something else."""
        attributes = self._file[name].attrs
        if key not in attributes:
            return None
        identity = attributes.get_id(key)
        if identity.dtype.kind not in "iu" or identity.shape != ():
            raise DemonstrationError(f"{self._path}: attribute {key!r} of {name!r} is no whole number")
        return int(attributes[key])


@contextmanager
def open_hdf5(path: Path) -> Iterator[Hdf5File]:
    """Opens a file for reading.

    Raises:
        EnvironmentSetupError: h5py is not installed.
        DemonstrationError: no HDF5 file, too large, or an object in it points elsewhere, needs a plugin or holds no plain data.
    """
    path, open_file = Path(path), library().File
    try:
        check_size(path)
        file = open_file(path, "r")
    except _DAMAGE as error:
        raise DemonstrationError(f"{path} is missing, damaged or no HDF5 file: {error}") from error
    with file:
        try:
            _check_group(path, file, "", [0], set(), 0)
        except _DAMAGE as error:
            raise DemonstrationError(f"{path} is damaged: {error}") from error
        yield Hdf5File(path, file)


def _check_group(path: Path, group: Any, name: str, count: list[int], seen: set[Any], depth: int) -> None:
    h5 = library()
    identity = h5.h5o.get_info(group.id).addr
    if identity in seen or depth > MAX_DEPTH:
        raise DemonstrationError(f"{path}: group {name!r} contains itself or lies more than {MAX_DEPTH} deep")
    seen.add(identity)
    for child in list(group):
        full = f"{name}/{child}".lstrip("/")
        count[0] += 1
        if count[0] > MAX_OBJECTS:
            raise DemonstrationError(f"{path} has more than {MAX_OBJECTS} objects")
        if not isinstance(group.get(child, getlink=True), h5.HardLink):
            raise DemonstrationError(f"{path}: {full!r} is a link, which could lead to another file; links are not followed")
        item = group[child]
        if isinstance(item, h5.Group):
            _check_group(path, item, full, count, seen, depth + 1)
        elif isinstance(item, h5.Dataset):
            _check_dataset(path, item, full)
        else:
            raise DemonstrationError(f"{path}: {full!r} is neither a group nor a dataset")


def _check_dataset(path: Path, dataset: Any, name: str) -> None:
    h5 = library()
    if dataset.is_virtual or dataset.external:
        raise DemonstrationError(f"{path}: {name!r} keeps its numbers in another file, which is not opened")
    creation = dataset.id.get_create_plist()
    for index in range(creation.get_nfilters()):
        code = creation.get_filter(index)[0]
        if code not in _FILTERS:
            known = ", ".join(_FILTERS.values())
            raise DemonstrationError(f"{path}: {name!r} is packed with filter {code}, which needs a plugin; known: {known}")
    if dataset.dtype.kind not in f"{_KINDS}S" and h5.check_string_dtype(dataset.dtype) is None:
        raise DemonstrationError(
            f"{path}: {name!r} holds {dataset.dtype}, neither numbers nor text; pickled objects, which can run code, are never read"
        )


def _decoded(path: Path, name: str, value: Any) -> str:
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise DemonstrationError(f"{path}: {name!r} is not UTF-8 text") from error
