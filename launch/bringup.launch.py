# SPDX-License-Identifier: Apache-2.0
"""Brings up policy node, simulated twin and recorder.

    ros2 launch otpr bringup.launch.py policy:=policies/lift.onnx

What is started is a table in ``otpr_policy.bringup``; this file says it in the words of ``launch``, for the other launch files too.
"""

import sys

from launch import LaunchDescription
from launch.action import Action
from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable, Shutdown
from launch.condition import Condition
from launch.conditions import IfCondition
from launch.substitutions import EnvironmentVariable, LaunchConfiguration, NotEqualsSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from otpr_policy.bringup import BRINGUP, Argument, EnvironmentDefault, FromArgument, Kind, NodeRow, Table, Unless

_TYPES = {Kind.TEXT: str, Kind.BOOL: bool}


def generate_launch_description() -> LaunchDescription:
    """Entry point of ``ros2 launch``."""
    return describe(BRINGUP)


def describe(table: Table) -> LaunchDescription:
    """A table as a launch description."""
    return LaunchDescription([*map(_declare, table.arguments), *map(_default, table.environment), *map(_node, table.nodes)])


def _declare(argument: Argument) -> Action:
    return DeclareLaunchArgument(
        argument.name,
        default_value=argument.default,
        description=argument.description,
        choices=argument.choices or None,
    )


def _default(entry: EnvironmentDefault) -> Action:
    value = EnvironmentVariable(entry.variable, default_value=entry.value)
    return SetEnvironmentVariable(entry.variable, value, condition=_condition(entry.condition))


def _node(row: NodeRow) -> Action:
    return Node(
        # A module of this interpreter is found after colcon and after pip; lib/<package>/ is not there after `pip install -e`.
        executable=sys.executable,
        arguments=["-m", row.module],
        name=row.name,
        exec_name=row.name,
        parameters=[{name: _value(source) for name, source in row.parameters.items()}],
        ros_arguments=["--log-level", LaunchConfiguration("log_level")],
        output="screen",
        # A robot whose policy, twin or recorder is gone is not brought up: end together.
        on_exit=Shutdown(reason=f"{row.name} ended"),
        condition=_condition(row.condition),
    )


def _value(source: FromArgument | bool | str) -> ParameterValue | bool:
    if isinstance(source, bool):
        return source
    if isinstance(source, str):
        return ParameterValue(source, value_type=str)
    return ParameterValue(LaunchConfiguration(source.argument), value_type=_TYPES[source.kind])


def _condition(unless: Unless | None) -> Condition | None:
    return None if unless is None else IfCondition(NotEqualsSubstitution(LaunchConfiguration(unless.argument), unless.value))
