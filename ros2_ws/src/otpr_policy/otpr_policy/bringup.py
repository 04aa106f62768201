# SPDX-License-Identifier: Apache-2.0
"""What a bring-up starts: tables, read by launch files (``launch/bringup.launch.py``) and by commands (``otpr bringup``).

A table is plain data. A launch file turns each row into a launch action; :func:`processes` turns it into a command line
for machines without ``launch_ros``. Neither knows a node by name.
"""

import json
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from otpr_policy.errors import OtprError, unknown


class Kind(Enum):
    """How the text of an argument becomes a ROS parameter. Without it a robot named ``007`` would arrive as a number."""

    TEXT = "text"
    BOOL = "bool"


@dataclass(frozen=True)
class Argument:
    """One argument of a bring-up. ``default`` None: must be given. ``choices`` empty: any text."""

    name: str
    description: str
    default: str | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class FromArgument:
    """A ROS parameter that gets the value of an argument."""

    argument: str
    kind: Kind = Kind.TEXT


@dataclass(frozen=True)
class Unless:
    """A condition: holds unless ``argument`` has exactly this ``value``."""

    argument: str
    value: str

    def holds(self, arguments: Mapping[str, str]) -> bool:
        """Whether it holds for these arguments."""
        return arguments[self.argument] != self.value


@dataclass(frozen=True)
class NodeRow:
    """One node: the module that is its process, its ROS name and parameters, and when it is started (None: always)."""

    name: str
    module: str
    parameters: Mapping[str, FromArgument | bool | str] = field(default_factory=dict)
    condition: Unless | None = None


@dataclass(frozen=True)
class EnvironmentDefault:
    """An environment variable for every node, where the user has not set it."""

    variable: str
    value: str
    condition: Unless | None = None


@dataclass(frozen=True)
class Table:
    """One bring-up: its arguments, its nodes in starting order, and their environment."""

    arguments: tuple[Argument, ...]
    nodes: tuple[NodeRow, ...]
    environment: tuple[EnvironmentDefault, ...]


_BOOL = ("true", "false")
_USE_SIM_TIME = FromArgument("use_sim_time", Kind.BOOL)

ARGUMENTS = (
    Argument("policy", "path of the policy artifact (.onnx)"),
    Argument("robot", "name of a robot contract in share/otpr/config/robots, or path of one (.yaml)", "panda_twin"),
    Argument("sim", "start the simulated twin of the robot", "true", _BOOL),
    Argument("view", "open the simulator's viewer on this desktop", "false", _BOOL),
    Argument("record", "directory to record episodes into; empty: record nothing", ""),
    Argument("use_sim_time", "take time from /clock instead of this machine's clock", "false", _BOOL),
    Argument("log_level", "least severe messages to log", "info", ("debug", "info", "warn", "error", "fatal")),
)

NODES = (
    NodeRow(
        "policy_node",
        "otpr_policy.ros.node",
        # Autostart makes the node ready; the robot still stands until somebody calls ~/engage.
        {"policy": FromArgument("policy"), "robot": FromArgument("robot"), "autostart": True, "use_sim_time": _USE_SIM_TIME},
    ),
    NodeRow(
        "twin",
        "otpr_sim.ros.twin",
        {"robot": FromArgument("robot"), "view": FromArgument("view", Kind.BOOL), "use_sim_time": _USE_SIM_TIME},
        Unless("sim", "false"),
    ),
    NodeRow(
        "recorder",
        "otpr_operator.ros.recorder",
        {"robot": FromArgument("robot"), "directory": FromArgument("record"), "autostart": True, "use_sim_time": _USE_SIM_TIME},
        Unless("record", ""),
    ),
)

ENVIRONMENT = (
    # A simulation must not command, or be commanded by, a robot on the same network.
    EnvironmentDefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST", Unless("sim", "false")),
    # `python -m` would let a file in the current folder take the place of a library (Python 3.11 and later obey this).
    EnvironmentDefault("PYTHONSAFEPATH", "1"),
)

BRINGUP = Table(ARGUMENTS, NODES, ENVIRONMENT)

_ARGUMENT = {argument.name: argument for argument in ARGUMENTS}
_ROW = {row.name: row for row in NODES}

