# SPDX-License-Identifier: Apache-2.0
"""Carries out a plan of blind, matched trials and writes their report.

    ros2 launch otpr trial.launch.py plan:=plan.yaml out:=runs/trials

Questions and answers are texts on /trials/question and /trials/answer, for a launched process has no keyboard. The process is
the one that ``otpr_operator.trials.process`` describes; this file says it in the words of ``launch``.
"""

from launch import LaunchDescription
from launch.action import Action
from launch.actions import DeclareLaunchArgument, ExecuteProcess, Shutdown
from launch.substitutions import LaunchConfiguration

from otpr_operator.trials.process import ARGUMENTS, argv
from otpr_policy.bringup import Argument


def generate_launch_description() -> LaunchDescription:
    """Entry point of ``ros2 launch``."""
    trials = ExecuteProcess(cmd=argv(LaunchConfiguration), name="trials", output="screen", on_exit=Shutdown(reason="the trials ended"))
    return LaunchDescription([*map(_declare, ARGUMENTS), trials])


def _declare(argument: Argument) -> Action:
    return DeclareLaunchArgument(
        argument.name,
        default_value=argument.default,
        description=argument.description,
        choices=argument.choices or None,
    )
