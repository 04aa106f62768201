# SPDX-License-Identifier: Apache-2.0
"""Action chunks on a line of numbered control ticks. Pure: no threads, no clocks, the tick is an argument.

A chunk that is asked for with the observation of tick k says what to do at ticks k .. k + Ta - 1. When it comes at tick k + d, its first d
actions are past and are left out; the rest replaces what was planned before. At most ``executed_length`` of its actions are carried
out, unless the next chunk is late: then the rest bridges. With nothing left there is no action, and none is made up.

The next chunk is asked for at the last tick at which it is still expected in time. If a chunk takes longer than what is left of it then
lasts, several are under way at once. One that has not come when it was expected is not counted on any more: another one is asked for.

For the first chunk of an episode time begins when it comes: until then the robot stands still, so none of its actions is past.

With a delay of zero this is receding-horizon control as in evaluation. In-painting what is committed follows real-time chunking (Black
et al. 2025, arXiv 2506.07339).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from otpr_policy.history import ObservationHistory
from otpr_policy.spec import Array, PolicySpec

SEAM_TICKS = 4


@dataclass(frozen=True, eq=False)
class Committed:
    """What is already decided about the ticks that a chunk will cover.

    Args:
        actions: in physical units, (Ta, Da); zero where nothing is known.
        weight: (Ta,), 1 where the action will have been carried out before the chunk comes, less where it may be replaced, 0 where
            nothing is known.
    """

    actions: Array
    weight: Array


@dataclass(frozen=True, eq=False)
class ChunkRequest:
    """One inference, with all that goes into it: whoever keeps these can compute every chunk again.

    Args:
        number: counts requests; the noise was drawn in this order.
        epoch: counts episodes and what was forgotten since; a chunk of an older epoch is of no use.
        generation: counts the policies of this timeline, from 0; another one after each hot swap.
        tick: of the observation, the first tick that the chunk covers.
        stamp_ns: of the observation.
        observation: (To, Do).
        noise: (noise_shape).
        previous: (Ta, Da) for a policy that reads its previous chunk, None at a start.
        committed: for a policy that reads it, None where nothing is committed.
        first: asked while nothing ran yet in its epoch; no action of it is ever past, and it is of no use once another chunk runs.
    """

    number: int
    epoch: int
    generation: int
    tick: int
    stamp_ns: int
    observation: Array
    noise: Array
    previous: Array | None
    committed: Committed | None
    first: bool


@dataclass(frozen=True, eq=False)
class ChunkResult:
    """What became of a request: a chunk (Ta, Da) or the error, and how long it took from the request on [s]."""

    request: ChunkRequest
    chunk: Array | None
    error: Exception | None
    duration_s: float


@dataclass(frozen=True)
class Source:
    """An action of a chunk: the request's number and the index in its chunk."""

    request: int
    index: int


@dataclass(frozen=True, eq=False)
class TimedAction:
    """The action (Da,) of a tick and where it is from.

    ``seam``: where the chunk took over from another one within the last few ticks; see :func:`seam_correction`.
    """

    tick: int
    vector: Array
    source: Source
    seam: "SeamPoint | None" = None


@dataclass(frozen=True)
class Gap:
    """There is no action for this tick. ``expected``: the first chunk of an epoch is on its way and not overdue."""

    tick: int
    expected: bool


@dataclass
class TimelineCounters:
    """What happened on a timeline since it was made."""

    inferences: int = 0  # asked for
    chunks: int = 0  # joined
    discarded_actions: int = 0  # past when their chunk came
    bridged_ticks: int = 0  # lived on the rest of a chunk because the next was late
    underruns: int = 0  # ticks without an action, not counting the wait for a first chunk
    late_chunks: int = 0  # came when all of their actions were past, or behind another one
    stale_chunks: int = 0  # of an older epoch, or of a policy that was replaced


@dataclass(frozen=True)
class SeamPoint:
    """Where two chunks met: what each had for the tick of the join, and how many ticks ago that was."""

    old: Source
    new: Source
    since: int