TELEOP = Table(
    (
        Argument(
            "mode", "who commands: an operator alone, or a policy that an operator may take over from", "teleop", ("teleop", "command")
        ),
        Argument("policy", "path of the policy artifact (.onnx), in mode command", ""),
        Argument("shadow", "path of an artifact that only proposes, and is compared with the operator; empty: none", ""),
        Argument("report", "file (.json) for that comparison; empty: none", ""),
        Argument(
            "device", "what the operator holds; none: 'otpr teleop --attach' in a terminal", "none", ("none", "gamepad", "spacemouse")
        ),
        Argument("joy_map", "map of the gamepad (.yaml); empty: an Xbox gamepad's", ""),
        *(_ARGUMENT[name] for name in ("robot", "sim", "view", "record", "use_sim_time", "log_level")),
    ),
    (
        NodeRow("policy_node", _ROW["policy_node"].module, {**_ROW["policy_node"].parameters, "mode": FromArgument("mode")}),
        NodeRow(
            "shadow_node",
            "otpr_policy.ros.node",
            {
                "policy": FromArgument("shadow"),
                "robot": FromArgument("robot"),
                "mode": "shadow",
                "report": FromArgument("report"),
                "autostart": True,
                "use_sim_time": _USE_SIM_TIME,
            },
            Unless("shadow", ""),
        ),
        _ROW["twin"],
        _ROW["recorder"],
        NodeRow(
            "teleop",
            "otpr_operator.ros.teleop",
            {
                "robot": FromArgument("robot"),
                "device": FromArgument("device"),
                "joy_map": FromArgument("joy_map"),
                "use_sim_time": _USE_SIM_TIME,
            },
            Unless("device", "none"),
        ),
    ),
    ENVIRONMENT,
)

POLICY_STATUS, TWIN_STATUS = "/policy_node: policy", "/twin: simulation"  # what the nodes' statuses in /diagnostics are called

ParameterValue = str | bool | int | float


@dataclass(frozen=True)
class Process:
    """A process to start: the node's name and the command line."""

    name: str
    argv: tuple[str, ...]


def processes(
    arguments: Mapping[str, str], overrides: Mapping[str, Mapping[str, ParameterValue]] | None = None, table: Table = BRINGUP
) -> list[Process]:
    """The processes of a bring-up, in the table's order.

    Args:
        arguments: values of the table's arguments by name; what is left out takes its default.
        overrides: further ROS parameters, by node and parameter name, for what is not an argument (a seed, lockstep).
        table: which bring-up.

    Raises:
        OtprError: an unknown argument, node or value, or a missing argument.
    """
    values = complete(arguments, table)
    extra = dict(overrides or {})
    for name in extra:
        if name not in {row.name for row in table.nodes}:
            raise OtprError(unknown("node", name, [row.name for row in table.nodes]))
    return [
        Process(row.name, _argv(row, values, extra.get(row.name, {})))
        for row in table.nodes
        if row.condition is None or row.condition.holds(values)
    ]


def environment(arguments: Mapping[str, str], inherited: Mapping[str, str], table: Table = BRINGUP) -> dict[str, str]:
    """The environment for the processes of a bring-up: the inherited one, with defaults where it says nothing."""
    values = complete(arguments, table)
    defaults = {entry.variable: entry.value for entry in table.environment if entry.condition is None or entry.condition.holds(values)}
    return {**defaults, **inherited}


def isolated(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with a ROS domain of its own, unless the user chose one.

    What runs unattended in simulation must not meet a robot, or its like, on this machine.
    """
    return {"ROS_DOMAIN_ID": str(1 + secrets.randbelow(100)), **environment}


def complete(arguments: Mapping[str, str], table: Table = BRINGUP) -> dict[str, str]:
    """Every argument with its value, given or default. Raises OtprError on an unknown name, a bad value or a missing one."""
    known = {argument.name: argument for argument in table.arguments}
    for name in arguments:
        if name not in known:
            raise OtprError(unknown("argument", name, known))
    values: dict[str, str] = {}
    for argument in table.arguments:
        value = arguments.get(argument.name, argument.default)
        if value is None:
            raise OtprError(f"argument {argument.name} must be given: {argument.description}")
        if argument.choices and value not in argument.choices:
            raise OtprError(unknown(f"value of {argument.name}", value, argument.choices))
        values[argument.name] = value
    return values


def _argv(row: NodeRow, values: Mapping[str, str], overrides: Mapping[str, ParameterValue]) -> tuple[str, ...]:
    parameters = {name: _value(source, values) for name, source in row.parameters.items()} | dict(overrides)
    # Modules, not executables: console scripts are in bin/ after pip and in lib/<package>/ after colcon, modules are found by both.
    argv = [sys.executable, "-m", row.module, "--ros-args", "--remap", f"__node:={row.name}", "--log-level", values["log_level"]]
    for name, value in parameters.items():
        # ROS reads the value as YAML, of which JSON is a part; a text without quotes could be taken for a number.
        argv += ["--param", f"{name}:={json.dumps(value, ensure_ascii=False)}"]
    return tuple(argv)


def _value(source: FromArgument | bool | str, values: Mapping[str, str]) -> ParameterValue:
    if isinstance(source, bool | str):
        return source
    text = values[source.argument]
    return text == "true" if source.kind is Kind.BOOL else text
