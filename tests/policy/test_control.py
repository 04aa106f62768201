# SPDX-License-Identifier: Apache-2.0
"""Laws of the control loop: a command leaves only when everything is right, and whatever is wrong ends in stillness."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_policy
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from otpr_policy.black_box import BlackBox, FlightSettings
from otpr_policy.chunk import episode_rng
from otpr_policy.command import delta_to_target
from otpr_policy.contract import load_contract
from otpr_policy.control import MAY_MOVE, Command, ControlLoop, State
from otpr_policy.dead_man import AfterRelease
from otpr_policy.lanes import SimulatedLanes
from otpr_policy.limits import Limits
from otpr_policy.observation import ObservationBuffer
from otpr_policy.replay import replay
from otpr_policy.rotation import matrix_to_columns
from otpr_policy.source import PolicySource
from otpr_policy.spec import Array, PolicySpec
from otpr_policy.timeline import Gap, TimedAction

LIMITS = Limits((0.25, -0.45, -0.12), (0.85, 0.45, 0.50), 0.05, 0.10, 0.90, 0.1, 0.5, 0.05, 2.5, 50.0, 4.0, 80.0, 1.2, 1.0, 0.0, 0.0, 0.05)
STEP_NS = 50_000_000
STILL = np.array([0.0, 0, 0, 0, 0, 0, 0.02])
SAMPLES = {
    "ee_position": np.array([0.5, 0.0, 0.1]),
    "ee_rotation": matrix_to_columns(np.diag([1.0, -1.0, -1.0])),
    "gripper_position": np.array([0.02, 0.02]),
    "cube_position": np.array([0.5, 0.05, -0.09]),
}


@dataclass
class Script:
    """Yields chunks whose every action is ``action``, remembers what it saw, and raises when told to."""

    spec: PolicySpec = tiny_policy.SPEC
    noise_shape: tuple[int, ...] = tiny_policy.NOISE_SHAPE
    action: Array = field(default_factory=STILL.copy)
    error: Exception | None = None
    observations: list[Array] = field(default_factory=list)
    noises: list[Array] = field(default_factory=list)

    def infer(self, observation: NDArray[Any], noise: NDArray[Any]) -> Array:
        self.observations.append(observation.copy())
        self.noises.append(noise.copy())
        if self.error is not None:
            raise self.error
        return np.tile(self.action, (self.spec.chunk_length, 1))


class Robot:
    """A loop with its buffer and a clock that the test moves."""

    def __init__(
        self,
        stop_after_s: float = 0.2,
        limits: Limits = LIMITS,
        after_release: AfterRelease = AfterRelease.ENGAGE,
        measured_finger: tuple[str, int] | None = ("gripper_position", 0),
        clock: Callable[[], float] | None = None,
        **policy: Any,
    ) -> None:
        self.policy = Script(**policy)
        self.buffer = ObservationBuffer(self.policy.spec.observation, dict.fromkeys(SAMPLES, 0.1))
        self.loop = ControlLoop(
            PolicySource(SimulatedLanes(self.policy)),
            self.buffer,
            limits,
            stop_after_s,
            after_release=after_release,
            measured_finger=measured_finger,
            clock=clock,
        )
        self.now_ns = 1_700_000_000_000_000_000

    def sense(self, **changed: Any) -> None:
        for name, values in {**SAMPLES, **changed}.items():
            if values is not None:
                self.buffer.push(name, self.now_ns, np.array(values, dtype=float), self.now_ns)

    def tick(self, released: str | None = None, **changed: Any) -> Command | None:
        """A control step after fresh samples; ``name=None`` leaves a field's topic silent."""
        self.now_ns += STEP_NS
        self.sense(**changed)
        return self.loop.tick(self.now_ns, released)

    def blind_tick(self) -> Command | None:
        self.now_ns += 3 * STEP_NS  # beyond every age limit
        return self.loop.tick(self.now_ns)

    def engage(self) -> str | None:
        return self.loop.engage(self.now_ns, episode_rng(0, 0))

    def in_state(self, state: State) -> "Robot":
        """Brings a fresh robot there the way it gets there in life."""
        self.sense()
        if state is not State.READY:
            assert self.engage() is None
        if state is State.HOLD:
            self.blind_tick()
            self.sense()
        if state is State.STOPPED:
            self.loop.stop("pressed")
        assert self.loop.state is state
        return self


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


# How fast


SLOW = replace(LIMITS, max_velocity_m_s=0.2, max_acceleration_m_s2=2.0, rate_margin=100.0, max_gripper_velocity_m_s=0.2)