@dataclass(frozen=True, eq=False)
class _Running:
    """A chunk that has joined: it covers ticks first .. first + len - 1 and is planned to be left at tick ``end``."""

    request: ChunkRequest
    chunk: Array
    first: int
    joined: int
    end: int

    def at(self, tick: int) -> Array | None:
        """The action of a tick, None where the chunk does not reach."""
        index = tick - self.first
        return self.chunk[index] if 0 <= index < len(self.chunk) else None


def seam_correction(old: Array, new: Array, old_index: int, new_index: int, since: int, ticks: int) -> Array:
    """What is taken off the new chunk's action (Da,) so that the motion does not jump where it takes over from the old one.

    At the join the two chunks (Ta, Da) differ by a jump. Of it, each tick lets through as much as the largest step inside either chunk,
    or the ``ticks``-th part of the jump where that is more; so it is gone after ``ticks`` ticks. ``since``: ticks after the join.
    A jump no larger than the chunks' own steps is not touched.
    """
    jump = new[new_index] - old[old_index]
    steps = [np.abs(np.diff(chunk, axis=0)).max(axis=0, initial=0.0) for chunk in (old, new)]
    passes = np.maximum(np.maximum(*steps), np.abs(jump) / ticks)
    left: Array = np.sign(jump) * np.maximum(0.0, np.abs(jump) - (since + 1) * passes)
    return left


@dataclass(frozen=True)
class Seam:
    """The differences (Da,) between what old and new chunk say for the tick at which they meet: as found, and as carried out."""

    found: Array
    left: Array


