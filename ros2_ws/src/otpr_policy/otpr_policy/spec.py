# SPDX-License-Identifier: Apache-2.0
"""What a policy reads and what it writes: named fields with units and ranges, in a stated order.

A vector never travels without its spec. Order exists here and nowhere else.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otpr_policy.errors import SpecError, unknown

Array = NDArray[np.float64]


class Semantics(Enum):
    """What a field's numbers mean."""

    MEASURED = "measured"  # read from the robot or the scene
    ABSOLUTE = "absolute"  # a command in the field's own coordinates
    DELTA = "delta"  # a command relative to the newest measurement


@dataclass(frozen=True)
class Field:
    """One named group of numbers.

    ``low`` and ``high`` are, for an observation, the range seen in training, and for an action its hard bounds.
    Raises SpecError when they are not finite, not ordered, or of different lengths.
    """

    name: str
    unit: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    semantics: Semantics = Semantics.MEASURED

    def __post_init__(self) -> None:
        if not (self.name.isprintable() and self.unit.isprintable()):  # they end up on terminals
            raise SpecError(f"field {self.name!r} in {self.unit!r} is not named in printable text")
        if not self.name or not self.low or len(self.low) != len(self.high):
            raise SpecError(f"field {self.name!r}: low has {len(self.low)} numbers, high has {len(self.high)}")
        for index, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            # The width must be finite too: a margin is a fraction of it, and an infinite margin would let infinity pass.
            if not (np.isfinite(low) and np.isfinite(high) and low <= high and np.isfinite(high - low)):
                raise SpecError(f"field {self.name!r}[{index}]: [{low}, {high}] is not a finite range")

    @property
    def size(self) -> int:
        """How many numbers the field holds."""
        return len(self.low)


