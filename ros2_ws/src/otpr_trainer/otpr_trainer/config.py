# SPDX-License-Identifier: Apache-2.0
"""An algorithm's configuration: a frozen dataclass whose fields explain themselves to code and command line alike."""

import argparse
import dataclasses
from collections.abc import Mapping
from math import inf
from typing import Any, TypeVar

from otpr_policy.errors import RunError, unknown

Config = TypeVar("Config")
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def setting(default: Any, reason: str) -> Any:
    """A dataclass field with its default and one line that says what it is, its unit, and why this value."""
    return dataclasses.field(default=default, metadata={"help": reason})


def must_be(name: str, kind: type[Any], value: object) -> str:
    """What is said of a setting whose value is of another type than its default."""
    return f"setting {name} must be {_KINDS.get(kind, kind.__name__)}, got {value!r}"


def positive(config: Any, *names: str) -> None:
    """Raises RunError when one of the named fields is below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise RunError(f"{name} must be at least 1, got {getattr(config, name)}")


def not_negative(config: Any, *names: str) -> None:
    """Raises RunError when one of the named fields is below 0 or not finite."""
    for name in names:
        if not 0 <= getattr(config, name) < inf:
            raise RunError(f"{name} must be a number of at least 0, got {getattr(config, name)}")


def add_flags(parser: argparse.ArgumentParser, kind: type[Any]) -> None:
    """One flag per field. A flag that is not given leaves no trace, so that :func:`given` knows what the user asked for.

    Raises:
        RunError: a field was not made by :func:`setting`.
    """
    group = parser.add_argument_group(f"{kind.__module__.rsplit('.', 1)[-1]} settings")
    for field in dataclasses.fields(kind):
        if "help" not in field.metadata:
            raise RunError(f"{kind.__module__}: setting {field.name} must be made by otpr_trainer.config.setting(default, reason)")
        reason = f"{field.metadata['help']} (default: {field.default})".replace("%", "%%")
        flag = f"--{field.name.replace('_', '-')}"
        if isinstance(field.default, bool):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=reason)
        else:
            group.add_argument(flag, type=type(field.default), default=argparse.SUPPRESS, metavar="X", help=reason)


def given(arguments: argparse.Namespace, kind: type[Any]) -> dict[str, Any]:
    """The settings that were on the command line."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in vars(arguments).items() if name in names}


def of_variant(algorithm: Any, name: str) -> dict[str, Any]:
    """The settings of an algorithm's named variant (``VARIANTS`` of its module, if it has any). Raises RunError on another name."""
    known = variants(algorithm)
    if name not in known:
        raise RunError(unknown("variant", name, known))
    return dict(known[name])


def variants(algorithm: Any) -> Mapping[str, Mapping[str, Any]]:
    """An algorithm's settings by name, such as those of its paper; none where its module has no ``VARIANTS``."""
    return getattr(algorithm, "VARIANTS", {})


def from_json(kind: type[Config], data: Any) -> Config:
    """Parses ``dataclasses.asdict``'s form. Raises RunError on a key that is unknown or missing, or a value of another type."""
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(data, dict) or not set(data) <= set(fields):
        wrong = sorted(set(data) - set(fields)) if isinstance(data, dict) else [repr(data)]
        raise RunError(unknown("setting", ", ".join(wrong), fields))
    if missing := sorted(set(fields) - set(data)):
        raise RunError(f"setting {', '.join(missing)} is missing: these are the settings of another version of this program")
    for name, value in data.items():
        if type(value) is not type(fields[name].default):
            raise RunError(must_be(name, type(fields[name].default), value))
    return kind(**data)
