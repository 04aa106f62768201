# SPDX-License-Identifier: Apache-2.0
"""ROS for the tests of this folder, whatever ran before them and runs after them in the same process."""

from collections.abc import Iterator

import pytest
import rclpy

from otpr_policy.ros.process import start_ros


@pytest.fixture(scope="module", autouse=True)
def _rclpy() -> Iterator[None]:
    ours = not rclpy.ok()
    if ours:
        start_ros()
    yield
    if ours:
        rclpy.try_shutdown()
