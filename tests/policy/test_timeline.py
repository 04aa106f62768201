# SPDX-License-Identifier: Apache-2.0
"""Laws of chunks on a line of ticks: which action is due, what time has passed, when to ask for more. Time is an argument."""

from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import tiny_policy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from otpr_policy.chunk import episode_rng
from otpr_policy.spec import Array, PolicySpec
from otpr_policy.timeline import ChunkRequest, Gap, Source, TimedAction, Timeline, lanes_needed, seam_correction

NOISE = (1, 16, 7)
LONG = replace(tiny_policy.SPEC, chunk_length=16, executed_length=8)


def chunk_of(request: ChunkRequest, length: int = 16) -> Array:
    """Whose action at index i is 1000 * number + i in every component."""
    return np.repeat(1000.0 * request.number + np.arange(length)[:, None], 7, axis=1)


@dataclass
class Run:
    """A timeline whose chunk number n takes ``delays[n]`` ticks."""

    spec: PolicySpec
    delays: list[int]
    expected: int
    lanes: int
    seam_ticks: int = 0
    actions: list[TimedAction | Gap] = field(default_factory=list)
    requests: list[ChunkRequest] = field(default_factory=list)
    joins: dict[int, int] = field(default_factory=dict)  # request -> tick
    epoch_began: int = 0

    def __post_init__(self) -> None:
        self.line = Timeline(self.spec, NOISE, self.seam_ticks)
        self.line.delay_ticks = self.expected
        self.line.reset(episode_rng(0, 0))
        self.under_way: deque[tuple[int, ChunkRequest]] = deque()

    def tick(self, tick: int) -> TimedAction | Gap:
        self.line.observe(tick, np.full(self.spec.observation.size, float(tick)), 100 * tick)
        for _ in range(2):
            self.ask(tick)
            self.receive(tick)
        self.actions.append(self.line.act())
        return self.actions[-1]

    def receive(self, tick: int) -> None:
        for arrival, request in sorted(self.under_way, key=lambda entry: (entry[0], entry[1].number)):
            if arrival <= tick and self.line.deliver(request, chunk_of(request, self.spec.chunk_length)):
                self.joins[request.number] = tick
        self.under_way = deque(entry for entry in self.under_way if entry[0] > tick)

    def ask(self, tick: int) -> None:
        if self.line.due(tick) and len(self.under_way) < self.lanes:
            request = self.line.request()
            self.requests.append(request)
            self.under_way.append((tick + self.delays[request.number % len(self.delays)], request))

    def play(self, ticks: int) -> "Run":
        for tick in range(ticks):
            self.tick(tick)
        return self

    def newest_joined(self, tick: int) -> int:
        return max(number for number, joined in self.joins.items() if joined <= tick)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    length = draw(st.integers(1, 20))
    spec = replace(LONG, chunk_length=length, executed_length=draw(st.integers(1, length)))
    expected = draw(st.integers(0, length - 1))
    delays = draw(st.lists(st.integers(0, expected), min_size=1, max_size=12))
    return Run(spec, delays, expected, lanes_needed(expected, spec))


@given(runs())
@settings(max_examples=300, deadline=None)
def test_while_no_chunk_takes_longer_than_expected_there_is_no_gap_after_the_first(run: Run) -> None:
    run.play(80)
    first = next(index for index, action in enumerate(run.actions) if isinstance(action, TimedAction))
    assert first <= run.expected
    assert all(isinstance(action, TimedAction) for action in run.actions[first:])
    assert run.line.counters.underruns == 0


@st.composite
def wild_runs(draw: st.DrawFn) -> Run:
    """Any expectation, any delays, any number of lanes."""
    length = draw(st.integers(1, 20))
    spec = replace(LONG, chunk_length=length, executed_length=draw(st.integers(1, length)))
    delays = draw(st.lists(st.integers(0, 30), min_size=1, max_size=12))
    return Run(spec, delays, draw(st.integers(0, 25)), draw(st.integers(1, 4)))


