# SPDX-License-Identifier: Apache-2.0
"""When within its period a tick is best taken: just after an observation has come, not just before. Pure: instants are arguments.

A control loop on its own clock acts on observations that are up to one sample period old, ten milliseconds at 100 Hz, by chance of when
it was started. Here a tick that is due waits a little for a sample that is about to come, and the grid of ticks creeps towards the
arrivals, by so little that the rate stays the policy's.
"""

from collections import deque
from statistics import median

_WAIT_SHARE = 0.2  # of the control period: the longest wait of a tick
_CREEP_SHARE = 0.01  # of the control period: how much a period may be stretched or shortened
_LEAD_SHARE = 0.15  # of the sample period, by which a tick is due before the arrival: then the arrival starts it, not a timer after it
_LATEST = 1.25  # sample periods after the last arrival, beyond which the next is not about to come but late or lost
_SLOWEST = 1.1  # control periods: a source at the loop's own rate seems slower at times
_WINDOW = 15
_FEWEST = 4


class ArrivalPhase:
    """Where the arrivals of observations lie relative to the ticks of one loop. Not thread-safe."""

    def __init__(self, period_s: float) -> None:
        """``period_s``: of the control loop."""
        self._period_s = period_s
        self._last_s = 0.0
        self._intervals_s: deque[float] = deque(maxlen=_WINDOW)
        self._known = False

    def arrived(self, at_s: float) -> None:
        """Notes that every field of the observation has become newer."""
        if self._known:
            self._intervals_s.append(at_s - self._last_s)
        self._last_s, self._known = at_s, True

    def patience_s(self, now_s: float) -> float:
        """How long a tick that is due now should wait for a sample; 0 when the newest is fresh or the next is not about to come."""
        sample_s = self._sample_period_s()
        if sample_s is None:
            return 0.0
        age_s, longest_s = now_s - self._last_s, _WAIT_SHARE * self._period_s
        if age_s < sample_s / 2 or age_s > _LATEST * sample_s or sample_s - age_s > longest_s:
            return 0.0
        return min(_LATEST * sample_s - age_s, longest_s)

    def shift_s(self, due_s: float) -> float:
        """By how much to move the grid, given a tick that was due at ``due_s`` and has just been taken."""
        sample_s = self._sample_period_s()
        if sample_s is None or due_s - self._last_s > _LATEST * sample_s:
            return 0.0
        error_s = self._last_s - _LEAD_SHARE * sample_s - due_s
        if error_s < -sample_s / 2:
            error_s += sample_s
        most_s = _CREEP_SHARE * self._period_s
        return max(-most_s, min(most_s, error_s))

    def _sample_period_s(self) -> float | None:
        """The period of arrivals; None while unknown, or when there are too few to wait for one in a tick."""
        if len(self._intervals_s) < _FEWEST:
            return None
        sample_s = median(self._intervals_s)
        return sample_s if 0.0 < sample_s <= _SLOWEST * self._period_s else None
