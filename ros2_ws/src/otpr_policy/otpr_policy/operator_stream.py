# SPDX-License-Identifier: Apache-2.0
"""What an operator's device says, as it arrives: how fast the hand shall move, where the fingers shall be, and whether the device is there.

Times are integers in nanoseconds on the clock of the data, given by the caller; nothing here reads a clock.
"""

from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from otpr_policy.observation import FUTURE_TOLERANCE_NS, Missing
from otpr_policy.spec import Array


@dataclass(frozen=True, eq=False)
class Twist:
    """How the hand shall move, in the frame of the target pose.

    Args:
        linear: (3,) [m/s].
        angular: rotation vector per second about fixed axes, (3,) [rad/s].
    """

    linear: Array
    angular: Array


class OperatorStream:
    """The newest of what an operator's device sent. Thread-safe, as the observation buffer is.

    The device sends all the time, also while nothing is touched: silence is how its end is noticed.
    """

    def __init__(self, max_age_s: float) -> None:
        """``max_age_s``: age above which the operator counts as gone."""
        self._max_age_ns = round(max_age_s * 1e9)
        self._lock = Lock()
        self._newest: tuple[int, Twist] | None = None
        self._gripper: float | None = None
        self._lost = ""
        self._contest = ""

    def push(self, stamp_ns: int, linear: NDArray[np.float64], angular: NDArray[np.float64], now_ns: int) -> str | None:
        """Takes a twist that arrived at ``now_ns``. Returns None, or why it was refused; the older one then stays."""
        twist = Twist(np.array(linear, dtype=np.float64), np.array(angular, dtype=np.float64))
        if not (np.isfinite(twist.linear).all() and np.isfinite(twist.angular).all()):
            return "the operator's twist came with a number that is not finite"
        if stamp_ns - now_ns > FUTURE_TOLERANCE_NS:
            return f"the operator's twist is stamped {(stamp_ns - now_ns) / 1e9:.3f} s in the future; are the clocks in step?"
        with self._lock:
            last_ns = stamp_ns if self._newest is None else self._newest[0]
            if stamp_ns < last_ns and last_ns - now_ns <= FUTURE_TOLERANCE_NS:
                return f"the operator's twist came out of order, {(last_ns - stamp_ns) / 1e9:.3f} s older than the last"
            self._newest = (stamp_ns, twist)
        return None

    def push_gripper(self, position: float) -> str | None:
        """Takes a finger target [m]. Returns None, or why it was refused."""
        if not np.isfinite(position):
            return "the operator's gripper position is not finite"
        with self._lock:
            self._gripper = float(position)
        return None

    def report_device(self, problem: str) -> None:
        """The device's own word on itself: what is wrong with it, or nothing."""
        with self._lock:
            self._lost = problem

    def contest(self, problem: str) -> bool:
        """Says that several devices send, or with no text that one does. Returns whether that changed.

        What was sent until then counts no more: nobody knows whose it is.
        """
        with self._lock:
            changed = bool(problem) is not bool(self._contest)
            self._contest = problem
            if changed:
                self._newest, self._gripper, self._lost = None, None, ""
        return changed

    def forget_gripper(self) -> None:
        """What was asked of the fingers before the operator had the robot is not asked any more."""
        with self._lock:
            self._gripper = None

    def clear(self) -> None:
        """Forgets all."""
        with self._lock:
            self._newest, self._gripper, self._lost = None, None, ""

    @property
    def gripper(self) -> float | None:
        """Where the operator wants the fingers [m]; None while it was not said."""
        with self._lock:
            return self._gripper

    def newest(self, now_ns: int) -> Twist | Missing:
        """The twist at ``now_ns``, or why there is none."""
        with self._lock:
            if self._contest:
                return Missing(self._contest)
            if self._lost:
                return Missing(f"the operator's device is gone: {self._lost}")
            if self._newest is None:
                return Missing("no operator: no teleop device sends")
            age_ns = now_ns - self._newest[0]
            if not -FUTURE_TOLERANCE_NS <= age_ns <= self._max_age_ns:
                return Missing(f"the operator's command is {age_ns / 1e9:.3f} s old, allowed are {self._max_age_ns / 1e9:.3f} s")
            return self._newest[1]
