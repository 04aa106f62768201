# SPDX-License-Identifier: Apache-2.0
"""A timer for what has to be done whether or not simulated time goes on."""

from collections.abc import Callable

from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from rclpy.timer import Timer


def create_steady_timer(node: Node, period_s: float, callback: Callable[[], None]) -> Timer:
    """A timer on the monotonic clock. rclpy's own follows the node's clock, and stands still with a silent ``/clock``."""
    return node.create_timer(period_s, callback, clock=Clock(clock_type=ClockType.STEADY_TIME))
