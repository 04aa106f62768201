# SPDX-License-Identifier: Apache-2.0
"""The watchdog: takes the permission to send away from a control thread that no longer ticks, without waiting for it.

A control thread that hangs may hold any lock, so nothing here has one. Times are seconds on the monotonic clock,
given by the caller.
"""

PERIODS = 3  # control periods without a tick that are allowed
LEAST_S = 0.05  # and in any case this long: at high rates an operating system without real-time priority needs it


class Permit:
    """Permission to send, asked for right before sending. Anyone may take it away at any moment; only a reset gives it back.

    Thread-safe without a lock: its one attribute is replaced whole.
    """

    def __init__(self) -> None:
        """A permission that nobody has taken away."""
        self.revoked: str | None = None  # why it was taken away

    def revoke(self, reason: str) -> None:
        """Takes it away. The first reason stays."""
        if self.revoked is None:
            self.revoked = reason

    def grant(self) -> None:
        """Gives it back."""
        self.revoked = None


class Watchdog:
    """Knows whether the control thread ticks in time. Written by one thread, read by another."""

    def __init__(self, period_s: float, now_s: float) -> None:
        """Expects a tick every ``period_s`` from ``now_s`` on."""
        self.limit_s = max(PERIODS * period_s, LEAST_S)
        self._beat_s = now_s

    def beat(self, now_s: float) -> str | None:
        """A tick begins. Returns None, or what is wrong when it comes too late: it must not go on as if nothing had been."""
        problem = self.problem(now_s)
        self._beat_s = now_s
        return problem

    def problem(self, now_s: float) -> str | None:
        """None while ticks come in time, else what is wrong."""
        silent_s = now_s - self._beat_s
        if not silent_s <= self.limit_s:
            return f"watchdog: the control thread has not ticked for {silent_s:.3f} s, allowed are {self.limit_s:.3f} s"
        return None
