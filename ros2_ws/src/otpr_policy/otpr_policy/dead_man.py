# SPDX-License-Identifier: Apache-2.0
"""The dead-man switch: a person allows motion by holding it down. Silence counts as released.

Times are seconds on the monotonic clock, given by the caller; a message counts from its arrival, because the clock of
an operator's computer is not ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from otpr_policy.errors import ContractError, unknown
from otpr_policy.strict_yaml import build

NOT_REQUIRED = "not_required"
MOST_AGE_S = 1.0
"""The longest silence that a contract may take for a switch that is held."""


class DeadManType(Enum):
    """Message types of a dead-man topic."""

    JOY = "sensor_msgs/msg/Joy"  # one of its buttons
    BOOL = "std_msgs/msg/Bool"  # true while pressed, sent again and again


class AfterRelease(Enum):
    """What it takes to move again once the switch is pressed again."""

    ENGAGE = "engage"  # a person has to engage again: pressing the switch starts nothing
    RESUME = "resume"  # the robot goes on by itself, if it held no longer than stop_after_s


@dataclass(frozen=True)
class DeadManSwitch:
    """The contract's section ``dead_man``.

    Args:
        topic: name of the topic.
        type: its message type.
        max_age_s: silence longer than this counts as released.
        button: index of the button, for Joy.
        after_release: what it takes to move again.
    """

    topic: str
    type: DeadManType
    max_age_s: float
    button: int = -1
    after_release: AfterRelease = AfterRelease.ENGAGE

    def __post_init__(self) -> None:
        if not 0 < self.max_age_s <= MOST_AGE_S:
            raise ContractError(f"dead_man.max_age_s is {self.max_age_s}, must be above 0 and at most {MOST_AGE_S:g} s")
        if self.type is DeadManType.JOY and self.button < 0:
            raise ContractError("dead_man.button must be the index, from 0, of the button in the Joy message")
        if self.type is not DeadManType.JOY and self.button != -1:
            raise ContractError(f"dead_man.button has no meaning for {self.type.value}")

    def is_pressed(self, buttons: Sequence[int]) -> bool:
        """Whether a Joy message with these buttons has ours down. Fewer buttons than expected are another joystick: released."""
        return len(buttons) > self.button and buttons[self.button] == 1


def parse_dead_man(data: Any) -> DeadManSwitch | None:
    """The section ``dead_man`` of a contract; None where it says that there is none.

    Raises:
        ContractError: anything else; says what to write.
    """
    if data == NOT_REQUIRED:
        return None
    if data is None:
        raise ContractError(
            "contract: key 'dead_man' is missing; required: a section with topic, type and max_age_s, "
            f"or the word {NOT_REQUIRED} where nobody can be near the robot, as in simulation"
        )
    if isinstance(data, str):
        raise ContractError(f"dead_man: {unknown('value', data, [NOT_REQUIRED])}; or a section with topic, type, max_age_s")
    return build(DeadManSwitch, data, "dead_man")


class DeadMan:
    """Whether the switch allows motion at this moment.

    Thread-safe without a lock: what the callback writes, the control thread only reads, and the other way round.
    """

    def __init__(self, max_age_s: float) -> None:
        """A switch that nobody has pressed yet."""
        self._max_age_s = max_age_s
        self._heard: tuple[bool, float] | None = None
        self._release: object = None  # the last one, each a thing of its own
        self._noticed: object = None  # the last one that who asks was told of

    def hear(self, pressed: bool, now_s: float) -> None:
        """A message has arrived. Silence before it counts as a release, too.

        ``now_s``: when it arrived, as near as the caller knows; none arrived before the one that was heard before it.
        """
        if self._heard is not None:
            now_s = max(now_s, self._heard[1])
        if not pressed or self.problem(now_s) is not None:
            self._release = object()
        self._heard = (pressed, now_s)

    def problem_since(self, now_s: float) -> str | None:
        """As :meth:`problem`, and of a release since this was asked last, however short. For one thread at a time."""
        release = self._release
        missed, self._noticed = release is not self._noticed, release
        return self.problem(now_s) or ("the dead-man switch was let go for a moment" if missed else None)

    def problem(self, now_s: float) -> str | None:
        """None while the switch is held down, else why motion is not allowed."""
        heard = self._heard
        if heard is None:
            return "the dead-man switch has not been heard of"
        pressed, heard_s = heard
        if not pressed:
            return "the dead-man switch is released"
        age_s = now_s - heard_s
        if not 0 <= age_s <= self._max_age_s:
            return f"the dead-man switch was last heard of {age_s:.3f} s ago, allowed are {self._max_age_s:.3f} s"
        return None
