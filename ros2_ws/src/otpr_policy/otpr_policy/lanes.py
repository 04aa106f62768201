# SPDX-License-Identifier: Apache-2.0
"""Where chunks are computed: one inference per lane at a time. Here the lanes that compute at once; inference_worker.py has threads."""

from collections import deque
from collections.abc import Sequence
from enum import Enum
from typing import Any, Protocol

from otpr_policy.chunk import ChunkPolicy
from otpr_policy.spec import Array, PolicySpec
from otpr_policy.timeline import ChunkRequest, ChunkResult


class Patience(Enum):
    """How long the control thread waits for a chunk."""

    NONE = "none"  # the tick has an action
    SHORT = "short"  # the tick has one, but the chunk that should give it is expected now
    LONG = "long"  # without a chunk there is nothing to send: a command late in its period is better than none


class Lanes(Protocol):
    """One policy and as many places to run it in as inferences may be under way."""

    @property
    def spec(self) -> PolicySpec:
        """What the policy reads and writes."""

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of one inference's noise."""

    @property
    def delay_ticks(self) -> int:
        """After how many ticks a chunk is expected; 0 is in the tick it was asked for."""

    @property
    def free(self) -> int:
        """How many more requests it takes now."""

    def begin_tick(self) -> None:
        """A control tick begins: what :meth:`collect` waits in it counts from here."""

    def submit(self, request: ChunkRequest) -> None:
        """Begins an inference; only while ``free`` is above 0."""

    def collect(self, patience: Patience) -> Sequence[ChunkResult]:
        """What has been computed since the last call; with patience it waits for something, but never up to the next tick."""


def infer(policy: ChunkPolicy, request: ChunkRequest) -> Array:
    """Answers a request: the chunk (Ta, Da) in physical units. What the policy does not read it is not given."""
    read: dict[str, Any] = {"previous": request.previous, "committed": request.committed}
    return policy.infer(request.observation, request.noise, **{name: value for name, value in read.items() if value is not None})


class SimulatedLanes:
    """Computes at once, and hands each chunk out a fixed number of ticks later; the first of an epoch at once.

    With 0 ticks this is synchronous inference, as in evaluation. An error of the policy comes out of :meth:`submit`.
    """

    def __init__(self, policy: ChunkPolicy, delay_ticks: int = 0) -> None:
        self._policy = policy
        self.spec = policy.spec
        self.noise_shape = policy.noise_shape
        self.delay_ticks = delay_ticks
        self.free = 1
        self._tick = 0
        self._under_way: deque[tuple[int, ChunkResult]] = deque()  # tick of arrival, oldest first

    def begin_tick(self) -> None:
        """See Lanes."""
        self._tick += 1

    def submit(self, request: ChunkRequest) -> None:
        """See Lanes."""
        result = ChunkResult(request, infer(self._policy, request), None, 0.0)
        if request.first:
            self._under_way.clear()  # of an older epoch
        self._under_way.append((self._tick + (0 if request.first else self.delay_ticks), result))

    def collect(self, patience: Patience) -> Sequence[ChunkResult]:
        """See Lanes."""
        results = []
        while self._under_way and self._under_way[0][0] <= self._tick:
            results.append(self._under_way.popleft()[1])
        return results