@given(wild_runs())
@settings(max_examples=300, deadline=None)
def test_every_tick_gets_the_action_of_the_newest_chunk_at_the_index_that_time_has_come_to_or_none(run: Run) -> None:
    run.play(80)
    asked = {request.number: request for request in run.requests}
    for tick, action in enumerate(run.actions):
        assert action.tick == tick
        available = [number for number, joined in run.joins.items() if joined <= tick]
        if not available:
            assert isinstance(action, Gap)
            continue
        number = max(available)
        begins = run.joins[number] if asked[number].first else asked[number].tick
        if isinstance(action, Gap):
            assert tick - begins >= run.spec.chunk_length and not action.expected
        else:
            assert (action.source.request, action.source.index) == (number, tick - begins)
            assert action.vector.tolist() == [1000.0 * number + tick - begins] * 7


@given(wild_runs())
@settings(max_examples=200, deadline=None)
def test_nothing_is_carried_out_twice_and_what_is_discarded_is_exactly_what_time_has_passed(run: Run) -> None:
    run.play(80)
    sources = [action.source for action in run.actions if isinstance(action, TimedAction)]
    assert len(set(sources)) == len(sources)
    assert sources == sorted(sources, key=lambda source: (source.request, source.index))
    asked = {request.number: request for request in run.requests}
    late = {number: 0 if asked[number].first else joined - asked[number].tick for number, joined in run.joins.items()}
    assert run.line.counters.discarded_actions == sum(late.values())
    assert run.line.counters.chunks == len(run.joins)
    for number, joined in run.joins.items():
        action = run.actions[joined]
        assert isinstance(action, TimedAction)
        if run.newest_joined(joined) == number:
            assert (action.source.request, action.source.index) == (number, late[number])


@given(wild_runs())
@settings(max_examples=200, deadline=None)
def test_more_than_the_executed_length_of_a_chunk_is_carried_out_only_as_counted_bridging(run: Run) -> None:
    run.play(80)
    beyond = 0
    for action in run.actions:
        if isinstance(action, TimedAction):
            joined = run.joins[action.source.request]
            beyond += action.tick - joined >= run.spec.executed_length
    assert run.line.counters.bridged_ticks == beyond
    gaps = [action for action in run.actions if isinstance(action, Gap) and not action.expected]
    assert run.line.counters.underruns == len(gaps)


