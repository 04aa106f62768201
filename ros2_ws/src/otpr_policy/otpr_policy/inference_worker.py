# SPDX-License-Identifier: Apache-2.0
"""Inference in threads of its own: the control thread submits, and collects what is there. It never waits longer than a tick can spare.

ONNX Runtime releases the interpreter while it computes. A lane that hangs stays busy and delays nobody: its thread is a daemon, and
closing waits for it only so long.
"""

import math
import threading
import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np

from otpr_policy.chunk import ChunkPolicy
from otpr_policy.health import WINDOW
from otpr_policy.lanes import Patience, infer
from otpr_policy.spec import PolicySpec
from otpr_policy.timeline import ChunkRequest, ChunkResult, lanes_needed

SPARE_SHARE = 0.2
"""How much of a period a tick may wait for a chunk that is about to come: a policy this fast is used in the tick it was asked in."""
LAST_SHARE = 0.5
"""The same where there is nothing else to send: half a period late is better than not at all, and the next tick is still far."""
LOCKSTEP_WAIT_S = 10.0  # in lockstep the simulation waits for us; a hung inference must still not keep services waiting for ever
_MEASURED_CALLS = 20
_MAX_LANES = 8
_CLOSE_S = 0.5


class DelayEstimate:
    """After how many ticks a chunk is expected, from what inference took lately."""

    MARGIN = 0.25

    def __init__(self, period_s: float, spare_s: float, percentile: float = 99.0, margin: float = MARGIN, window: int = 256) -> None:
        """Expects the ``percentile`` of the last ``window`` durations, less the ``spare_s`` that each tick can wait.

        To it comes the share ``margin`` of itself, but no more than a period: a machine's hiccups do not grow with the network.
        """
        self._period_s = period_s
        self._spare_s = spare_s
        self._percentile = percentile
        self._margin = margin
        self._durations_s: deque[float] = deque(maxlen=window)
        self._sorted_s: list[float] = []
        self.ticks = 0

    def add(self, duration_s: float) -> None:
        """Takes in how long one inference took, from submitting it on.

        In a tick, before its action: numpy's percentile takes a tenth of a millisecond, keeping them sorted a hundredth of that.
        """
        if len(self._durations_s) == self._durations_s.maxlen:
            del self._sorted_s[bisect_left(self._sorted_s, self._durations_s[0])]
        self._durations_s.append(duration_s)
        insort(self._sorted_s, duration_s)
        rank = math.ceil(self._percentile / 100.0 * len(self._sorted_s))
        usual_s = self._sorted_s[max(rank, 1) - 1]
        expected_s = usual_s + min(self._margin * usual_s, self._period_s)
        self.ticks = max(0, math.ceil((expected_s - self._spare_s) / self._period_s))


@dataclass(frozen=True)
class Waiting:
    """How the control thread waits.

    Args:
        period_s: of the control loop.
        spare_s: how long one tick may wait for a chunk that is expected in it.
        last_s: how long it may wait when it has nothing to send otherwise.
        lockstep: time stands still while it waits, so chunks always come in the tick they were asked for.
    """

    period_s: float
    spare_s: float
    last_s: float
    lockstep: bool = False

    @classmethod
    def on_clock(cls, period_s: float) -> "Waiting":
        """On a robot: a share of the period."""
        return cls(period_s, SPARE_SHARE * period_s, LAST_SHARE * period_s)

    @classmethod
    def in_lockstep(cls, period_s: float) -> "Waiting":
        """With a simulation that waits for its commands."""
        return cls(period_s, LOCKSTEP_WAIT_S, LOCKSTEP_WAIT_S, lockstep=True)


