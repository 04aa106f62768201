# SPDX-License-Identifier: Apache-2.0
"""Laws of inference in threads: nothing that a policy does makes the control thread wait longer than a tick can spare."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import tiny_policy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from otpr_policy.chunk import episode_rng
from otpr_policy.chunk_executor import ChunkExecutor, Event
from otpr_policy.inference_worker import DelayEstimate, InferenceWorker, Waiting
from otpr_policy.lanes import infer
from otpr_policy.receding_horizon import RecedingHorizon
from otpr_policy.spec import Array, PolicySpec
from otpr_policy.timeline import SEAM_TICKS, ChunkRequest, Gap, TimedAction, seam_correction

LONG = replace(tiny_policy.SPEC, chunk_length=16, executed_length=8)
PERIOD_S = 0.05
PATIENT = Waiting(PERIOD_S, 5.0, 5.0)
"""Of tests whose policies are fast: a busy machine must not make them slow."""
OBSERVATION = np.zeros(LONG.observation.size)


@dataclass
class Slow:
    """Takes its time, acts on its noise, and does what it is told to: raise, or hang until it is let go."""

    spec: PolicySpec = LONG
    noise_shape: tuple[int, ...] = (1, 16, 7)
    duration_s: float = 0.0
    error: Exception | None = None
    gate: threading.Event | None = None
    calls: int = 0

    def infer(self, observation: NDArray[Any], noise: NDArray[Any]) -> Array:
        self.calls += 1
        if self.gate is not None:
            self.gate.wait(30)
        time.sleep(self.duration_s)
        if self.error is not None:
            raise self.error
        return np.asarray(noise[0] + observation[-1, 0])


@pytest.fixture
def start() -> Iterator[Callable[..., InferenceWorker]]:
    workers: list[InferenceWorker] = []

    def make(*policies: Slow, waiting: Waiting = PATIENT) -> InferenceWorker:
        workers.append(InferenceWorker(policies, waiting))
        return workers[-1]

    yield make
    for worker in workers:
        for policy in worker.policies:
            if policy.gate is not None:  # type: ignore[attr-defined]
                policy.gate.set()  # type: ignore[attr-defined]
        assert worker.close(5.0) == 0


def executor_of(worker: InferenceWorker, **options: Any) -> ChunkExecutor:
    executor = ChunkExecutor(worker, **options)
    executor.reset(episode_rng(1, 2))
    return executor


def timed_act(executor: ChunkExecutor, tick: int, value: float = 0.0) -> tuple[TimedAction | Gap, float]:
    began = time.perf_counter()
    action = executor.act(tick, OBSERVATION + value)
    return action, time.perf_counter() - began


def test_a_fast_policy_is_used_in_the_tick_it_is_asked_in_and_equals_synchronous_inference(start: Callable[..., InferenceWorker]) -> None:
    executor, direct = executor_of(start(Slow())), RecedingHorizon(Slow())
    direct.reset(episode_rng(1, 2))
    for tick in range(40):
        action, _ = timed_act(executor, tick, float(tick))
        assert isinstance(action, TimedAction)
        assert np.array_equal(action.vector, direct.act(OBSERVATION + tick))
    assert executor.counters.discarded_actions == executor.counters.underruns == 0


def test_a_hanging_policy_costs_a_tick_no_more_than_its_share_and_ends_in_gaps(start: Callable[..., InferenceWorker]) -> None:
    policy = Slow()
    worker = start(policy)
    executor = executor_of(worker)
    timed_act(executor, 0)
    policy.gate = threading.Event()
    worker._waiting = Waiting(PERIOD_S, 0.02, 0.04)
    actions, durations_s = zip(*(timed_act(executor, tick) for tick in range(1, 25)), strict=True)
    assert [isinstance(action, Gap) for action in actions] == [False] * 15 + [True] * 9  # the rest of the chunk bridges
    assert sorted(durations_s)[-3] < 0.04 + 0.05, durations_s  # two outliers belong to the machine
    assert (executor.counters.bridged_ticks, executor.counters.underruns) == (8, 9)


def test_closing_does_not_wait_for_what_hangs() -> None:
    policy = Slow(gate=threading.Event())
    worker = InferenceWorker([policy], Waiting.on_clock(PERIOD_S))
    executor = executor_of(worker)
    timed_act(executor, 0)
    began = time.perf_counter()
    assert worker.close(0.1) == 1
    assert time.perf_counter() - began < 1.0
    assert policy.gate is not None
    policy.gate.set()
    assert worker.close(5.0) == 0


def test_an_error_reaches_the_tick_that_collects_it(start: Callable[..., InferenceWorker]) -> None:
    executor = executor_of(start(Slow(error=RuntimeError("device lost"))))
    with pytest.raises(RuntimeError, match="device lost"):
        executor.act(0, OBSERVATION)
    assert not executor.lanes.durations_s  # type: ignore[attr-defined]  # a failure is no latency


def test_an_error_of_before_a_new_start_is_none_of_its_business(start: Callable[..., InferenceWorker]) -> None:
    policy = Slow(error=RuntimeError("device lost"), gate=threading.Event())
    worker = start(policy, Slow(), waiting=Waiting(PERIOD_S, 0.05, 0.05))
    executor = executor_of(worker)
    executor.act(0, OBSERVATION)
    executor.reset(episode_rng(0, 0))
    assert policy.gate is not None
    policy.gate.set()
    while worker.free < 2:
        time.sleep(0.001)
    worker._waiting = PATIENT
    assert all(isinstance(executor.act(tick, OBSERVATION), TimedAction) for tick in range(1, 4))


def test_in_lockstep_a_slow_policy_is_waited_for(start: Callable[..., InferenceWorker]) -> None:
    executor = executor_of(start(Slow(duration_s=2 * PERIOD_S), waiting=Waiting.in_lockstep(PERIOD_S)))
    actions = [executor.act(tick, OBSERVATION) for tick in range(17)]
    assert [action.source.index for action in actions if isinstance(action, TimedAction)] == [tick % 8 for tick in range(17)]
    assert executor.counters.discarded_actions == 0


def test_an_interruption_ends_a_wait_in_lockstep(start: Callable[..., InferenceWorker]) -> None:
    worker = start(Slow(gate=threading.Event()), waiting=Waiting.in_lockstep(PERIOD_S))
    executor = executor_of(worker)
    threading.Timer(0.1, worker.interrupt).start()
    action, duration_s = timed_act(executor, 0)
    assert isinstance(action, Gap) and 0.05 < duration_s < 5.0


@pytest.mark.parametrize(("share", "lanes"), [(0.5, 2), (0.6, 3), (0.8, 6)])
def test_as_many_lanes_are_opened_as_the_measured_delay_needs_and_one_to_spare(share: float, lanes: int) -> None:
    """At 50 Hz, with 16 actions to a chunk; a clock that only the policy moves."""
    now_s = 0.0

    class Ticking(Slow):
        def infer(self, observation: NDArray[Any], noise: NDArray[Any]) -> Array:
            nonlocal now_s
            now_s += share * 16 * 0.02 - 0.02  # the estimate's margin is a period
            return np.zeros((16, 7))

    worker = InferenceWorker.open(Ticking, Waiting.on_clock(0.02), clock=lambda: now_s)
    try:
        assert worker.delay_ticks == np.ceil(round(share * 16 - 0.2, 9))
        assert worker.free == len(worker.policies) == lanes
    finally:
        worker.close()


def test_a_policy_faster_than_the_spare_time_is_expected_in_its_tick() -> None:
    """By hand: at 20 Hz a tick can spare 10 ms; 8 ms and a quarter are just these, 8.1 ms need one more. 400 ms and a period are 9."""
    for duration_s, ticks in ((0.0005, 0), (0.008, 0), (0.0081, 1), (0.047, 1), (0.05, 2), (0.4, 9)):
        estimate = DelayEstimate(PERIOD_S, 0.2 * PERIOD_S)
        estimate.add(duration_s)
        assert estimate.ticks == ticks, duration_s


def test_one_slow_inference_in_many_does_not_change_what_is_expected_and_many_do() -> None:
    estimate = DelayEstimate(PERIOD_S, 0.2 * PERIOD_S)
    for _ in range(255):
        estimate.add(0.001)
    estimate.add(1.0)
    assert estimate.ticks == 0
    for _ in range(10):
        estimate.add(0.1)
    assert estimate.ticks == 3
    for _ in range(256):
        estimate.add(0.001)
    assert estimate.ticks == 0  # and it forgets


@given(st.lists(st.floats(0, 2), min_size=1, max_size=50))
@settings(deadline=None)
def test_the_estimate_never_lies_below_what_most_inferences_took(durations_s: list[float]) -> None:
    estimate = DelayEstimate(PERIOD_S, 0.2 * PERIOD_S)
    for duration_s in durations_s:
        estimate.add(duration_s)
    covered = [duration_s <= estimate.ticks * PERIOD_S + 0.2 * PERIOD_S for duration_s in durations_s]
    assert sum(covered) >= 0.95 * len(covered) - 1


# What an observer is told is enough to do everything again


def test_from_what_the_observer_was_told_every_action_can_be_computed_again(start: Callable[..., InferenceWorker]) -> None:
    events: list[Event] = []
    executor = executor_of(start(*(Slow(duration_s=0.004) for _ in range(3)), waiting=Waiting(0.005, 0.001, 0.001)), observer=events.append)
    executor.lanes._estimate.ticks = 4  # type: ignore[attr-defined]
    for tick in range(60):
        executor.act(tick, OBSERVATION + tick)
        time.sleep(0.005)
    requests = {event.number: event for event in events if isinstance(event, ChunkRequest)}
    actions = [event for event in events if isinstance(event, TimedAction)]
    assert executor.counters.discarded_actions > 0 and len(actions) > 40
    fresh = Slow()
    again = {number: infer(fresh, request) for number, request in requests.items()}
    for action in actions:
        vector = again[action.source.request][action.source.index]
        if action.seam is not None:
            point = action.seam
            old, new = again[point.old.request], again[point.new.request]
            vector = vector - seam_correction(old, new, point.old.index, point.new.index, point.since, SEAM_TICKS)
        assert np.array_equal(action.vector, vector)


# Another policy takes over


@dataclass
class Constant:
    """Every number of its chunks is its own, so that it can be seen who acts."""

    value: float
    spec: PolicySpec = LONG
    noise_shape: tuple[int, ...] = (1, 16, 7)
    duration_s: float = 0.0
    error: Exception | None = None
    gate: threading.Event | None = None
    seen: list[Array] = field(default_factory=list)

    def infer(self, observation: NDArray[Any], noise: NDArray[Any]) -> Array:
        self.seen.append(observation.copy())
        time.sleep(self.duration_s)
        if self.error is not None:
            raise self.error
        return np.full((self.spec.chunk_length, 7), self.value)


def change(executor: ChunkExecutor, worker: InferenceWorker, **options: Any) -> list[str | None]:
    outcomes: list[str | None] = []
    executor.change(worker, outcomes.append, **options)
    return outcomes


def test_another_policy_takes_over_with_its_first_chunk_and_no_tick_is_without_an_action(start: Callable[..., InferenceWorker]) -> None:
    executor = executor_of(start(Constant(1.0)))
    actions = [executor.act(tick, OBSERVATION) for tick in range(3)]
    new = start(Constant(2.0, spec=replace(LONG, observation_horizon=2, chunk_length=6, executed_length=6), noise_shape=(3, 6, 7)))
    outcomes = change(executor, new)
    for tick in range(3, 20):
        assert executor.lanes is not new or tick > 8
        actions.append(executor.act(tick, OBSERVATION + tick))
    values = [action.vector[0] for action in actions if isinstance(action, TimedAction)]
    assert values == [1.0] * 8 + [2.0] * 12
    assert outcomes == [None] and executor.lanes is new
    assert new.policies[0].seen[0][:, 0].tolist() == [7.0, 8.0]  # type: ignore[attr-defined]  # the past goes on


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (Constant(2.0, error=RuntimeError("no kernel")), "no kernel"),
        (Constant(2.0, duration_s=2.0), "did not come in time"),
    ],
)
def test_a_policy_that_does_not_answer_or_fails_does_not_take_over(
    start: Callable[..., InferenceWorker], policy: Constant, reason: str
) -> None:
    executor = executor_of(start(Constant(1.0)))
    executor.act(0, OBSERVATION)
    old = executor.lanes
    outcomes = change(executor, start(policy, waiting=Waiting(PERIOD_S, 0.02, 0.04)))
    actions = [executor.act(tick, OBSERVATION) for tick in range(1, 40)]
    assert len(outcomes) == 1 and reason in str(outcomes[0])
    assert executor.lanes is old
    assert isinstance(actions[-1], TimedAction) and actions[-1].vector[0] == 1.0
    assert sum(isinstance(action, Gap) for action in actions) <= 1


def test_when_nothing_moves_the_policy_changes_at_once(start: Callable[..., InferenceWorker]) -> None:
    executor = executor_of(start(Constant(1.0)))
    executor.act(0, OBSERVATION)
    outcomes = change(executor, start(Constant(2.0)), at_once=True)
    assert outcomes == [None]
    executor.reset(episode_rng(0, 0))
    action = executor.act(1, OBSERVATION)
    assert isinstance(action, TimedAction) and action.vector[0] == 2.0


def test_of_two_changes_in_a_row_the_later_one_is_made_and_the_earlier_one_hears_of_it(start: Callable[..., InferenceWorker]) -> None:
    executor = executor_of(start(Constant(1.0)))
    executor.act(0, OBSERVATION)
    first, second = change(executor, start(Constant(2.0))), change(executor, start(Constant(3.0)))
    for tick in range(1, 10):
        action = executor.act(tick, OBSERVATION)
    assert first == ["another policy was loaded after it"] and second == [None]
    assert isinstance(action, TimedAction) and action.vector[0] == 3.0