class Timeline:
    """Hands out one action per tick and says when to ask for the next chunk.

    In each tick: :meth:`observe`, :meth:`request` if :meth:`due`, :meth:`deliver`, :meth:`collected`, again request if due, :meth:`act`.
    """

    def __init__(self, spec: PolicySpec, noise_shape: tuple[int, ...], seam_ticks: int = SEAM_TICKS) -> None:
        """A timeline without an episode; :meth:`reset` comes first.

        Args:
            spec: of the policy.
            noise_shape: of one inference's noise.
            seam_ticks: within how many ticks a late chunk takes over from the one before it, see :func:`seam_correction`; 0 is at once.
        """
        self._spec = spec
        self._noise_shape = noise_shape
        self._seam_ticks = seam_ticks
        self._history = ObservationHistory(spec.observation_horizon)
        self._rng: np.random.Generator | None = None
        self._epoch = 0
        self._requests = 0
        self._tick = -1
        self._collected = -1  # the last tick whose chunks are there
        self._stamp_ns = 0
        self._epoch_began: int | None = None
        self._pending: dict[ChunkRequest, tuple[PolicySpec, int]] = {}  # and the tick at which its chunk is expected; oldest first
        self._running: _Running | None = None
        self._before: _Running | None = None  # what ran until the newest chunk joined
        self.generation = 0  # of the policy that requests go to
        self.delay_ticks = 0  # after how many ticks a chunk is expected; set by whoever measures
        self.counters = TimelineCounters()
        self.seam: Seam | None = None  # of the chunk delivered last, if it joined and the one before it reached that far

    def reset(self, rng: np.random.Generator) -> None:
        """Starts an episode: no past, and noise from ``rng`` from here on."""
        self._rng = rng
        self.forget()

    def forget(self) -> None:
        """Drops history, plan, and what is under way: what was seen and planned before a hold is no answer to the world after it."""
        self._epoch += 1
        self._epoch_began = None
        self._history.clear()
        self._pending.clear()
        self._running = self._before = None

    def adopt(self, spec: PolicySpec, noise_shape: tuple[int, ...]) -> None:
        """Asks another policy from the next request on; what the old one has planned stays until a chunk replaces it."""
        self._history = self._history.resized(spec.observation_horizon)
        self._spec, self._noise_shape = spec, noise_shape
        self.generation += 1

    @property
    def in_flight(self) -> int:
        """How many chunks are under way."""
        return len(self._pending)

    @property
    def uncovered(self) -> bool:
        """Whether the present tick lies beyond what the running chunk is planned for, so that a chunk is worth waiting for."""
        return self._running is None or self._tick >= self._running.end

    @property
    def empty(self) -> bool:
        """Whether there is no action at all for the present tick, not even in the rest of a chunk."""
        return self._running is None or self._running.at(self._tick) is None

    def due(self, tick: int) -> bool:
        """Whether a chunk has to be asked for at a tick, which is the present or the next one."""
        awaited = self._awaited(tick)
        if self._running is None or (awaited and awaited[-1].tick == tick):  # nothing new has been seen since
            return not awaited
        end = self._running.end
        if awaited:
            spec, comes = self._pending[awaited[-1]]
            end = min(max(comes, tick) + spec.executed_length, awaited[-1].tick + spec.chunk_length)
        return tick + self.delay_ticks >= end

    def _awaited(self, tick: int) -> list[ChunkRequest]:
        """Whose chunks would join, less those that are overdue: which these are is known when a tick's chunks are collected."""
        asked = [(request, comes) for request, (_, comes) in self._pending.items() if self._joins(request)]
        return [request for request, comes in asked if tick != self._collected or tick < max(comes, request.tick + 1)]

    def _joins(self, request: ChunkRequest) -> bool:
        """Whether its chunk would take over from the running one."""
        return self._running is None or (not request.first and request.number > self._running.request.number)

    def observe(self, tick: int, observation: Array, stamp_ns: int = 0) -> None:
        """Begins a tick with its observation (Do,). Ticks ascend."""
        assert tick > self._tick, (tick, self._tick)
        self._tick = tick
        self._stamp_ns = stamp_ns
        self._epoch_began = tick if self._epoch_began is None else self._epoch_began
        self._history.append(observation)

    def request(self) -> ChunkRequest:
        """Asks for the chunk that begins with the present tick; call it when :meth:`due` says so and something can compute it."""
        if self._rng is None:
            raise RuntimeError("reset() comes before a request")
        request = ChunkRequest(
            number=self._requests,
            epoch=self._epoch,
            generation=self.generation,
            tick=self._tick,
            stamp_ns=self._stamp_ns,
            observation=self._history.stack(),
            noise=self._rng.standard_normal(self._noise_shape),
            previous=self._previous(),
            committed=self._committed(),
            first=self._running is None,
        )
        self._requests += 1
        self.counters.inferences += 1
        self._pending[request] = self._spec, self._tick + self.delay_ticks
        return request

    def expects(self, request: ChunkRequest) -> bool:
        """Whether the answer to a request would still be taken."""
        return request in self._pending

    def withdraw(self, request: ChunkRequest) -> None:
        """Forgets a request that will not be answered."""
        self._pending.pop(request, None)

    def keep_only(self, wanted: Callable[[ChunkRequest], bool]) -> None:
        """Forgets all other requests; what comes in answer to them is dropped."""
        self._pending = {request: entry for request, entry in self._pending.items() if wanted(request)}

    def collected(self) -> None:
        """All chunks that come in the present tick have been delivered: what was expected by now is overdue."""
        self._collected = self._tick

    def deliver(self, request: ChunkRequest, chunk: Array) -> bool:
        """Takes a chunk (Ta, Da) that has come; returns whether it joined. ``seam`` is that of this chunk afterwards.

        Raises:
            ValueError: it has another length than the policy's spec says.
        """
        self.seam = None
        if request not in self._pending:
            self.counters.stale_chunks += 1
            return False
        spec, _ = self._pending.pop(request)
        if len(chunk) != spec.chunk_length:
            raise ValueError(f"the policy yields {len(chunk)} actions, its spec says {spec.chunk_length}")
        if self._tick - request.tick >= spec.chunk_length or not self._joins(request):
            self.counters.late_chunks += 1
            return False
        first = self._tick if request.first else request.tick
        end = min(self._tick + spec.executed_length, first + spec.chunk_length)
        self._before, self._running = self._running, _Running(request, chunk, first, self._tick, end)
        self.counters.chunks += 1
        self.counters.discarded_actions += self._tick - first
        self._measure_seam()
        return True

    def act(self) -> TimedAction | Gap:
        """The action (Da,) of the present tick. A chunk that came in the tick it was asked for is carried out as it is."""
        tick, running = self._tick, self._running
        if running is None or (vector := running.at(tick)) is None:
            began = tick if self._epoch_began is None else self._epoch_began
            expected = running is None and tick - began <= self.delay_ticks
            self.counters.underruns += not expected
            return Gap(tick, expected)
        self.counters.bridged_ticks += tick >= running.end
        point = self._seam_point()
        smooth = vector.copy() if point is None else vector - self._correction(point)
        return TimedAction(tick, smooth, Source(running.request.number, tick - running.first), point)

    def _seam_point(self) -> SeamPoint | None:
        """Of the present tick, None where the running chunk is carried out as it is."""
        running, before = self._running, self._before
        if running is None or before is None or running.joined == running.first or before.at(running.joined) is None:
            return None
        since = self._tick - running.joined
        if since >= self._seam_ticks:
            return None
        old = Source(before.request.number, running.joined - before.first)
        return SeamPoint(old, Source(running.request.number, running.joined - running.first), since)

    def _correction(self, point: SeamPoint) -> Array:
        assert self._running is not None and self._before is not None
        return seam_correction(self._before.chunk, self._running.chunk, point.old.index, point.new.index, point.since, self._seam_ticks)

    def _measure_seam(self) -> None:
        """Only where the old chunk has an action for the tick of the join."""
        tick = self._tick
        old = None if self._before is None else self._before.at(tick)
        new = None if self._running is None else self._running.at(tick)
        if old is not None and new is not None:
            found = new - old
            point = self._seam_point()
            self.seam = Seam(found, found if point is None else found - self._correction(point))

    def _previous(self) -> Array | None:
        """The last chunk, moved so that a policy which shifts it by its executed length finds the actions of the present tick in front."""
        running, spec = self._running, self._spec
        if not spec.reads_previous or running is None or len(running.chunk) != spec.chunk_length:  # of another policy, before a hot swap
            return None
        moved = self._tick - running.first - spec.executed_length
        return running.chunk[np.clip(np.arange(spec.chunk_length) + moved, 0, spec.chunk_length - 1)]

    def _committed(self) -> Committed | None:
        """The rest of the running chunk, with the soft mask of real-time chunking (eq. 5): hard until the next join, then falling.

        None when chunks come in the tick they are asked for: then nothing is committed, and the policy is the plain one.
        """
        running, length, delay = self._running, self._spec.chunk_length, self.delay_ticks
        if not self._spec.reads_committed or delay == 0 or running is None:
            return None
        known = running.chunk[self._tick - running.first :][:length]
        joins = [self._pending[request][1] - self._tick for request in self._awaited(self._tick)]
        hard = min([delay, len(known), *(ticks for ticks in joins if ticks >= 0)])
        share = np.arange(len(known) - hard, 0, -1) / (len(known) - hard + 1)
        weight = np.zeros(length)
        weight[:hard] = 1.0
        weight[hard : len(known)] = share * np.expm1(share) / np.expm1(1.0)
        actions = np.zeros((length, self._spec.action.size))
        actions[: len(known)] = known
        return Committed(actions, weight)


def lanes_needed(delay_ticks: int, spec: PolicySpec) -> int:
    """How many inferences have to run at once so that a delay leaves no gap, at least 1.

    Of a chunk that is d ticks late Ta - d actions are left, of which at most ``executed_length`` are carried out. If that is less than d,
    the next chunk has to be asked for before this one has come.
    """
    lasts = min(spec.executed_length, spec.chunk_length - delay_ticks)
    return 1 if lasts < 1 else max(1, -(-delay_ticks // lasts))
