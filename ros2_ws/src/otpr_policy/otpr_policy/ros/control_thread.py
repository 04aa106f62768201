# SPDX-License-Identifier: Apache-2.0
"""When the control loop ticks: at the policy's rate on the monotonic clock, or in lockstep with a simulation's observations."""

import threading
import time
from collections.abc import Callable
from enum import Enum

from otpr_policy.errors import ContractError, unknown
from otpr_policy.health import Counters
from otpr_policy.observation import ObservationBuffer
from otpr_policy.phase import ArrivalPhase

_HAND_OVER_S = 2e-4


class Pacing(Enum):
    """What makes a tick."""

    CLOCK = "clock"  # the monotonic clock at the policy's control rate: for robots, and the twin in real time
    OBSERVATION = "observation"  # a complete observation one control period newer: for a simulation that waits for its commands


def parse_pacing(text: str) -> Pacing:
    """The pacing of a name. Raises ContractError listing the known ones."""
    try:
        return Pacing(text)
    except ValueError as error:
        raise ContractError(unknown("pacing", text, [pacing.value for pacing in Pacing])) from error


class ControlThread:
    """Calls ``tick(now_ns)`` from its own thread until it is closed; ``now_ns`` is on the clock of the data.

    In lockstep a tick returns whether it answered its observation: one observation is never answered twice, however
    engaging and the arrival of samples interleave, and one that came while the robot was not engaged can be answered later.
    """

    def __init__(
        self,
        tick: Callable[[int], bool],
        *,
        pacing: Pacing,
        period_s: float,
        data_clock_ns: Callable[[], int],
        buffer: ObservationBuffer,
        counters: Counters,
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts the thread. ``on_start`` is called in it before the first tick, such as to ask for a priority."""
        self._tick = tick
        self._period_s = period_s
        self._period_ns = round(period_s * 1e9)
        self._data_clock_ns = data_clock_ns
        self._buffer = buffer
        self._counters = counters
        self._pacing = pacing
        self._closed = False
        self._seen_ns: int | None = None  # the newest observation; in lockstep, that of the last tick
        self._answered_ns: int | None = None  # the newest observation that was answered
        self._phase = ArrivalPhase(period_s)
        self._waits = pacing is Pacing.OBSERVATION  # for a sample rather than for an instant
        self._wake = threading.Condition()
        self._on_start = on_start
        run = self._run_on_clock if pacing is Pacing.CLOCK else self._run_on_observations
        self._thread = threading.Thread(target=self._run, args=(run,), name="otpr-control", daemon=True)
        self._thread.start()

    def sample_arrived(self) -> None:
        """Lets a loop in lockstep look again, and a tick that waits for the newest sample have it. Called from message callbacks."""
        with self._wake:
            if self._pacing is Pacing.CLOCK:
                complete_ns = self._buffer.complete_until_ns
                if complete_ns == self._seen_ns:
                    return
                self._seen_ns = complete_ns
                self._phase.arrived(time.monotonic())
            if not self._waits:
                return
            self._wake.notify()
        if self._pacing is Pacing.CLOCK:
            time.sleep(_HAND_OVER_S)  # outside the interpreter's lock, which the tick now needs and would wait for

    def answer_again(self) -> None:
        """Makes a loop in lockstep tick on the observation at hand, which it let pass while it was not engaged."""
        with self._wake:
            self._seen_ns = None
            self._wake.notify()

    def close(self) -> None:
        """Ends the thread and waits for it; a tick that runs is finished first."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _run(self, ticks: Callable[[], None]) -> None:
        self._on_start()
        ticks()

    def _run_on_clock(self) -> None:
        next_tick = time.monotonic()
        while self._wait_until(next_tick):
            self._wait_for_sample()
            next_tick = self._newest(next_tick)
            with self._wake:
                shift_s = self._phase.shift_s(next_tick)
            self._tick(self._data_clock_ns())
            deadline = next_tick + self._period_s
            self._counters.deadline_misses += time.monotonic() > deadline
            next_tick = deadline + shift_s

    def _newest(self, tick: float) -> float:
        """The newest tick that is due; those before it, whose whole time has passed, are not made up for in a burst but counted."""
        skipped = max(0, int((time.monotonic() - tick) / self._period_s))
        self._counters.skipped_ticks += skipped
        return tick + skipped * self._period_s

    def _wait_for_sample(self) -> None:
        """Waits for the sample that is about to come, if one is; see :class:`ArrivalPhase`."""
        with self._wake:
            patience_s = self._phase.patience_s(time.monotonic())
            if patience_s > 0.0:
                seen_ns, self._waits = self._seen_ns, True
                self._wake.wait_for(lambda: self._closed or self._seen_ns != seen_ns, patience_s)
                self._waits = False

    def _run_on_observations(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closed or self._unanswered())
                if self._closed:
                    return
                complete_ns = self._seen_ns = self._buffer.complete_until_ns
            if complete_ns is not None and self._tick(complete_ns):
                self._answered_ns = complete_ns

    def _unanswered(self) -> bool:
        complete_ns = self._buffer.complete_until_ns
        if complete_ns is None:
            return False
        # Also a period older: a simulation that starts over starts its clock over.
        return all(known is None or abs(complete_ns - known) >= self._period_ns for known in (self._seen_ns, self._answered_ns))

    def _wait_until(self, instant: float) -> bool:
        """Sleeps until ``instant`` on the monotonic clock; False when the thread shall end."""
        with self._wake:
            while not self._closed:
                remaining = instant - time.monotonic()
                if remaining <= 0:
                    return True
                self._wake.wait(remaining)
        return False