class InferenceWorker:
    """Lanes (see :class:`otpr_policy.lanes.Lanes`), each a thread with a policy of its own, since policies have buffers."""

    def __init__(
        self,
        policies: Sequence[ChunkPolicy],
        waiting: Waiting,
        clock: Callable[[], float] = time.perf_counter,
        on_thread_start: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts one thread per policy.

        Args:
            policies: the same policy once per lane, at least one.
            waiting: how :meth:`collect` waits.
            clock: monotonic, [s].
            on_thread_start: called in each thread first, for instance to set its scheduling.
        """
        self.policies = list(policies)
        self.spec: PolicySpec = self.policies[0].spec
        self.noise_shape = self.policies[0].noise_shape
        self.durations_s: deque[float] = deque(maxlen=WINDOW)
        self.label = ""  # which policy this is, for who records what it was asked
        self._waiting = waiting
        self._clock = clock
        self._estimate = DelayEstimate(waiting.period_s, waiting.spare_s)
        self._tick_began_s = clock()
        self._changed = threading.Condition()
        self._results: list[ChunkResult] = []
        self._interrupted = False
        self._idle = list(range(len(self.policies)))
        self._jobs: list[SimpleQueue[tuple[ChunkRequest, float] | None]] = [SimpleQueue() for _ in self.policies]
        self._on_thread_start = on_thread_start
        self._threads = [
            threading.Thread(target=self._run, args=(lane,), name=f"otpr-inference-{lane}", daemon=True)
            for lane in range(len(self.policies))
        ]
        for thread in self._threads:
            thread.start()

    @classmethod
    def open(
        cls,
        make_policy: Callable[[], ChunkPolicy],
        waiting: Waiting,
        clock: Callable[[], float] = time.perf_counter,
        on_thread_start: Callable[[], None] = lambda: None,
    ) -> "InferenceWorker":
        """Makes a policy, measures how long it takes, and makes as many more as lanes are needed for that, and one to spare if it is slow.

        The spare lane is for the first chunk after a hold, while others still compute what nobody waits for any more.
        """
        policy = make_policy()
        durations_s = measure(policy, clock)
        estimate = DelayEstimate(waiting.period_s, waiting.spare_s)
        for duration_s in durations_s:
            estimate.add(duration_s)
        lanes = 1 if waiting.lockstep or estimate.ticks == 0 else min(_MAX_LANES, 1 + lanes_needed(estimate.ticks, policy.spec))
        worker = cls([policy, *(make_policy() for _ in range(lanes - 1))], waiting, clock, on_thread_start)
        worker._estimate = estimate
        return worker

    @property
    def delay_ticks(self) -> int:
        """See Lanes."""
        return 0 if self._waiting.lockstep else self._estimate.ticks

    @property
    def free(self) -> int:
        """See Lanes."""
        return len(self._idle)

    def begin_tick(self) -> None:
        """See Lanes."""
        self._tick_began_s = self._clock()

    def submit(self, request: ChunkRequest) -> None:
        """See Lanes."""
        with self._changed:
            lane = self._idle.pop(0)
        self._jobs[lane].put((request, self._clock()))

    def collect(self, patience: Patience) -> Sequence[ChunkResult]:
        """See Lanes."""
        with self._changed:
            if patience is not Patience.NONE and len(self._idle) < len(self._threads):
                spare_s = self._waiting.last_s if patience is Patience.LONG else self._waiting.spare_s
                self._changed.wait_for(lambda: self._results or self._interrupted, self._tick_began_s + spare_s - self._clock())
            results, self._results = self._results, []
        for result in results:
            if result.error is None:
                self._estimate.add(result.duration_s)
        return results

    def wait(self, timeout_s: float) -> ChunkResult | None:
        """The next result, or None when there is none in time. For whoever tries a policy before the control loop has it."""
        with self._changed:
            self._changed.wait_for(lambda: self._results, timeout_s)
            return self._results.pop(0) if self._results else None

    def interrupt(self) -> None:
        """Ends a :meth:`collect` that waits, and keeps later ones from waiting: the node is about to stop ticking."""
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    def resume(self) -> None:
        """Undoes :meth:`interrupt`."""
        with self._changed:
            self._interrupted = False

    def close(self, timeout_s: float = _CLOSE_S) -> int:
        """Ends the threads. Returns how many hang in an inference and were left to themselves."""
        self.interrupt()
        for jobs in self._jobs:
            jobs.put(None)
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return sum(thread.is_alive() for thread in self._threads)

    def _run(self, lane: int) -> None:
        self._on_thread_start()
        while (job := self._jobs[lane].get()) is not None:
            request, submitted_s = job
            started_s = self._clock()
            try:
                chunk, error = infer(self.policies[lane], request), None
            except Exception as raised:  # the control loop decides what it means
                chunk, error = None, raised
            ended_s = self._clock()
            with self._changed:
                if error is None:
                    self.durations_s.append(ended_s - started_s)
                self._results.append(ChunkResult(request, chunk, error, ended_s - submitted_s))
                self._idle.append(lane)
                self._changed.notify_all()


def measure(policy: ChunkPolicy, clock: Callable[[], float] = time.perf_counter, calls: int = _MEASURED_CALLS) -> list[float]:
    """How long each of some inferences takes [s], on an observation in the middle of its range."""
    spec = policy.spec
    observation = np.tile((spec.observation.low + spec.observation.high) / 2, (spec.observation_horizon, 1))
    noise = np.random.default_rng(0).standard_normal(policy.noise_shape)
    durations_s = []
    for _ in range(calls):
        start = clock()
        policy.infer(observation, noise)
        durations_s.append(clock() - start)
    return durations_s
