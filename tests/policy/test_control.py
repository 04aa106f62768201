# SPDX-License-Identifier: Apache-2.0
"""Laws of the control loop: a command leaves only when everything is right, and whatever is wrong ends in stillness."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny_policy
from scripted_robot import LIMITS, SAMPLES, STEP_NS, STILL, Robot, Script

from otpr_policy.chunk import episode_rng
from otpr_policy.command import delta_to_target
from otpr_policy.control import FIRST_CHUNK, MAY_MOVE, State
from otpr_policy.dead_man import AfterRelease
from otpr_policy.lanes import SimulatedLanes, infer
from otpr_policy.timeline import ChunkRequest, ChunkResult

EVENTS: dict[str, Callable[[Robot], object]] = {
    "good tick": lambda robot: robot.tick(),
    "blind tick": lambda robot: robot.blind_tick(),
    "engage": lambda robot: robot.engage(),
    "disengage": lambda robot: robot.loop.disengage(),
    "stop": lambda robot: robot.loop.stop("pressed"),
    "reset": lambda robot: robot.loop.reset(),
}
R, E, H, S = State.READY, State.ENGAGED, State.HOLD, State.STOPPED
TABLE = {
    #          good tick, blind tick, engage, disengage, stop, reset
    R: (R, R, E, R, S, R),
    E: (E, H, E, R, S, R),
    H: (E, H, H, R, S, R),
    S: (S, S, S, S, S, R),
}


@pytest.mark.parametrize(
    ("state", "event", "after"), [(state, event, after) for state in TABLE for event, after in zip(EVENTS, TABLE[state], strict=True)]
)
def test_every_event_in_every_state_leads_where_the_table_says(state: State, event: str, after: State) -> None:
    robot = Robot().in_state(state)
    EVENTS[event](robot)
    assert robot.loop.state is after


@pytest.mark.parametrize("state", list(State))
def test_a_command_leaves_in_the_state_engaged_and_in_no_other(state: State) -> None:
    robot = Robot().in_state(state)
    command = robot.tick()
    assert (command is not None) is (robot.loop.state is State.ENGAGED)
    assert robot.blind_tick() is None
    assert robot.loop.state is not State.ENGAGED


def test_a_command_is_the_delta_from_the_newest_measurement_and_carries_its_oldest_stamp() -> None:
    action = np.array([0.01, -0.02, 0.03, 0.1, 0.0, -0.15, 0.04])
    robot = Robot(action=action).in_state(State.ENGAGED)
    moved = np.array([0.52, 0.01, 0.12])
    robot.now_ns += STEP_NS
    robot.sense(ee_position=None)
    robot.buffer.push("ee_position", robot.now_ns - 7, moved, robot.now_ns)
    command = robot.loop.tick(robot.now_ns)
    expected = delta_to_target({**SAMPLES, "ee_position": moved}, tiny_policy.ACTION.split(action))
    assert command is not None
    assert command.stamp_ns == robot.now_ns - 7
    assert command.target.position.tobytes() == expected.position.tobytes()
    assert command.target.position.tolist() == pytest.approx([0.53, -0.01, 0.15])
    assert command.target.quaternion.tobytes() == expected.quaternion.tobytes()
    assert command.target.gripper_position == 0.04


def test_a_topic_that_stops_holds_the_robot_and_says_which() -> None:
    for name in SAMPLES:
        robot = Robot().in_state(State.ENGAGED)
        assert robot.tick() is not None
        commands = [robot.tick(**{name: None}) for _ in range(3)]
        assert [command is None for command in commands] == [False, False, True]  # 50 and 100 ms are fresh, 150 ms is not
        assert robot.loop.state is State.HOLD
        assert robot.loop.reason == f"{name} is 0.150 s old, allowed are 0.100 s"


def test_a_recovered_robot_infers_anew_from_what_it_sees_now() -> None:
    robot = Robot().in_state(State.ENGAGED)
    assert robot.tick() is not None
    assert robot.blind_tick() is None
    assert len(robot.policy.observations) == 1
    assert robot.tick(cube_position=[0.6, 0.1, -0.05]) is not None  # three actions of the old chunk were left
    assert len(robot.policy.observations) == 2
    assert robot.policy.observations[1][-1].tolist()[-3:] == [0.6, 0.1, -0.05]
    assert robot.loop.executor.counters.inferences == 2
    assert (robot.loop.state, robot.loop.reason) == (State.ENGAGED, "")


@pytest.mark.parametrize(("stop_after_s", "ticks"), [(0.2, 4), (0.5, 10), (0.05, 1), (0.001, 1)])
def test_a_hold_becomes_a_stop_after_exactly_the_configured_number_of_ticks(stop_after_s: float, ticks: int) -> None:
    robot = Robot(stop_after_s=stop_after_s).in_state(State.ENGAGED)
    states = [(robot.blind_tick(), robot.loop.state)[1] for _ in range(ticks + 1)]
    assert states == [State.HOLD] * ticks + [State.STOPPED]


def test_the_stop_is_counted_in_ticks_and_not_by_the_datas_clock() -> None:
    robot = Robot(stop_after_s=0.2).in_state(State.ENGAGED)
    for jump_ns in (10**15, 10**12, -(10**14), 3 * STEP_NS):  # stale after each
        robot.now_ns += jump_ns
        assert robot.loop.tick(robot.now_ns) is None
        assert robot.loop.state is State.HOLD
    assert robot.loop.tick(robot.now_ns) is None
    assert robot.loop.state is State.STOPPED


# N = 4 held ticks are allowed within any 16.


def _play(robot: Robot, pattern: str) -> list[State]:
    """Plays ticks, ``.`` with fresh samples and ``x`` without, and returns the state after each."""
    return [(robot.tick() if tick == "." else robot.blind_tick(), robot.loop.state)[1] for tick in pattern]


@pytest.mark.parametrize(
    "pattern",
    [
        "x.x.x.x.X",
        "xx..xx...X",
        "xxx...........xX",
        "xxxx...........X",
        "x..x..x..x..X",
        "............................xx.x.x.X",
    ],
)
def test_an_input_that_comes_and_goes_stops_the_robot_at_the_tick_that_makes_it_five_in_sixteen(pattern: str) -> None:
    robot = Robot(stop_after_s=0.2).in_state(State.ENGAGED)
    states = _play(robot, pattern.lower())
    assert states == [{".": State.ENGAGED, "x": State.HOLD, "X": State.STOPPED}[tick] for tick in pattern]
    assert "old, allowed are 0.100 s" in robot.loop.reason
    assert set(_play(robot, "." * 40)) == {State.STOPPED}


@pytest.mark.parametrize("pattern", ["xxxx............", "xxx............x", "x...", "xx......", "x.x.x.x........."])
def test_four_held_ticks_in_any_sixteen_go_on_for_ever(pattern: str) -> None:
    robot = Robot(stop_after_s=0.2).in_state(State.ENGAGED)
    states = _play(robot, pattern * 20)
    assert set(states) == {State.ENGAGED, State.HOLD}
    assert robot.loop.counters.holds == 20 * pattern.count("x")


def test_a_command_that_is_kept_back_is_none_holds_and_leaves_the_plan_and_too_many_are_a_stop() -> None:
    robot = Robot(stop_after_s=0.2).in_state(State.ENGAGED)
    for number in range(1, 6):
        assert robot.tick() is not None
        robot.loop.keep_back("too late")
        assert robot.loop.command is None
        assert (robot.loop.counters.commands, robot.loop.counters.holds) == (0, number)
        assert (robot.loop.state, robot.loop.reason) == (State.HOLD if number < 5 else State.STOPPED, "too late")
    assert len(robot.policy.observations) == 2  # chunks are carried out four ticks long: holding for this asks for none


def test_a_hand_whose_target_was_kept_back_is_at_rest_for_the_next() -> None:
    limits = replace(LIMITS, max_velocity_m_s=0.2)  # 1 cm per tick
    robot = Robot(limits=limits, action=np.array([0.02, 0, 0, 0, 0, 0, 0.02])).in_state(State.ENGAGED)
    targets = []
    for _ in range(3):
        command = robot.tick()
        assert command is not None
        targets.append(float(command.target.position[0]))
        robot.loop.keep_back("too late")
    assert targets == pytest.approx([0.51, 0.51, 0.51])  # else 0.51, 0.52, 0.53, of which nothing was sent


def test_engaging_starts_the_count_of_holds_anew() -> None:
    robot = Robot(stop_after_s=0.2).in_state(State.ENGAGED)
    assert _play(robot, "xxxx") == [State.HOLD] * 4
    robot.sense()
    robot.loop.disengage()
    assert robot.engage() is None
    assert _play(robot, "xxxxx") == [State.HOLD] * 4 + [State.STOPPED]
    robot.loop.reset()
    robot.sense()
    assert robot.engage() is None
    assert _play(robot, "xxxxx") == [State.HOLD] * 4 + [State.STOPPED]


def test_a_clock_that_goes_back_holds_until_every_field_came_on_the_new_time() -> None:
    robot = Robot().in_state(State.ENGAGED)
    assert robot.tick() is not None
    robot.now_ns -= 10_000_000_000
    assert robot.loop.tick(robot.now_ns) is None
    assert robot.loop.state is State.HOLD
    assert robot.loop.reason == "ee_position is stamped 10.000 s in the future; the clock went back"
    assert robot.tick(cube_position=None) is None
    assert robot.loop.reason.startswith("cube_position is stamped 9.950 s in the future")
    command = robot.tick()
    assert command is not None
    assert command.stamp_ns == robot.now_ns


def test_after_a_reset_nothing_sensed_before_it_can_move_the_robot() -> None:
    robot = Robot().in_state(State.ENGAGED)
    robot.tick()
    robot.loop.reset()
    assert robot.buffer.complete_until_ns is None
    for missing in SAMPLES:
        robot.loop.reset()
        robot.sense(**{missing: None})
        assert robot.engage() == f"{missing} has not arrived"
    robot.sense()
    assert robot.engage() is None


def test_a_stop_keeps_its_reason_and_only_a_reset_ends_it() -> None:
    robot = Robot().in_state(State.ENGAGED)
    for _ in range(5):
        robot.blind_tick()
    reason = robot.loop.reason
    assert robot.loop.state == State.STOPPED
    assert "ee_position is" in reason
    robot.sense()
    robot.loop.disengage("deactivated")
    assert robot.engage() == f"stopped: {reason}; call reset first"
    assert [robot.tick() for _ in range(50)] == [None] * 50
    assert (robot.loop.state, robot.loop.reason) == (State.STOPPED, reason)
    robot.loop.reset()
    assert robot.engage() == "ee_position has not arrived"  # what was sensed before the reset is forgotten
    assert robot.tick() is None  # a reset alone moves nothing
    assert (robot.loop.state, robot.loop.reason) == (State.READY, "not engaged")
    assert robot.engage() is None
    assert robot.tick() is not None


def test_engaging_is_refused_with_the_reason_and_changes_nothing() -> None:
    robot = Robot()
    assert robot.engage() == "ee_position has not arrived"
    robot.sense(cube_position=[0.5, 0.05, 1e30])
    assert "cube_position[2] = 1e+30 is far outside" in str(robot.engage())
    robot.sense()
    robot.now_ns += 10**9
    assert "is 1.000 s old" in str(robot.engage())
    assert (robot.loop.state, robot.loop.reason) == (State.READY, "not engaged")
    robot.sense()
    assert robot.engage() is None
    assert robot.engage() == "already engaged (ENGAGED)"
    robot.blind_tick()
    assert robot.engage() == "already engaged (HOLD)"
    assert not robot.policy.observations  # engaging itself runs nothing


def test_each_engagement_starts_a_new_episode() -> None:
    robot = Robot(spec=replace(tiny_policy.SPEC, observation_horizon=2)).in_state(State.ENGAGED)
    robot.tick()
    robot.tick(cube_position=[0.6, 0.0, 0.0])
    robot.loop.disengage()
    assert robot.engage() is None
    robot.tick(cube_position=[0.4, 0.0, 0.0])
    assert len(robot.policy.observations) == 2  # the rest of the old chunk is forgotten
    history = robot.policy.observations[1]
    assert np.array_equal(history[0], history[1])  # and so is what was seen
    assert np.array_equal(robot.policy.noises[0], robot.policy.noises[1])  # the same seed and episode, from the start


@pytest.mark.parametrize(
    "changed",
    [{"cube_position": [0.5, 0.05, 1e30]}, {"gripper_position": [0.02, 9.0]}, {"ee_rotation": [1.0, 0, 0, 0, -1.0, 7.0]}],
)
def test_an_observation_far_outside_the_training_range_holds_before_the_network_sees_it(changed: dict[str, Any]) -> None:
    robot = Robot().in_state(State.ENGAGED)
    assert robot.tick(**changed) is None
    assert robot.loop.state is State.HOLD
    assert "far outside the training range" in robot.loop.reason
    assert not robot.policy.observations


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_measured_rotation_that_is_none_holds() -> None:
    robot = Robot().in_state(State.ENGAGED)
    assert robot.tick(ee_rotation=np.zeros(6)) is None  # each zero is within its range
    assert (robot.loop.state, robot.loop.reason) == (State.HOLD, "the target is not finite")


@pytest.mark.parametrize("index", range(7))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30])
def test_an_absurd_action_is_rejected_counted_and_ends_in_a_stop(index: int, value: float) -> None:
    action = STILL.copy()
    action[index] = value
    robot = Robot(stop_after_s=0.1, action=action).in_state(State.ENGAGED)
    assert [robot.tick() for _ in range(3)] == [None] * 3
    assert robot.loop.state is State.STOPPED
    assert tiny_policy.ACTION.label(index) in robot.loop.reason
    counters = robot.loop.counters
    assert (counters.rejects, counters.holds, counters.commands, counters.clamps) == (3, 3, 0, 0)
    assert robot.loop.executor.counters.inferences == 3  # a rejected chunk is not continued


@pytest.mark.parametrize("size", [0, 1, 6, 8])
def test_an_action_of_another_size_is_a_bug_of_the_policy_and_no_command_leaves(size: int) -> None:
    robot = Robot(action=np.full(size, 0.02)).in_state(State.ENGAGED)
    with pytest.raises(ValueError, match=rf"vector of shape \({size},\), expected \(7,\)"):
        robot.tick()
    assert robot.loop.counters.commands == 0


def test_a_target_outside_the_workspace_is_clamped_or_rejected_and_counted() -> None:
    robot = Robot(action=np.array([0.0, 0, -0.04, 0, 0, 0, 0.02])).in_state(State.ENGAGED)
    command = robot.tick(ee_position=[0.5, 0.0, -0.10])  # to -0.14, 0.02 below the box
    assert command is not None
    assert command.target.position.tolist() == [0.5, 0.0, -0.12]
    assert (robot.loop.counters.clamps, robot.loop.counters.rejects) == (1, 0)
    assert robot.tick(ee_position=[0.5, 0.0, -0.15]) is None  # to -0.19, 0.07 below the box
    assert (robot.loop.counters.clamps, robot.loop.counters.rejects) == (1, 1)
    assert robot.loop.state is State.HOLD


def test_an_action_that_is_clamped_twice_counts_once() -> None:
    robot = Robot(action=np.array([0.0, 0, -0.055, 0, 0, 0, 0.041])).in_state(State.ENGAGED)
    command = robot.tick(ee_position=[0.5, 0.0, -0.10])
    assert command is not None
    assert command.target.position.tolist() == [0.5, 0.0, -0.12]
    assert command.target.gripper_position == 0.04
    assert robot.loop.counters.clamps == 1


def test_the_counters_add_up() -> None:
    robot = Robot().in_state(State.READY)
    robot.tick()
    robot.engage()
    for _ in range(6):
        robot.tick()
    robot.blind_tick()
    robot.blind_tick()
    robot.tick()
    robot.loop.stop("pressed")
    robot.tick()
    counters = robot.loop.counters
    assert (counters.ticks, counters.commands, counters.holds) == (11, 7, 2)
    assert robot.loop.executor.counters.inferences == 3  # steps 1 and 5, and the first after the hold


@pytest.mark.parametrize("error", [RuntimeError("device lost"), ValueError("shape"), MemoryError()])
def test_an_error_of_the_policy_reaches_the_caller_who_decides_and_no_command_leaves(error: Exception) -> None:
    robot = Robot(error=error).in_state(State.ENGAGED)
    with pytest.raises(type(error)):
        robot.tick()
    assert robot.loop.counters.commands == 0
    robot.loop.stop(f"internal error: {error!r}")
    assert robot.tick() is None


# The person's switch


def test_letting_the_switch_go_ends_the_motion_in_the_same_tick_and_pressing_it_again_starts_none() -> None:
    robot = Robot().in_state(State.ENGAGED)
    assert robot.tick() is not None
    assert robot.tick(released="the switch is released") is None
    assert (robot.loop.state, robot.loop.reason) == (State.READY, "the switch is released; press it and engage again")
    assert [robot.tick() for _ in range(5)] == [None] * 5
    assert robot.engage() is None
    assert robot.tick() is not None
    assert robot.loop.counters.holds == 0


def test_where_the_contract_says_so_pressing_it_again_resumes_within_the_time_of_a_hold() -> None:
    robot = Robot(after_release=AfterRelease.RESUME).in_state(State.ENGAGED)
    assert robot.tick() is not None
    assert robot.tick(released="let go") is None
    assert (robot.loop.state, robot.loop.reason) == (State.HOLD, "let go")
    assert robot.tick() is not None
    assert robot.loop.executor.counters.inferences == 2  # from what is true now
    assert [(robot.tick(released="let go"), robot.loop.state)[1] for _ in range(4)] == [State.HOLD] * 3 + [State.STOPPED]
    assert robot.loop.reason == "let go"


def test_without_the_switch_nothing_engages() -> None:
    robot = Robot()
    robot.sense()
    assert robot.loop.engage(robot.now_ns, episode_rng(0, 0), "the switch is released") == "the switch is released"
    assert robot.loop.state is State.READY
    robot.loop.stop("pressed")
    assert "call reset first" in str(robot.loop.engage(robot.now_ns, episode_rng(0, 0), "the switch is released"))


@pytest.mark.parametrize("state", [State.READY, State.STOPPED])
def test_letting_the_switch_go_changes_nothing_where_the_robot_may_not_move(state: State) -> None:
    robot = Robot().in_state(state)
    reason = robot.loop.reason
    robot.tick(released="let go")
    assert (robot.loop.state, robot.loop.reason) == (state, reason)


def test_the_robot_may_move_in_two_states() -> None:
    assert MAY_MOVE == (State.ENGAGED, State.HOLD)


# Another policy


@pytest.mark.parametrize("state", [State.READY, State.HOLD, State.STOPPED])
def test_a_robot_that_does_not_move_has_another_policy_at_once(state: State) -> None:
    robot, other, outcomes = Robot().in_state(state), SimulatedLanes(Script()), list[str | None]()
    robot.loop.change_policy(other, outcomes.append, robot.now_ns)
    assert outcomes == [None] and robot.loop.executor.lanes is other
    assert robot.loop.state is state


def test_a_moving_robot_has_another_policy_with_its_next_chunk() -> None:
    robot, other, outcomes = Robot().in_state(State.ENGAGED), SimulatedLanes(Script()), list[str | None]()
    old = robot.loop.executor.lanes
    assert robot.tick() is not None
    robot.loop.change_policy(other, outcomes.append, robot.now_ns)
    while not outcomes:
        assert robot.loop.executor.lanes is old
        assert robot.tick() is not None
    assert outcomes == [None] and robot.loop.executor.lanes is other
    assert robot.loop.executor.counters.inferences == 2 and len(robot.policy.observations) == 1


@pytest.mark.parametrize("event", ["disengage", "stop", "reset"])
def test_when_the_old_policy_is_not_asked_any_more_the_other_one_has_its_turn(event: str) -> None:
    robot, other, outcomes = Robot().in_state(State.ENGAGED), SimulatedLanes(Script()), list[str | None]()
    assert robot.tick() is not None
    robot.loop.change_policy(other, outcomes.append, robot.now_ns)
    assert outcomes == []
    EVENTS[event](robot)
    assert outcomes == [None] and robot.loop.executor.lanes is other


def test_a_policy_that_never_saw_anything_like_this_does_not_take_over_a_moving_robot() -> None:
    low, high = tiny_policy.OBSERVATION.low, tiny_policy.OBSERVATION.high
    far = replace(tiny_policy.SPEC, observation=tiny_policy.OBSERVATION.with_range(low + 10.0, high + 10.0))
    for state, outcome in ((State.ENGAGED, "ee_position[0] = 0.5 is far outside the training range"), (State.READY, None)):
        robot, outcomes = Robot().in_state(state), list[str | None]()
        old = robot.loop.executor.lanes
        robot.loop.change_policy(SimulatedLanes(Script(spec=far)), outcomes.append, robot.now_ns)
        assert len(outcomes) == 1 and (outcomes[0] or "").startswith(outcome or "")
        assert (robot.loop.executor.lanes is old) is (state is State.ENGAGED)


def test_without_an_observation_there_is_nothing_to_refuse_another_policy_for() -> None:
    robot, outcomes = Robot().in_state(State.ENGAGED), list[str | None]()
    assert robot.tick() is not None
    robot.buffer.clear()
    robot.loop.change_policy(SimulatedLanes(Script()), outcomes.append, robot.now_ns)
    assert outcomes == [] and robot.tick() is not None
    assert [robot.tick() is not None for _ in range(3)] == [True] * 3 and outcomes == [None]


# A loop that moves nothing


def test_a_loop_that_only_watches_clears_stops_and_engages_by_itself_once() -> None:
    for state, engaged_now in ((State.READY, True), (State.STOPPED, False), (State.ENGAGED, False), (State.HOLD, False)):
        robot = Robot().in_state(state)
        assert robot.loop.go_on(robot.now_ns, episode_rng(0, 0)) is engaged_now
        robot.now_ns += STEP_NS  # a reset forgets the samples
        robot.sense()
        assert robot.loop.go_on(robot.now_ns, episode_rng(0, 0)) is (state is State.STOPPED)
        assert robot.tick() is not None


# For who records it


def test_a_tick_leaves_what_it_saw_and_what_it_sent() -> None:
    robot = Robot().in_state(State.ENGAGED)
    command = robot.tick()
    assert command is not None and robot.loop.command is command
    assert robot.loop.observation is not None and robot.loop.observation.stamp_ns == robot.now_ns
    assert robot.tick(ee_position=[90.0, 0.0, 0.0]) is None  # seen, and of no use
    assert robot.loop.observation is not None and robot.loop.observation.values["ee_position"][0] == 90.0
    assert robot.loop.command is None
    assert robot.blind_tick() is None
    assert robot.loop.observation is None and robot.loop.command is None
    robot.loop.disengage()
    assert robot.tick() is None
    assert robot.loop.observation is None


def test_the_jump_at_every_seam_is_recorded() -> None:
    robot = Robot().in_state(State.ENGAGED)
    for _ in range(12):
        assert robot.tick() is not None
    assert robot.loop.executor.on_seam == robot.loop.seams.add


# Chunks that come late


class LateLanes(SimulatedLanes):
    """Every chunk, an episode's first one too, comes ``takes`` ticks after it was asked for, and is expected after ``expected``."""

    def __init__(self, policy: Script, expected: int, takes: int) -> None:
        super().__init__(policy, expected)
        self._policy_here, self._takes = policy, takes

    def submit(self, request: ChunkRequest) -> None:
        self._under_way.append((self._tick + self._takes, ChunkResult(request, infer(self._policy_here, request), None, 0.0)))


@pytest.mark.parametrize("delay", [1, 2])
def test_the_first_chunk_is_waited_for_without_counting_towards_a_stop_and_a_late_one_counts(delay: int) -> None:
    robot = Robot(stop_after_s=0.05, lanes=lambda policy: LateLanes(policy, delay, delay)).in_state(State.ENGAGED)
    for _ in range(delay):
        assert robot.tick() is None
        assert (robot.loop.state, robot.loop.reason) == (State.HOLD, FIRST_CHUNK)
    assert robot.tick() is not None and robot.loop.counters.holds == 0


def test_a_chunk_that_does_not_come_holds_and_then_stops_the_robot() -> None:
    robot = Robot(stop_after_s=0.1, lanes=lambda policy: LateLanes(policy, 1, 1000)).in_state(State.ENGAGED)
    reasons = [(robot.tick(), robot.loop.state, robot.loop.reason)[1:] for _ in range(5)]
    late = "inference is late: no chunk covers this tick"
    assert reasons == [*[(State.HOLD, FIRST_CHUNK)] * 2, *[(State.HOLD, late)] * 2, (State.STOPPED, late)]
    assert robot.loop.counters.holds == 3
