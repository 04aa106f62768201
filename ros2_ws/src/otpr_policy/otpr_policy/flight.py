# SPDX-License-Identifier: Apache-2.0
"""The flight recorder: the last seconds of everything that led to a command, in bounded memory. Pure: time is an argument.

The control thread only appends references to what it has made anyway; nothing is copied and nothing grows. Another thread takes
a snapshot and writes it (flight_file.py, flight_writer.py).
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock

from otpr_policy.command import CartesianTarget
from otpr_policy.observation import Observation
from otpr_policy.spec import PolicySpec
from otpr_policy.timeline import ChunkRequest, ChunkResult, Gap, TimedAction

_CHUNK_TIME_S = 2.0  # requests are kept this much longer, and two chunks: the oldest tick's action is from one before it
_HEADROOM = 1.5  # ticks kept, over those of the time at the nominal rate: a simulation in lockstep may run faster


@dataclass(frozen=True, eq=False)
class TickRecord:
    """One control tick.

    Args:
        number: counts control periods, as :class:`ChunkRequest` does; one that is missing was skipped.
        time_s: when it began, on the monotonic clock.
        seconds: how long it took, inference that was waited for included.
        data_ns: when it began, on the clock of the data.
        state, reason: after the tick.
        observation: what it acted on, None where there was nothing usable or the robot may not move.
        action: of the chunk that was carried out, or the gap; None where the tick did not come so far.
        target: what was handed to the publishers; they keep it back in the tick in which the watchdog stops the robot.
    """

    number: int
    time_s: float
    seconds: float
    data_ns: int
    state: str
    reason: str
    observation: Observation | None
    action: TimedAction | Gap | None
    target: CartesianTarget | None


@dataclass(frozen=True, eq=False)
class RequestRecord:
    """One inference's inputs, when it was asked for, and the sha256 of the policy file that was asked."""

    time_s: float
    policy: str
    request: ChunkRequest


@dataclass(frozen=True, eq=False)
class ResultRecord:
    """What came of a request, and when."""

    time_s: float
    result: ChunkResult


@dataclass(frozen=True, eq=False)
class FlightLog:
    """A snapshot, oldest first."""

    ticks: tuple[TickRecord, ...]
    requests: tuple[RequestRecord, ...]
    results: tuple[ResultRecord, ...]


class FlightRecorder:
    """Keeps the last ``seconds``. One thread records, any thread takes snapshots; neither waits longer than a list is copied."""

    def __init__(self, seconds: float, spec: PolicySpec) -> None:
        """``spec``: of the policy, which gives the rate and how long a chunk is."""
        chunks_s = _CHUNK_TIME_S + 2 * spec.chunk_length * spec.period_s
        count = math.ceil(_HEADROOM * seconds * spec.control_rate_hz) + 1
        more = math.ceil(_HEADROOM * chunks_s * spec.control_rate_hz) + 1
        self._seconds = seconds
        self._chunk_seconds = seconds + chunks_s
        self._lock = Lock()
        self._time_s = 0.0
        self._action: TimedAction | Gap | None = None
        self._ticks: deque[TickRecord] = deque(maxlen=count)
        self._requests: deque[RequestRecord] = deque(maxlen=count + more)
        self._results: deque[ResultRecord] = deque(maxlen=count + more)

    def begin(self, time_s: float) -> None:
        """A control tick begins, at a time on the monotonic clock."""
        self._time_s = time_s
        self._action = None

    def observe(self, event: ChunkRequest | ChunkResult | TimedAction | Gap, policy: str) -> None:
        """Takes what happens within a tick; ``policy`` is the sha256 of the file that is asked for chunks now."""
        if isinstance(event, TimedAction | Gap):
            self._action = event
        elif isinstance(event, ChunkRequest):
            with self._lock:
                self._requests.append(RequestRecord(self._time_s, policy, event))
        else:
            with self._lock:
                self._results.append(ResultRecord(self._time_s, event))

    def end(
        self,
        number: int,
        seconds: float,
        data_ns: int,
        state: str,
        reason: str,
        observation: Observation | None,
        target: CartesianTarget | None,
    ) -> None:
        """The tick is over; see :class:`TickRecord`."""
        record = TickRecord(number, self._time_s, seconds, data_ns, state, reason, observation, self._action, target)
        with self._lock:
            self._ticks.append(record)
            _drop_before(self._ticks, self._time_s - self._seconds)
            _drop_before(self._requests, self._time_s - self._chunk_seconds)
            _drop_before(self._results, self._time_s - self._chunk_seconds)

    def snapshot(self) -> FlightLog:
        """What is kept now."""
        with self._lock:
            return FlightLog(tuple(self._ticks), tuple(self._requests), tuple(self._results))


def _drop_before(records: "deque[TickRecord] | deque[RequestRecord] | deque[ResultRecord]", time_s: float) -> None:
    while records and records[0].time_s < time_s:
        records.popleft()


@dataclass(frozen=True, eq=False)
class Flight:
    """A flight that was read back: the log and the facts that were written with it."""

    log: FlightLog
    facts: Mapping[str, str]