def test_targets_that_move_too_fast_are_slowed_down_and_counted_and_after_a_hold_the_hand_counts_as_at_rest() -> None:
    robot = Robot(limits=SLOW, action=np.array([0.04, 0, 0, 0, 0, 0, 0.02])).in_state(State.ENGAGED)

    def lead(hand: float = 0.5) -> float:
        command = robot.tick(ee_position=[hand, 0.0, 0.1])
        assert command is not None
        return float(command.target.position[0])

    assert [lead(), lead(), lead(), lead()] == pytest.approx([0.505, 0.515, 0.525, 0.535])  # 5 mm more each step, 10 mm at most
    assert robot.loop.counters.clamps == 4
    robot.blind_tick()
    assert lead(0.53) == pytest.approx(0.535)  # at rest where it is measured
    robot.loop.disengage()
    assert robot.engage() is None
    assert lead(0.55) == pytest.approx(0.555)


def test_the_ramp_starts_anew_with_each_engagement_and_after_each_hold() -> None:
    robot = Robot(limits=replace(SLOW, ramp_in_s=0.2, max_acceleration_m_s2=100.0), action=np.array([0.04, 0, 0, 0, 0, 0, 0.02]))
    robot.in_state(State.ENGAGED)

    def first_two() -> list[float]:
        return [float(command.target.position[0]) for command in (robot.tick(), robot.tick()) if command is not None]

    assert first_two() == pytest.approx([0.5025, 0.5075])  # a quarter of 10 mm, a half
    robot.blind_tick()
    assert first_two() == pytest.approx([0.5025, 0.5075])
    robot.loop.disengage()
    assert robot.engage() is None
    assert first_two() == pytest.approx([0.5025, 0.5075])


def test_the_finger_starts_from_where_the_contract_measures_it() -> None:
    def first(measured_finger: tuple[str, int] | None) -> float:
        robot = Robot(limits=SLOW, measured_finger=measured_finger, action=np.array([0.0, 0, 0, 0, 0, 0, 0.0])).in_state(State.ENGAGED)
        command = robot.tick(gripper_position=[0.02, 0.03])
        assert command is not None
        return command.target.gripper_position

    assert first(("gripper_position", 0)) == pytest.approx(0.01)
    assert first(("gripper_position", 1)) == pytest.approx(0.02)
    assert first(None) == 0.0
    assert first(("another field", 0)) == 0.0  # which this policy does not read


def test_a_command_that_leaves_soon_after_a_late_one_may_move_less() -> None:
    """The limit is 0.2 m/s by the clock at the moment of sending: ticks may come close together, the robot must not."""
    times = iter([5.0, 5.09, 5.10, 5.15])
    limits = replace(SLOW, max_acceleration_m_s2=1000.0)
    robot = Robot(limits=limits, clock=lambda: next(times), action=np.array([0.05, 0, 0, 0, 0, 0, 0.02])).in_state(State.ENGAGED)
    sent = [robot.tick() for _ in range(4)]
    assert [float(one.target.position[0]) for one in sent if one is not None] == pytest.approx([0.51, 0.52, 0.522, 0.532])


def test_waiting_for_the_first_chunk_after_moving_is_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when an operator gives back to a policy that is slower than a tick: the arm stood still meanwhile."""
    robot = Robot(limits=SLOW, action=np.array([0.04, 0, 0, 0, 0, 0, 0.02])).in_state(State.ENGAGED)
    assert [float(one.target.position[0]) for one in (robot.tick(), robot.tick()) if one is not None] == pytest.approx([0.505, 0.515])
    with monkeypatch.context() as patched:
        patched.setattr(robot.loop._source, "act", lambda *_: Gap(0, expected=True))
        assert robot.tick() is None
    assert robot.loop.state is State.HOLD
    first = robot.tick(ee_position=[0.51, 0.0, 0.1])
    assert first is not None and float(first.target.position[0]) == pytest.approx(0.515)  # from rest where it is measured


def recommended() -> Limits:
    """What docs/deploy.md says to start from near people."""
    blocks = re.findall(r"```yaml\n(.*?)```", (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8"), re.DOTALL)
    (limits,) = [data["limits"] for data in map(yaml.safe_load, blocks) if "limits" in data]
    return replace(LIMITS, **limits)


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_with_the_limits_for_people_an_operator_at_any_speed_moves_and_is_never_held(share: float) -> None:
    """From rest to the operator's speed and back again, turning too."""
    limits = recommended()
    teleop = load_contract("panda_twin").teleop
    assert teleop is not None
    robot = Robot(limits=limits, stop_after_s=0.5).in_state(State.ENGAGED)
    for tick in range(120):
        wave = share * np.sign(np.sin(tick / 10))
        lead = wave * teleop.linear_speed * STEP_NS * 1e-9
        robot.policy.action = np.array([lead, 0, 0, 0, 0, wave * teleop.angular_speed * STEP_NS * 1e-9, 0.02])
        assert robot.tick() is not None, robot.loop.reason
    assert robot.loop.counters.rejects == 0


