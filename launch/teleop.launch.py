# SPDX-License-Identifier: Apache-2.0
"""Brings up what an operator needs: the commanding node, the simulated twin, a recorder, a gamepad or SpaceMouse.

    ros2 launch otpr teleop.launch.py device:=gamepad
    ros2 launch otpr teleop.launch.py mode:=command policy:=policies/lift.onnx device:=gamepad

Keys need a terminal of their own: ``otpr teleop --attach``, in another one.
"""

import runpy
from pathlib import Path

from launch import LaunchDescription

from otpr_policy.bringup import TELEOP


def generate_launch_description() -> LaunchDescription:
    """Entry point of ``ros2 launch``."""
    describe = runpy.run_path(str(Path(__file__).with_name("bringup.launch.py")))["describe"]
    return describe(TELEOP)