@dataclass(frozen=True)
class VectorSpec:
    """An ordered set of fields that together make one flat vector."""

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        if not self.fields:
            raise SpecError("a vector needs at least one field")
        names = [field.name for field in self.fields]
        if len(set(names)) != len(names):
            raise SpecError(f"field names repeat: {', '.join(names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Field names in vector order."""
        return tuple(field.name for field in self.fields)

    @cached_property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(field.size for field in self.fields)

    @cached_property
    def low(self) -> Array:
        """Lower ends, (size,); read-only, because it is shared."""
        return _read_only(np.concatenate([field.low for field in self.fields]))

    @cached_property
    def high(self) -> Array:
        """Upper ends, (size,); read-only, because it is shared."""
        return _read_only(np.concatenate([field.high for field in self.fields]))

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each field lies in the flat vector."""
        ends = np.cumsum([field.size for field in self.fields])
        return {field.name: slice(int(end) - field.size, int(end)) for field, end in zip(self.fields, ends, strict=True)}

    def __getitem__(self, name: str) -> Field:
        for field in self.fields:
            if field.name == name:
                return field
        raise SpecError(unknown("field", name, self.names))

    def label(self, index: int) -> str:
        """Readable name of one component of the flat vector, such as ``ee_position[2]``."""
        for name, where in self.slices.items():
            if where.start <= index < where.stop:
                return f"{name}[{index - where.start}]"
        raise IndexError(index)

    def flatten(self, values: Mapping[str, NDArray[Any]]) -> Array:
        """Named arrays to one vector (size,). Raises SpecError on a missing field or a wrong length; extra names are ignored."""
        parts = []
        for field in self.fields:
            if field.name not in values:
                raise SpecError(f"field {field.name!r} is missing; given: {', '.join(sorted(values))}")
            part = np.asarray(values[field.name], dtype=np.float64)
            if part.shape != (field.size,):
                raise SpecError(f"field {field.name!r} has shape {part.shape}, expected ({field.size},)")
            parts.append(part)
        return np.concatenate(parts)

    def split(self, vector: NDArray[Any]) -> dict[str, Array]:
        """One vector (..., size) to named arrays (..., field size); the inverse of :meth:`flatten`."""
        vector = np.asarray(vector, dtype=np.float64)
        if vector.shape[-1] != self.size:
            raise SpecError(f"vector has {vector.shape[-1]} numbers, the fields {', '.join(self.names)} need {self.size}")
        return {name: vector[..., where] for name, where in self.slices.items()}

    def with_range(self, low: NDArray[Any], high: NDArray[Any]) -> "VectorSpec":
        """The same fields with other ranges, (size,) each. Raises SpecError on another shape, or on what is no range."""
        if np.shape(low) != (self.size,) or np.shape(high) != (self.size,):
            raise SpecError(f"ranges have shapes {np.shape(low)} and {np.shape(high)}, expected ({self.size},)")
        return VectorSpec(
            tuple(
                Field(f.name, f.unit, tuple(map(float, low[s])), tuple(map(float, high[s])), f.semantics)
                for f, s in zip(self.fields, self.slices.values(), strict=True)
            )
        )

    def to_json(self) -> list[dict[str, Any]]:
        """Plain data for a manifest."""
        return [
            {"name": f.name, "unit": f.unit, "low": list(f.low), "high": list(f.high), "semantics": f.semantics.value} for f in self.fields
        ]

    @classmethod
    def from_json(cls, data: Any) -> "VectorSpec":
        """Parses :meth:`to_json`'s form. Raises SpecError naming what is wrong."""
        if not isinstance(data, list) or not data:
            raise SpecError("fields must be a non-empty list")
        keys = {"name", "unit", "low", "high", "semantics"}
        fields = []
        for entry in data:
            if not isinstance(entry, dict) or set(entry) != keys:
                raise SpecError(f"a field needs exactly the keys {', '.join(sorted(keys))}; got {entry!r:.120}")
            try:
                semantics = Semantics(entry["semantics"])
            except ValueError as error:
                raise SpecError(f"field {entry['name']!r}: {error}") from error
            fields.append(Field(_text(entry, "name"), _text(entry, "unit"), _numbers(entry, "low"), _numbers(entry, "high"), semantics))
        return cls(tuple(fields))


@dataclass(frozen=True)
class PolicySpec:
    """The shape of a policy: what it reads, what it writes, and when.

    Args:
        observation: one observation, size Do.
        action: one action, size Da.
        observation_horizon: To, how many control steps of observations the policy reads.
        chunk_length: Ta, how many actions one inference yields.
        executed_length: how many of them are carried out before the next inference, 1..Ta.
        control_rate_hz: actions per second.
        reads_previous: whether the policy is also shown the chunk of the last inference, to start from.
        reads_committed: whether it is also shown what is decided about its chunk already, to continue it.

    Raises:
        SpecError: a length is out of range or the rate is not a positive number.
    """

    observation: VectorSpec
    action: VectorSpec
    observation_horizon: int
    chunk_length: int
    executed_length: int
    control_rate_hz: float
    reads_previous: bool = False
    reads_committed: bool = False

    def __post_init__(self) -> None:
        if self.observation_horizon < 1 or self.chunk_length < 1:
            raise SpecError("observation_horizon and chunk_length must be at least 1")
        if not 1 <= self.executed_length <= self.chunk_length:
            raise SpecError(f"executed_length {self.executed_length} is not in 1..{self.chunk_length}")
        if not (np.isfinite(self.control_rate_hz) and self.control_rate_hz > 0):
            raise SpecError(f"control_rate_hz {self.control_rate_hz} is not a positive number")

    @property
    def period_s(self) -> float:
        """Seconds between two actions."""
        return 1.0 / self.control_rate_hz

    def to_json(self) -> dict[str, Any]:
        """Plain data for a manifest."""
        return {
            "observation": self.observation.to_json(),
            "action": self.action.to_json(),
            "observation_horizon": self.observation_horizon,
            "chunk_length": self.chunk_length,
            "executed_length": self.executed_length,
            "control_rate_hz": self.control_rate_hz,
            "reads_previous": self.reads_previous,
            "reads_committed": self.reads_committed,
        }

    @classmethod
    def from_json(cls, data: Any) -> "PolicySpec":
        """Parses :meth:`to_json`'s form, also without the ``reads_`` keys, which came later. Raises SpecError naming what is wrong."""
        keys = {"observation", "action", "observation_horizon", "chunk_length", "executed_length", "control_rate_hz"}
        if not isinstance(data, dict) or set(data) - {"reads_previous", "reads_committed"} != keys:
            got = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise SpecError(f"a policy spec needs exactly the keys {', '.join(sorted(keys))}; got {got}")
        return cls(
            VectorSpec.from_json(data["observation"]),
            VectorSpec.from_json(data["action"]),
            _count(data, "observation_horizon"),
            _count(data, "chunk_length"),
            _count(data, "executed_length"),
            _number(data["control_rate_hz"], "control_rate_hz"),
            _flag(data, "reads_previous"),
            _flag(data, "reads_committed"),
        )


def is_number(value: Any) -> bool:
    """Whether a value read from JSON is a finite number that a float can hold; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _number(value: Any, key: str) -> float:
    if not is_number(value):
        raise SpecError(f"{key} must be a finite number, got {value!r:.80}")
    return float(value)


def _numbers(data: dict[str, Any], key: str) -> tuple[float, ...]:
    values = data[key]
    if not isinstance(values, list):
        raise SpecError(f"{key} must be a list of numbers, got {values!r:.80}")
    return tuple(_number(value, f"{key}[{index}]") for index, value in enumerate(values))


def _text(data: dict[str, Any], key: str) -> str:
    value = data[key]
    if not isinstance(value, str):
        raise SpecError(f"{key} must be text, got {value!r:.80}")
    return value


def _count(data: dict[str, Any], key: str) -> int:
    value = data[key]
    if not isinstance(value, int) or isinstance(value, bool):
        raise SpecError(f"{key} must be a whole number, got {value!r}")
    return value


def _flag(data: dict[str, Any], key: str) -> bool:
    """False where the key is absent."""
    value = data.get(key, False)
    if not isinstance(value, bool):
        raise SpecError(f"{key} must be true or false, got {value!r:.80}")
    return value


def _read_only(array: Array) -> Array:
    array.setflags(write=False)
    return array