def test_with_the_limits_for_people_a_policy_made_for_full_speed_is_slowed_down_and_not_stopped() -> None:
    """8 cm ahead of the hand at once, as the shipped policy at most asks; the hand follows its target."""
    robot = Robot(limits=recommended(), action=np.array([0.05, 0.05, 0.035, 0, 0, 0.07, 0.04])).in_state(State.ENGAGED)
    hand = np.array([0.5, 0.0, 0.1])
    for _ in range(40):
        command = robot.tick(ee_position=hand)
        assert command is not None, robot.loop.reason
        assert np.linalg.norm(command.target.position - hand) <= 0.25 * 0.05 + 1e-9
        hand = command.target.position
    assert robot.loop.counters.clamps == 40 and hand[0] > 0.6


def test_the_robot_may_move_in_two_states() -> None:
    assert MAY_MOVE == (State.ENGAGED, State.HOLD)


# Ticks that were skipped


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_the_plan_keeps_to_real_time_however_many_ticks_are_skipped(skips: list[int]) -> None:
    """A chunk of 8 of which 4 are carried out: each tick has the action of its own time, and the fourth or a later one asks anew."""
    robot = Robot(spec=replace(tiny_policy.SPEC, chunk_length=8, executed_length=4)).in_state(State.ENGAGED)
    acted: list[tuple[int, int]] = []
    robot.loop.executor.observer = lambda event: acted.append((event.tick, event.source.index)) if isinstance(event, TimedAction) else None
    elapsed, began = 0, 1
    for skipped in skips:
        robot.loop.counters.skipped_ticks += skipped
        elapsed += 1 + skipped
        assert robot.tick() is not None
        if elapsed - began >= 4 or elapsed == 1 + skips[0]:
            began = elapsed
        assert acted[-1] == (elapsed, elapsed - began)


@pytest.mark.parametrize("skipped", range(4))
def test_skipped_ticks_of_a_hold_count_towards_a_stop_and_those_of_a_motion_do_not(skipped: int) -> None:
    """By hand: a stop after more than 8 periods, and every hold is followed by as many that are skipped."""
    robot = Robot(stop_after_s=0.4).in_state(State.ENGAGED)
    robot.tick()
    held = 0
    while robot.loop.state is not State.STOPPED:
        robot.loop.counters.skipped_ticks += skipped
        robot.blind_tick()
        held += 1
    assert held == 2 + 7 // (1 + skipped)  # 1 + (held - 1) (1 + skipped) periods are more than 8


def test_what_was_skipped_before_engaging_is_no_hold() -> None:
    robot = Robot(stop_after_s=0.1).in_state(State.HOLD)
    robot.loop.disengage()
    robot.sense()
    assert robot.engage() is None
    robot.loop.counters.skipped_ticks += 5
    robot.blind_tick()
    assert robot.loop.state is State.HOLD


def test_a_flight_with_skipped_ticks_numbers_them_as_the_plan_does_and_replays_exactly(tmp_path: Path) -> None:
    robot = Robot().in_state(State.ENGAGED)
    failures: list[str] = []
    box = BlackBox(FlightSettings(30.0, str(tmp_path), 1), robot.loop, "panda", "", lambda path: None, failures.append)
    try:
        tick = box.around(lambda _data_ns: robot.tick() is not None)
        for skipped in (0, 0, 2, 0, 5, 0, 1, 0):
            robot.loop.counters.skipped_ticks += skipped
            assert tick(robot.now_ns)
        log = box._recorder.snapshot()
    finally:
        assert box.close()
    assert [record.number for record in log.ticks] == [1, 2, 5, 6, 12, 13, 15, 16]
    assert [record.action.tick for record in log.ticks if record.action is not None] == [record.number for record in log.ticks]
    report = replay(log, {"": Script()})
    assert report.exact and report.actions == len(log.ticks) and not failures
