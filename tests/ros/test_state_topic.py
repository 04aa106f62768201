# SPDX-License-Identifier: Apache-2.0
"""``~/state``: whoever reads it last knows what is true, however the threads that tell it interleave."""

from collections.abc import Callable
from typing import Any

import pytest
from rclpy.logging import get_logger

from otpr_policy.control import State
from otpr_policy.ros.state_topic import StateTopic

pytestmark = pytest.mark.ros


class Desk:
    """A node and its publisher; ``meanwhile`` happens once, while a message is on its way."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.meanwhile: Callable[[], None] | None = None

    def get_logger(self) -> Any:
        return get_logger("desk")

    def create_publisher(self, *_: object) -> "Desk":
        return self

    def publish(self, message: Any) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        self.sent.append(message.data)


def test_a_stop_that_is_told_while_another_state_hangs_on_its_way_is_what_is_read_last() -> None:
    desk = Desk()
    topic = StateTopic(desk, lambda entity: entity)  # type: ignore[arg-type]
    desk.meanwhile = lambda: topic.tell_stopped("watchdog")
    topic.tell(State.ENGAGED, "")
    assert desk.sent == ["STOPPED: watchdog", "ENGAGED"]  # the control thread hung in its publish call, and went on
    topic.tell(State.STOPPED, "watchdog")
    assert desk.sent[-1] == "STOPPED: watchdog"
    topic.tell(State.STOPPED, "watchdog")
    assert len(desk.sent) == 3  # and then not with every tick
