# SPDX-License-Identifier: Apache-2.0
"""From stamped samples that arrive when they like to one observation, or to the reason why there is none.

Nothing is ever filled in: a field that is missing or too old makes the whole observation missing, and the robot holds.
Times are integers in nanoseconds on the clock of the data, given by the caller; nothing here reads a clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otpr_policy.spec import Array, VectorSpec

FUTURE_TOLERANCE_NS = 50_000_000  # two computers' clocks may differ a little; a stamp further ahead is a fault


@dataclass(frozen=True, eq=False)
class Observation:
    """Every field, fresh.

    Args:
        stamp_ns: the oldest of its samples' stamps: all of it is at least this new.
        values: by field.
        fresh_until_ns: when the first of its samples becomes too old; None of one that was read from a record.
    """

    stamp_ns: int
    values: Mapping[str, Array]
    fresh_until_ns: int | None = None


@dataclass(frozen=True)
class Missing:
    """Why there is no observation."""

    reason: str


class ObservationBuffer:
    """Keeps the newest sample of each field.

    Thread-safe: message callbacks push while the control thread observes, and neither ever waits for inference.
    """

    def __init__(self, spec: VectorSpec, max_age_s: Mapping[str, float]) -> None:
        """``max_age_s`` gives every field of ``spec`` the age above which it counts as missing."""
        self._spec = spec
        self._max_age_ns = {name: round(max_age_s[name] * 1e9) for name in spec.names}
        self._lock = Lock()
        self._samples: dict[str, tuple[int, Array]] = {}  # field -> stamp and values; arrays are never changed in place
        self._refusal: dict[str, str] = {}  # field -> why its last message was refused, while no good one followed

    def push(self, name: str, stamp_ns: int, values: NDArray[Any], now_ns: int) -> str | None:
        """Stores a sample of a field that arrived at ``now_ns``. Returns None, or why it was refused; the older sample then stays."""
        values = np.array(values, dtype=np.float64)
        values.setflags(write=False)
        with self._lock:
            reason = self._refuse(name, stamp_ns, values, now_ns)
            if reason is None:
                self._samples[name] = (stamp_ns, values)
                self._refusal.pop(name, None)
            else:
                self._refusal[name] = reason
        return reason

    def refuse(self, name: str, reason: str) -> None:
        """Notes that a message for the field could not be read at all."""
        with self._lock:
            self._refusal[name] = reason

    @property
    def complete_until_ns(self) -> int | None:
        """The newest instant for which every field has a sample at least as new, or None while a field has none."""
        with self._lock:
            if len(self._samples) < len(self._spec.fields):
                return None
            return min(stamp for stamp, _ in self._samples.values())

    def observe(self, now_ns: int) -> Observation | Missing:
        """The observation at ``now_ns``, or the first reason why there is none."""
        with self._lock:
            for name in self._spec.names:
                problem = self._problem(name, now_ns)
                if problem is not None:
                    return Missing(f"{problem} ({self._refusal[name]})" if name in self._refusal else problem)
            oldest = min(stamp for stamp, _ in self._samples.values())
            fresh_until = min(stamp + self._max_age_ns[name] for name, (stamp, _) in self._samples.items())
            return Observation(oldest, {name: values for name, (_, values) in self._samples.items()}, fresh_until)

    def clear(self) -> None:
        """Forgets every sample."""
        with self._lock:
            self._samples.clear()
            self._refusal.clear()

    def _refuse(self, name: str, stamp_ns: int, values: Array, now_ns: int) -> str | None:
        size = self._spec[name].size
        if values.shape != (size,):
            return f"{name} came with shape {values.shape}, expected ({size},)"
        if not np.isfinite(values).all():
            return f"{name} came with a number that is not finite"
        if stamp_ns - now_ns > FUTURE_TOLERANCE_NS:  # kept out: it would make every right sample after it look old
            return f"{name} is stamped {(stamp_ns - now_ns) / 1e9:.3f} s in the future; are the clocks in step?"
        last_ns = self._samples[name][0] if name in self._samples else stamp_ns
        clock_went_back = last_ns - now_ns > FUTURE_TOLERANCE_NS  # as when a simulation or a recording starts over
        if stamp_ns < last_ns and not clock_went_back:
            return f"{name} came out of order, {(last_ns - stamp_ns) / 1e9:.3f} s older than the last"
        return None

    def _problem(self, name: str, now_ns: int) -> str | None:
        if name not in self._samples:
            return f"{name} has not arrived"
        age_ns = now_ns - self._samples[name][0]
        if age_ns > self._max_age_ns[name]:
            return f"{name} is {age_ns / 1e9:.3f} s old, allowed are {self._max_age_ns[name] / 1e9:.3f} s"
        if age_ns < -FUTURE_TOLERANCE_NS:
            return f"{name} is stamped {-age_ns / 1e9:.3f} s in the future; the clock went back"
        return None
