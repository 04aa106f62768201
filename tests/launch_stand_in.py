# SPDX-License-Identifier: Apache-2.0
"""A stand-in for ``launch`` and ``launch_ros``, which are not on PyPI: it records what a launch file makes of them."""

import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


class Call:
    """A recorded call of something in ``launch``: its arguments; what was called is the class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs

    @property
    def name(self) -> str:
        """What was called."""
        return type(self).__name__


class StandIn(ModuleType):
    """A module that has every class one asks for, each of which records its call."""

    def __getattr__(self, name: str) -> type[Call]:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Call,), {})


def recorded(launch_file: Path, monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What a launch file makes, recorded."""
    modules = ["launch", *(f"launch.{name}" for name in ("action", "actions", "condition", "conditions", "substitutions"))]
    for name in [*modules, "launch_ros", "launch_ros.actions", "launch_ros.parameter_descriptions"]:
        monkeypatch.setitem(sys.modules, name, StandIn(name))
    description = runpy.run_path(str(launch_file))["generate_launch_description"]()
    assert description.name == "LaunchDescription"
    return list(description.args[0])


def evaluate(value: Any, arguments: dict[str, str]) -> Any:
    """What a recorded substitution or condition stands for, with these launch arguments."""
    if not isinstance(value, Call):
        return value
    inner = [evaluate(argument, arguments) for argument in value.args]
    match value.name:
        case "LaunchConfiguration":
            return arguments[inner[0]]
        case "ParameterValue":
            return inner[0] == "true" if value.kwargs["value_type"] is bool else value.kwargs["value_type"](inner[0])
        case "NotEqualsSubstitution":
            return inner[0] != inner[1]
        case "IfCondition":
            return inner[0]
    raise AssertionError(f"the launch file uses {value.name}, which this test does not know")
