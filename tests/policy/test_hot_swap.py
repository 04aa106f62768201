# SPDX-License-Identifier: Apache-2.0
"""Laws of changing the policy, and of a lane that hangs, with delays in ticks: neither leaves anything behind that delays what follows."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import tiny_policy
from hypothesis import given, settings
from hypothesis import strategies as st

from otpr_policy.chunk import episode_rng
from otpr_policy.chunk_executor import ChunkExecutor, Event
from otpr_policy.lanes import Patience
from otpr_policy.spec import PolicySpec
from otpr_policy.timeline import ChunkRequest, ChunkResult, Gap, TimedAction, lanes_needed

OBSERVATION = np.zeros(tiny_policy.SPEC.observation.size)


def shape(length: int, executed: int) -> PolicySpec:
    """A policy by the length of its chunks and how much of them is carried out; it reads what is committed."""
    return replace(tiny_policy.SPEC, chunk_length=length, executed_length=executed, reads_committed=True)


@dataclass
class TickLanes:
    """Every chunk takes ``delay_ticks``; the requests that ``hangs`` names by their order take for ever, and keep their lane."""

    spec: PolicySpec
    delay_ticks: int
    free: int
    hangs: frozenset[int] = frozenset()
    fails: bool = False
    noise_shape: tuple[int, ...] = (1, 16, 7)
    _tick: int = 0
    _asked: int = 0
    _under_way: list[tuple[int, ChunkRequest]] = field(default_factory=list)

    def begin_tick(self) -> None:
        self._tick += 1

    def submit(self, request: ChunkRequest) -> None:
        assert self.free > 0
        self.free -= 1
        if self._asked not in self.hangs:
            self._under_way.append((self._tick + self.delay_ticks, request))
        self._asked += 1

    def collect(self, patience: Patience) -> Sequence[ChunkResult]:
        come = [request for arrival, request in self._under_way if arrival <= self._tick]
        self._under_way = [entry for entry in self._under_way if entry[0] > self._tick]
        self.free += len(come)
        error = RuntimeError("no kernel") if self.fails else None
        chunk = np.zeros((self.spec.chunk_length, 7))
        return [ChunkResult(request, None if error else chunk, error, 0.0) for request in come]


def lanes_of(spec: PolicySpec, delay: int, spare: int = 0, **options: object) -> TickLanes:
    return TickLanes(spec, delay, lanes_needed(delay, spec) + spare, **options)  # type: ignore[arg-type]


@dataclass
class Run:
    """An executor with what it has done so far."""

    lanes: TickLanes
    events: list[Event] = field(default_factory=list)
    outcomes: list[str | None] = field(default_factory=list)
    tick: int = 0

    def __post_init__(self) -> None:
        self.executor = ChunkExecutor(self.lanes, observer=self.events.append)
        self.executor.reset(episode_rng(0, 0))

    def play(self, ticks: int) -> "Run":
        for _ in range(ticks):
            self.tick += 1
            self.executor.act(self.tick, OBSERVATION)
        return self

    def change(self, lanes: TickLanes) -> "Run":
        self.executor.change(lanes, self.outcomes.append)
        return self

    def gaps(self, after: int = 0) -> list[int]:
        return [event.tick for event in self.events if isinstance(event, Gap) and event.tick > after]

    def asked(self, after: int = 0) -> list[int]:
        return [event.tick for event in self.events if isinstance(event, ChunkRequest) and event.tick > after]

    def requests(self) -> list[ChunkRequest]:
        return [event for event in self.events if isinstance(event, ChunkRequest)]


def cadence(ticks: list[int]) -> set[int]:
    return set(np.diff(ticks).tolist())


def lasts(spec: PolicySpec, delay: int) -> int:
    """How many actions of each chunk are carried out when every one is ``delay`` ticks late."""
    return min(spec.executed_length, spec.chunk_length - delay)


# Another policy

SLOW, FAST, MEDIUM, LONG = (shape(16, 4), 12), (shape(8, 4), 0), (shape(16, 8), 5), (shape(16, 4), 0)


@pytest.mark.parametrize("at", range(40, 48))
@pytest.mark.parametrize(("old", "new"), [(SLOW, FAST), (SLOW, MEDIUM), (LONG, MEDIUM), (MEDIUM, FAST), (FAST, FAST), (SLOW, SLOW)])
def test_after_a_change_of_the_policy_there_is_no_gap_and_the_new_one_is_asked_as_often_as_ever(
    old: tuple[PolicySpec, int], new: tuple[PolicySpec, int], at: int
) -> None:
    """From slow to fast, from fast to slow, at every tick of the running chunk."""
    run = Run(lanes_of(*old)).play(at).change(lanes_of(*new)).play(80)
    assert run.outcomes == [None]
    assert run.gaps(at) == []
    assert cadence(run.asked(at)) == {lasts(*new)}


@st.composite
def policies(draw: st.DrawFn) -> tuple[PolicySpec, int]:
    """Of any shape, and late by any time that its chunks allow."""
    length = draw(st.integers(1, 20))
    return shape(length, draw(st.integers(1, length))), draw(st.integers(0, length - 1))


@given(policies(), policies(), st.integers(40, 70))
@settings(max_examples=200, deadline=None)
def test_a_change_between_any_two_policies_leaves_no_gap_or_the_old_one_with_as_long_a_gap_as_its_own_delay(
    old: tuple[PolicySpec, int], new: tuple[PolicySpec, int], at: int
) -> None:
    """By then the plan has ended, and the old policy is asked again: its chunk comes ``delay`` ticks later, at the earliest in the next."""
    run = Run(lanes_of(*old)).play(at).change(lanes_of(*new)).play(100)
    kept = run.outcomes != [None]
    assert len(run.gaps(at)) <= (max(1, old[1]) if kept else 0)
    spec, delay = old if kept else new
    assert cadence(run.asked(at + 50)) == {lasts(spec, delay)}


@pytest.mark.parametrize("at", range(40, 48))
def test_a_policy_that_fails_costs_the_old_one_nothing_that_was_under_way(at: int) -> None:
    """By hand: 12 ticks late and 4 carried out, three chunks are under way; one is not asked for in the tick in which the new one fails."""
    run = Run(lanes_of(*SLOW)).play(at).change(lanes_of(shape(8, 4), 0, fails=True)).play(60)
    assert len(run.outcomes) == 1 and "no kernel" in str(run.outcomes[0])
    assert run.gaps(at) == []


def test_right_after_a_change_the_old_policys_requests_commit_nothing() -> None:
    """What will have been carried out when a chunk comes is what the new policy has planned, for as long as its own delay."""
    run = Run(lanes_of(*SLOW)).play(40).change(lanes_of(*MEDIUM)).play(20)
    of_new = [request for request in run.requests() if request.generation == 1]
    assert [request.committed is not None and int((request.committed.weight == 1.0).sum()) for request in of_new[1:]] == [5] * (
        len(of_new) - 1
    )


# A lane that hangs


@pytest.mark.parametrize("hung", range(4))
@pytest.mark.parametrize(("length", "executed", "delay"), [(8, 4, 0), (8, 4, 1), (8, 4, 2), (16, 6, 5), (16, 8, 4), (20, 8, 6)])
def test_with_one_of_two_lanes_hung_there_is_no_gap_and_the_other_is_asked_as_often_as_if_it_were_alone(
    length: int, executed: int, delay: int, hung: int
) -> None:
    """The rest of a chunk bridges until the chunk that is asked for in place of the lost one has come, where it is that long."""
    spec = shape(length, executed)
    assert lanes_needed(delay, spec) == 1 and 2 * delay + executed <= length
    run = Run(lanes_of(spec, delay, spare=1, hangs=frozenset({hung}))).play(100)
    first = max(1, delay) + delay if hung == 0 else delay  # of an episode: the robot stands still and waits
    assert run.gaps() == list(range(1, 1 + first))
    requests = run.requests()
    assert cadence([request.tick for request in requests[hung + 1 :]]) == {executed}
    assert len(requests) <= 1 + 1 + 100 // executed
    weights = [request.committed.weight for request in requests[max(1, hung + 2) :] if request.committed is not None]
    assert all((weight[:delay] == 1.0).all() for weight in weights)


@given(policies(), st.integers(0, 6))
@settings(max_examples=200, deadline=None)
def test_a_hung_lane_costs_no_more_than_asking_again_takes(policy: tuple[PolicySpec, int], hung: int) -> None:
    spec, delay = policy
    run = Run(lanes_of(spec, delay, spare=1, hangs=frozenset({hung}))).play(500)
    assert len(run.gaps()) <= delay + 2 * max(1, delay)
    settled = 60 + 2 * (hung + 1) * spec.chunk_length
    assert run.gaps(settled) == []
    assert cadence(run.asked(settled)) == {lasts(spec, delay)}


def test_an_overdue_chunk_that_comes_after_all_is_used_and_the_one_asked_for_in_its_place_continues_it() -> None:
    """By hand: expected after 2 ticks, the second one takes 3 and joins; the one that was asked for in its place continues it."""
    spec = shape(8, 4)
    lanes = lanes_of(spec, 2, spare=1)
    run = Run(lanes).play(6)
    assert run.asked() == [1, 5]
    arrival, request = lanes._under_way.pop()
    lanes._under_way.append((arrival + 1, request))
    run.play(30)
    assert run.asked()[:5] == [1, 5, 7, 11, 15]
    assert run.gaps() == [1, 2] and run.executor.counters.late_chunks == 0


def test_of_two_first_chunks_of_an_episode_the_one_that_comes_first_is_used_and_the_other_dropped() -> None:
    """By hand: expected at tick 3, asked again there, it comes at 4, lasts 4 ticks, and is continued by one that is asked for at 6."""
    lanes = lanes_of(shape(8, 4), 2, spare=1)
    run = Run(lanes).play(1)
    ((arrival, request),) = lanes._under_way
    lanes._under_way[:] = [(arrival + 1, request)]
    run.play(30)
    assert run.asked()[:4] == [1, 3, 6, 10]
    actions = [event for event in run.events if isinstance(event, TimedAction)]
    assert [(action.tick, action.source.request, action.source.index) for action in actions[:5]] == [
        *((4 + index, 0, index) for index in range(4)),
        (8, 2, 2),
    ]
    assert run.executor.counters.late_chunks == 1