@pytest.mark.parametrize(("length", "executed"), [(4, 4), (5, 3), (16, 8), (16, 1), (1, 1)])
def test_without_delay_it_is_receding_horizon_control(length: int, executed: int) -> None:
    """Chunk after chunk, each for its executed length, each asked for in the tick of its first action."""
    run = Run(replace(LONG, chunk_length=length, executed_length=executed), [0], 0, 1, seam_ticks=4).play(50)
    assert [(a.source.request, a.source.index) for a in run.actions if isinstance(a, TimedAction)] == [
        (tick // executed, tick % executed) for tick in range(50)
    ]
    assert [request.tick for request in run.requests] == list(range(0, 50, executed))
    assert run.line.counters.discarded_actions == run.line.counters.bridged_ticks == 0
    assert all(action.seam is None for action in run.actions if isinstance(action, TimedAction))


def test_a_chunk_is_asked_for_at_the_last_tick_at_which_it_still_comes_in_time() -> None:
    """By hand: Ta = 16, 8 carried out, 5 ticks late. The first comes at tick 5 and lasts to 12; so the next is asked for at 13 - 5."""
    run = Run(LONG, [5], 5, 1).play(40)
    assert [request.tick for request in run.requests] == [0, 8, 16, 24, 32]
    assert run.joins == {0: 5, 1: 13, 2: 21, 3: 29, 4: 37}
    indices = [(a.source.request, a.source.index) for a in run.actions[5:29] if isinstance(a, TimedAction)]
    assert indices == [(0, i) for i in range(8)] + [(1, i) for i in range(5, 13)] + [(2, i) for i in range(5, 13)]


@pytest.mark.parametrize(("delay", "lanes"), [(0, 1), (1, 1), (8, 1), (9, 2), (11, 3), (13, 5), (15, 15), (16, 1), (40, 1)])
def test_how_many_inferences_run_at_once(delay: int, lanes: int) -> None:
    assert lanes_needed(delay, LONG) == lanes


@pytest.mark.parametrize("delay", [9, 11, 13, 15])
def test_with_one_lane_less_than_needed_there_are_gaps(delay: int) -> None:
    """Guards the law above: it would hold for any number of lanes if so many were not needed."""
    needed = lanes_needed(delay, LONG)
    assert Run(LONG, [delay], delay, needed).play(120).line.counters.underruns == 0
    assert Run(LONG, [delay], delay, needed - 1).play(120).line.counters.underruns > 0


def test_a_late_chunk_is_bridged_by_the_rest_and_then_there_is_nothing() -> None:
    run = Run(LONG, [0, 20, 0], 0, 1).play(30)
    sources = [None if isinstance(action, Gap) else (action.source.request, action.source.index) for action in run.actions]
    assert sources[:16] == [(0, index) for index in range(16)]  # asked again at 8; the rest bridges
    assert sources[16:28] == [None] * 12  # it comes at 28, when all its actions are past
    assert sources[28:] == [(2, 0), (2, 1)]  # another one is asked for at once
    counters = run.line.counters
    assert (counters.bridged_ticks, counters.underruns, counters.late_chunks) == (8, 12, 1)


def test_a_result_that_arrives_behind_a_newer_one_is_dropped() -> None:
    run = Run(LONG, [0, 12, *[3] * 20], 13, 5).play(20)
    assert 1 not in run.joins and 2 in run.joins
    assert run.line.counters.late_chunks == 1


def test_a_result_from_before_forgetting_is_dropped_and_a_start_begins_when_its_chunk_comes() -> None:
    run = Run(LONG, [6], 6, 2)
    for tick in range(4):
        assert run.tick(tick).expected  # type: ignore[union-attr]
    run.line.forget()
    for tick in range(4, 10):
        assert isinstance(run.tick(tick), Gap)
    assert run.line.counters.stale_chunks == 1
    action = run.tick(10)
    assert isinstance(action, TimedAction) and (action.source.request, action.source.index) == (1, 0)
    assert run.requests[1].epoch == run.requests[0].epoch + 1
    assert run.line.counters.underruns == 0


def test_waiting_for_a_first_chunk_longer_than_expected_is_an_underrun() -> None:
    run = Run(LONG, [9], 4, 1).play(9)
    assert [action.expected for action in run.actions] == [True] * 5 + [False] * 4  # type: ignore[union-attr]
    assert run.line.counters.underruns == 4


def test_the_noise_is_drawn_in_the_order_of_requests_whatever_order_they_are_answered_in() -> None:
    run = Run(LONG, [0, 12, 3, 7, 1], 13, 5).play(60)
    stream = episode_rng(0, 0)
    assert [request.number for request in run.requests] == list(range(len(run.requests)))
    for request in run.requests:
        assert np.array_equal(request.noise, stream.standard_normal(NOISE))
        assert request.stamp_ns == 100 * request.tick and request.observation[-1, 0] == request.tick


def test_a_withdrawn_request_is_asked_for_again() -> None:
    run = Run(LONG, [3], 3, 1)
    run.tick(0)
    run.line.withdraw(run.requests[0])
    run.under_way.clear()
    assert run.line.in_flight == 0 and run.line.due(1)
    run.tick(1)
    assert run.requests[1].first


# The seam


def test_a_jump_passes_as_much_per_tick_as_the_chunks_own_largest_step_and_is_gone_in_time() -> None:
    """By hand: steps of at most 0.5, a jump of 1.2; three ticks; with at most 2 ticks it passes by 0.6."""
    old = np.array([[0.0], [0.5], [0.6], [0.6]])
    new = np.array([[1.0], [1.2], [1.7], [1.8]])
    left = [float(seam_correction(old, new, 0, 1, since, 4)[0]) for since in range(4)]
    assert left == pytest.approx([0.7, 0.2, 0.0, 0.0])
    assert [float(seam_correction(old, new, 0, 1, since, 2)[0]) for since in range(2)] == pytest.approx([0.6, 0.0])
    assert float(seam_correction(new, old, 1, 0, 0, 4)[0]) == pytest.approx(-0.7)  # the other way round


CHUNKS = hypothesis_numpy.arrays(np.float64, (6, 3), elements=st.floats(-1, 1))


@given(CHUNKS, CHUNKS, st.integers(0, 5), st.integers(0, 5), st.integers(1, 6))
@settings(deadline=None)
def test_at_the_join_no_component_jumps_more_than_the_chunks_do_inside_or_its_share_of_the_ticks(
    old: Array, new: Array, old_index: int, new_index: int, ticks: int
) -> None:
    jump = new[new_index] - old[old_index]
    largest = np.maximum(np.abs(np.diff(old, axis=0)).max(axis=0), np.abs(np.diff(new, axis=0)).max(axis=0))
    corrections = [seam_correction(old, new, old_index, new_index, since, ticks) for since in range(ticks)]
    carried_out = new[new_index] - corrections[0] - old[old_index]
    assert (np.abs(carried_out) <= np.maximum(largest, np.abs(jump) / ticks) + 1e-12).all()
    small = np.abs(jump) <= largest
    assert (corrections[0][small] == 0).all()  # what the chunks do themselves is not touched
    sizes = np.abs(corrections)
    assert (np.diff(sizes, axis=0) <= 1e-12).all() and sizes[-1].max() < 1e-12  # and it is gone in the end


def test_a_late_chunk_is_joined_without_a_jump_and_a_chunk_in_time_as_it_is() -> None:
    """By hand: the chunks' steps are 1; at tick 13 the old one is at 8, the new one at 1005: of 997 each tick lets a quarter through."""
    run = Run(LONG, [5], 5, 1, seam_ticks=4).play(20)
    for tick, share in ((12, None), (13, 0.75), (14, 0.5), (15, 0.25), (16, 0.0), (17, None)):
        action = run.actions[tick]
        assert isinstance(action, TimedAction) and (action.seam is None) == (share is None)
        new = 1000.0 + tick - 8 if tick >= 13 else 0.0 + tick - 5
        assert action.vector[0] == pytest.approx(new - 997.0 * (share or 0.0))
        if action.seam is not None:
            assert (action.seam.old, action.seam.new, action.seam.since) == (Source(0, 8), Source(1, 5), tick - 13)
    assert run.line.seam is not None
    assert run.line.seam.found[0] == 1005.0 - 8.0
    assert run.line.seam.left[0] == pytest.approx(0.25 * (1005.0 - 8.0))


def test_where_the_old_chunk_has_ended_there_is_no_seam_and_the_new_one_holds_alone() -> None:
    run = Run(replace(LONG, chunk_length=4, executed_length=4), [1], 1, 1, seam_ticks=4).play(9)
    assert run.joins == {0: 1, 1: 5, 2: 8}
    assert run.line.seam is None
    assert all(action.seam is None for action in run.actions if isinstance(action, TimedAction))


# What a policy is shown of what went before


def test_the_previous_chunk_is_moved_so_that_its_part_for_the_present_tick_lies_where_the_policy_looks() -> None:
    """The policy shifts by the executed length, 8. Asked 8 ticks after its first action it is the chunk itself."""
    spec = replace(LONG, reads_previous=True)
    sync = Run(spec, [0], 0, 1).play(9)
    assert sync.requests[0].previous is None
    assert sync.requests[1].previous is not None and np.array_equal(sync.requests[1].previous, chunk_of(sync.requests[0]))
    late = Run(spec, [5], 5, 1).play(17)  # request 1 at tick 8 sees chunk 0, which began at 5; request 2 at 16 chunk 1 of tick 8
    seen = late.requests[1].previous
    assert seen is not None and seen[8:, 0].tolist() == [3, 4, 5, 6, 7, 8, 9, 10]
    assert late.requests[2].previous is not None and np.array_equal(late.requests[2].previous, chunk_of(late.requests[1]))


def test_what_is_committed_is_what_will_have_been_carried_out_when_the_chunk_comes() -> None:
    """By hand: asked at tick 8 with the running chunk at index 3, 13 actions known, 5 of them before the join."""
    spec = replace(LONG, reads_committed=True)
    run = Run(spec, [5], 5, 1).play(14)
    assert run.requests[0].committed is None
    committed = run.requests[1].committed
    assert committed is not None
    assert committed.actions[:, 0].tolist() == [*range(3, 16), 0, 0, 0]
    assert committed.weight[:5].tolist() == [1.0] * 5 and committed.weight[13:].tolist() == [0.0] * 3
    share = (13 - np.arange(5, 13)) / (13 - 5 + 1)
    np.testing.assert_allclose(committed.weight[5:13], share * (np.exp(share) - 1) / (np.e - 1))
    carried_out = [run.actions[tick].vector[0] for tick in range(8, 13)]  # type: ignore[union-attr]
    assert committed.actions[:5, 0].tolist() == carried_out


@pytest.mark.parametrize("delay", range(1, 16))
def test_every_action_of_weight_one_is_carried_out_and_weights_fall(delay: int) -> None:
    run = Run(replace(LONG, reads_committed=True), [delay], delay, lanes_needed(delay, LONG)).play(100)
    for request in run.requests[1:-5]:
        committed = request.committed
        assert committed is not None and (np.diff(committed.weight) <= 0).all() and committed.weight[0] > 0
        for index in np.flatnonzero(committed.weight == 1.0):
            action = run.actions[request.tick + index]
            assert isinstance(action, TimedAction) and action.vector[0] == committed.actions[index, 0]


def test_without_delay_nothing_is_committed() -> None:
    run = Run(replace(LONG, reads_committed=True), [0], 0, 1).play(30)
    assert all(request.committed is None for request in run.requests)


# Another policy


def test_another_policy_is_asked_from_the_next_request_on_and_the_old_plan_goes_on_until_it_answers() -> None:
    run = Run(LONG, [5], 5, 1).play(8)
    short = replace(LONG, observation_horizon=3, chunk_length=10, executed_length=5)
    run.line.adopt(short, (2, 10, 7))
    run.spec = short
    for tick in range(8, 30):
        run.tick(tick)
    assert [request.generation for request in run.requests[:3]] == [0, 1, 1]
    first = run.requests[1]
    assert first.tick == 8 and first.noise.shape == (2, 10, 7)
    assert first.observation.shape == (3, LONG.observation.size)
    assert first.observation[:, 0].tolist() == [6, 7, 8]  # more past is kept than the old policy looked at
    assert isinstance(run.actions[12], TimedAction) and run.actions[12].source.request == 0
    assert isinstance(run.actions[13], TimedAction) and (run.actions[13].source.request, run.actions[13].source.index) == (1, 5)
    assert run.line.counters.underruns == 0


def test_a_chunk_of_another_length_than_its_own_policys_is_refused() -> None:
    run = Run(LONG, [2], 2, 1).play(1)
    with pytest.raises(ValueError, match="yields 15 actions, its spec says 16"):
        run.line.deliver(run.requests[0], np.zeros((15, 7)))
    assert run.line.in_flight == 0
