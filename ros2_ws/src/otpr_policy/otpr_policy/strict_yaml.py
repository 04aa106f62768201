# SPDX-License-Identifier: Apache-2.0
"""YAML files that mean what they say: no tags, no repeated keys, no unknown keys, and every value of the type of its field."""

import types
from collections.abc import Callable, Hashable, Mapping
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml

from otpr_policy.errors import ContractError, unknown

_T = TypeVar("_T")


class _StrictLoader(yaml.SafeLoader):
    """The safe loader, except that a repeated key is an error: of two limits, YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping whose keys are all different."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is repeated", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, kind: str = "contract") -> Any:
    """A file's content as plain data; ``kind`` is what messages call it.

    Raises ContractError when it cannot be read, is not YAML, or repeats a key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ContractError(f"cannot read {kind} {path}: {error.strerror}") from error
    except ValueError as error:  # bytes that are no text
        raise ContractError(f"{kind} {path} is not YAML: {error}") from error
    return parse_yaml(text, f"{kind} {path}")


def parse_yaml(text: str, what: str) -> Any:
    """A text as plain data; ``what`` is what messages call it. Raises ContractError when it is not YAML or repeats a key."""
    try:
        loader = _StrictLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # ValueError: dates that are none
        raise ContractError(f"{what} is not YAML: {error}") from error


def build(kind: type[_T], data: Any, where: str) -> _T:
    """Builds a dataclass from a mapping, converting each value to its field's type.

    Args:
        kind: its fields are text, numbers, enums, tuples, mappings, or such dataclasses; a field without default is required. Values of
            type ``object`` are taken as they are, for the caller to judge.
        data: what :func:`read_yaml` returned.
        where: what the mapping is called in messages.

    Raises:
        ContractError: a key is unknown, missing, or of the wrong kind; lists what would be valid.
    """
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(data, dict):
        raise ContractError(f"{where} must be a mapping with the keys {', '.join(known)}")
    for key in data:
        if key not in known:
            raise ContractError(f"{where}: {unknown('key', str(key), known)}")
    values = {}
    for name, field in known.items():
        if name in data:
            values[name] = _convert(field.type, data[name], f"{where}.{name}")
        elif name in _required(kind):
            raise ContractError(f"{where}: key {name!r} is missing; required: {', '.join(_required(kind))}")
    return kind(**values)


def _required(kind: type[Any]) -> list[str]:
    return [field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING]


def _convert(expected: Any, value: Any, where: str) -> Any:
    if isinstance(expected, types.UnionType):  # the optional twin
        (expected,) = (option for option in get_args(expected) if option is not type(None))
    origin = get_origin(expected)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise ContractError(f"{where} must be a mapping")
        return {_text(key, f"{where}: key"): _convert(get_args(expected)[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is tuple:
        return _convert_tuple(get_args(expected), value, where)
    if issubclass(expected, Enum):
        return _convert_enum(expected, value, where)
    if expected in _SCALARS:
        return _SCALARS[expected](value, where)
    return build(expected, value, where)


def _convert_tuple(items: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list) or (items[-1] is not Ellipsis and len(value) != len(items)):
        count = "" if items[-1] is Ellipsis else f" of {len(items)}"
        raise ContractError(f"{where} must be a list{count}, got {value!r}")
    return tuple(_convert(items[0], item, f"{where}[{index}]") for index, item in enumerate(value))


def _convert_enum(expected: type[Enum], value: Any, where: str) -> Enum:
    try:
        return expected(value)
    except ValueError as error:
        raise ContractError(f"{where}: {unknown('value', str(value), [member.value for member in expected])}") from error


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ContractError(f"{where} must be text, got {value!r}")
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ContractError(f"{where} must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError as error:
        raise ContractError(f"{where} is too large for a number") from error


def _whole_number(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ContractError(f"{where} must be a whole number, got {value!r}")
    return value


_SCALARS: dict[Any, Callable[[Any, str], Any]] = {str: _text, float: _number, int: _whole_number, object: lambda value, _where: value}
