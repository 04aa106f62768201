# SPDX-License-Identifier: Apache-2.0
"""Laws of an operator's actions and of who has the robot."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_policy

from otpr_policy.chunk import episode_rng
from otpr_policy.contract import load_contract
from otpr_policy.control import Command, ControlLoop, State
from otpr_policy.errors import ContractError
from otpr_policy.lanes import SimulatedLanes
from otpr_policy.observation import Missing, Observation, ObservationBuffer
from otpr_policy.operator_stream import OperatorStream
from otpr_policy.rotation import columns_to_matrix, matrix_to_columns, quaternion_to_matrix, rotation_vector_to_matrix
from otpr_policy.source import Action, Commander, PolicySource
from otpr_policy.spec import Array
from otpr_policy.takeover import Arbiter, OperatorSource, teleop_source

CONTRACT = load_contract("panda_twin")
STEP_NS = 50_000_000
HAND = {
    "ee_position": np.array([0.5, 0.0, 0.1]),
    "ee_rotation": matrix_to_columns(np.diag([1.0, -1.0, -1.0])),
    "gripper_position": np.array([0.015, 0.016]),
}
SAMPLES = {**HAND, "cube_position": np.array([0.5, 0.05, -0.09])}
STILL = np.array([0.0, 0, 0, 0, 0, 0, 0.02])


class Operator:
    """A source, its stream, and a clock that the test moves."""

    def __init__(self) -> None:
        self.stream = OperatorStream(0.2)
        self.source = teleop_source(CONTRACT, self.stream)
        self.source.begin(None)
        self.now_ns = 10**18
        self.tick = 0

    def act(self, linear: tuple[float, ...] = (0, 0, 0), angular: tuple[float, ...] = (0, 0, 0), **changed: Array) -> Action | Missing:
        """One control step later, with fresh samples."""
        self.now_ns += STEP_NS
        assert self.stream.push(self.now_ns, np.array(linear, float), np.array(angular, float), self.now_ns) is None
        self.tick += 1
        return self.source.act(Observation(self.now_ns, {**HAND, **changed}), self.tick, self.now_ns)


def vector(action: Action | Missing) -> Array:
    assert isinstance(action, Action), action
    return action.vector


def test_a_speed_moves_the_reference_by_speed_times_period_whatever_the_hand_does() -> None:
    operator = Operator()
    for step in range(1, 4):  # the hand lags: it stays where it is
        np.testing.assert_allclose(vector(operator.act(linear=(0.1, 0, -0.2)))[:3], [0.005 * step, 0, -0.01 * step], atol=1e-12)
    moved = HAND["ee_position"] + np.array([0.012, 0, -0.02])
    np.testing.assert_allclose(vector(operator.act(ee_position=moved))[:3], [0.003, 0, -0.01], atol=1e-12)


def test_a_turn_is_about_the_base_frames_axes() -> None:
    operator = Operator()
    action = vector(operator.act(angular=(0, 0, 0.8)))
    np.testing.assert_allclose(action[3:6], [0, 0, 0.04], atol=1e-12)
    led = rotation_vector_to_matrix(np.array([0, 0, 0.04])) @ columns_to_matrix(HAND["ee_rotation"])
    np.testing.assert_allclose(vector(operator.act(ee_rotation=matrix_to_columns(led)))[3:6], 0, atol=1e-12)


def test_without_motion_a_pushed_hand_is_led_back_and_does_not_creep() -> None:
    operator = Operator()
    operator.act()
    for push in (0.004, -0.002, 0.01):
        away = HAND["ee_position"] + np.array([0, push, 0])
        np.testing.assert_allclose(vector(operator.act(ee_position=away))[:3], [0, -push, 0], atol=1e-12)


def test_the_reference_never_leads_by_more_than_an_action_may() -> None:
    operator = Operator()
    for _ in range(100):
        action = vector(operator.act(linear=(0.25, 0, 0), angular=(0, 1.0, 0)))
    np.testing.assert_allclose(action[:6], [0.05, 0, 0, 0, 0.5, 0], atol=1e-9)
    back = vector(operator.act(linear=(-0.25, 0, 0), angular=(0, -1.0, 0)))
    np.testing.assert_allclose(back[:6], [0.0375, 0, 0, 0, 0.45, 0], atol=1e-9)  # at once: nothing was wound up


def test_a_speed_beyond_the_contracts_is_shortened_and_keeps_its_direction() -> None:
    action = vector(Operator().act(linear=(30.0, 40.0, 0.0)))
    np.testing.assert_allclose(action[:3], [0.25 * 0.6 * 0.05, 0.25 * 0.8 * 0.05, 0], atol=1e-12)


def test_the_reference_stays_in_the_workspace_and_may_come_back_from_outside() -> None:
    operator = Operator()
    low = np.array([0.5, 0.0, -0.115])
    for _ in range(5):
        action = vector(operator.act(linear=(0, 0, -0.2), ee_position=low))
    assert low[2] + action[2] == pytest.approx(CONTRACT.limits.workspace_low[2])
    outside = np.array([0.5, 0.0, -0.13])
    operator.source.forget()
    assert vector(operator.act(linear=(0, 0, -0.2), ee_position=outside))[2] == pytest.approx(0)
    assert vector(operator.act(linear=(0, 0, 0.2), ee_position=outside))[2] == pytest.approx(0.01)


def test_fingers_stay_as_measured_until_the_operator_says_otherwise_and_then_go_no_faster_than_allowed() -> None:
    slow = replace(CONTRACT, limits=replace(CONTRACT.limits, max_gripper_velocity_m_s=0.1))
    operator = Operator()
    operator.source = teleop_source(slow, operator.stream)
    operator.source.begin(None)
    assert vector(operator.act())[6] == 0.015  # the commanded joint, not the other
    assert vector(operator.act(gripper_position=np.array([0.014, 0.0])))[6] == 0.015  # the grip is not followed, it is kept
    operator.stream.push_gripper(0.04)
    assert [round(vector(operator.act())[6], 6) for _ in range(6)] == [0.02, 0.025, 0.03, 0.035, 0.04, 0.04]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_and_the_last_good_stays(bad: float) -> None:
    stream = OperatorStream(0.2)
    assert stream.push(0, np.array([0.1, 0, 0]), np.zeros(3), 0) is None
    assert "not finite" in str(stream.push(1, np.array([0, bad, 0]), np.zeros(3), 1))
    assert "not finite" in str(stream.push(1, np.zeros(3), np.array([0, 0, bad]), 1))
    assert "not finite" in str(stream.push_gripper(bad))
    newest = stream.newest(1)
    assert not isinstance(newest, Missing)
    assert newest.linear.tolist() == [0.1, 0, 0]
    assert stream.gripper is None


def test_a_stream_that_is_old_reordered_or_from_the_future_is_no_command() -> None:
    stream = OperatorStream(0.2)
    assert stream.newest(0) == Missing("no operator: no teleop device sends")
    zero = np.zeros(3)
    assert stream.push(10**9, zero, zero, 10**9) is None
    assert "out of order" in str(stream.push(10**9 - 1, zero, zero, 10**9))
    assert "in the future" in str(stream.push(2 * 10**9, zero, zero, 10**9))
    assert not isinstance(stream.newest(10**9 + 200_000_000), Missing)
    assert stream.newest(10**9 + 201_000_000) == Missing("the operator's command is 0.201 s old, allowed are 0.200 s")
    stream.report_device("gamepad: unplugged")
    assert stream.newest(10**9) == Missing("the operator's device is gone: gamepad: unplugged")


def test_of_two_devices_neither_counts_and_what_came_before_the_end_is_not_followed() -> None:
    """Nor does the one's word that all is well, or that it is gone, stand for the other afterwards. The grip stays."""
    operator, zero = Operator(), np.zeros(3)
    stream = operator.stream
    stream.push_gripper(0.02)
    assert vector(operator.act(linear=(0.1, 0, 0)))[6] == 0.02
    assert stream.contest("2 devices publish")
    assert not stream.contest("3 devices publish")
    assert stream.push(operator.now_ns, zero, zero, operator.now_ns) is None
    stream.push_gripper(0.04)
    stream.report_device("gone")
    assert stream.newest(operator.now_ns) == Missing("3 devices publish")
    assert stream.contest("")
    assert stream.newest(operator.now_ns) == Missing("no operator: no teleop device sends")
    assert vector(operator.act())[6] == 0.02


def test_a_robot_without_the_section_is_not_teleoperated() -> None:
    with pytest.raises(ContractError, match="has no section 'teleop'"):
        teleop_source(replace(CONTRACT, teleop=None), OperatorStream(0.2))


# Who has the robot


class Script:
    """A policy that always wants to go up."""

    spec = tiny_policy.SPEC
    noise_shape = tiny_policy.NOISE_SHAPE

    def __init__(self) -> None:
        self.inferences = 0

    def infer(self, observation: Array, noise: Array) -> Array:
        self.inferences += 1
        return np.tile(STILL + np.array([0, 0, 0.01, 0, 0, 0, 0]), (self.spec.chunk_length, 1))


class Robot:
    """A control loop with a policy and an operator; the operator is silent unless told to send."""

    def __init__(self) -> None:
        self.policy = Script()
        spec = self.policy.spec
        self.stream = OperatorStream(0.2)
        fields = {"observation": spec.observation, "action": spec.action}
        self.operator = OperatorSource(self.stream, CONTRACT, **fields, rate_hz=spec.control_rate_hz)
        self.arbiter = Arbiter(PolicySource(SimulatedLanes(self.policy)), self.operator)
        self.buffer = ObservationBuffer(spec.observation, dict.fromkeys(SAMPLES, 0.1))
        self.loop = ControlLoop(self.arbiter, self.buffer, CONTRACT.limits, 0.5, measured_finger=CONTRACT.measured_finger)
        self.now_ns = 10**18
        self.tick()
        assert self.loop.engage(self.now_ns, episode_rng(0, 0)) is None

    def send(self, linear: tuple[float, ...] = (0.0, 0.0, 0.0)) -> None:
        self.stream.push(self.now_ns, np.array(linear), np.zeros(3), self.now_ns)

    def tick(self, linear: tuple[float, ...] | None = None, **changed: Array) -> Command | None:
        """A control step after fresh samples; the operator sends only with ``linear``."""
        self.now_ns += STEP_NS
        for name, values in {**SAMPLES, **changed}.items():
            self.buffer.push(name, self.now_ns, values, self.now_ns)
        if linear is not None:
            self.send(linear)
        return self.loop.tick(self.now_ns)


def test_a_takeover_changes_who_acts_and_every_command_says_who() -> None:
    robot = Robot()
    first = robot.tick()
    assert first is not None
    assert (first.commander, first.target.position[2]) == (Commander.POLICY, pytest.approx(0.11))
    robot.send()
    assert robot.arbiter.take_over(robot.now_ns) is None
    second = robot.tick(linear=(0.1, 0, 0))
    assert second is not None
    assert second.commander is Commander.OPERATOR
    assert second.target.position.tolist() == pytest.approx([0.505, 0, 0.1])
    assert second.target.gripper_position == 0.02  # as the policy had them
    assert robot.arbiter.give_back() is None
    third = robot.tick()
    assert third is not None
    assert third.commander is Commander.POLICY
    assert robot.policy.inferences == 2  # three actions of the first chunk were left


def test_an_operator_who_falls_silent_holds_the_robot_and_the_policy_never_comes_back_by_itself() -> None:
    robot = Robot()
    robot.send()
    assert robot.arbiter.take_over(robot.now_ns) is None
    assert [robot.tick() is None for _ in range(5)] == [False] * 4 + [True]  # 0.2 s are fresh
    assert (robot.loop.state, robot.loop.reason) == (State.HOLD, "the operator's command is 0.250 s old, allowed are 0.200 s")
    assert [robot.tick() for _ in range(20)] == [None] * 20
    assert robot.loop.state is State.STOPPED
    assert "the operator's command" in robot.loop.reason
    robot.loop.reset()
    robot.tick()
    assert "the operator's command" in str(robot.loop.engage(robot.now_ns, episode_rng(0, 1)))
    assert robot.policy.inferences == 0
    assert robot.arbiter.give_back() is None  # a person says so
    assert robot.loop.engage(robot.now_ns, episode_rng(0, 1)) is None
    assert robot.tick() is not None


def test_an_operator_who_comes_back_within_a_hold_goes_on_from_where_the_hand_is() -> None:
    robot = Robot()
    robot.send()
    robot.arbiter.take_over(robot.now_ns)
    for _ in range(3):
        robot.tick(linear=(0.2, 0, 0))
    assert [robot.tick() for _ in range(5)][-1] is None
    command = robot.tick(linear=(0.0, 0, 0))
    assert command is not None
    assert command.target.position.tolist() == pytest.approx([0.5, 0, 0.1])


def test_a_device_that_says_it_is_gone_holds_at_once_with_its_reason() -> None:
    robot = Robot()
    robot.send()
    robot.arbiter.take_over(robot.now_ns)
    assert robot.tick(linear=(0, 0, 0)) is not None
    robot.stream.report_device("keyboard: the terminal is gone")
    assert robot.tick(linear=(0, 0, 0)) is None
    assert (robot.loop.state, robot.loop.reason) == (State.HOLD, "the operator's device is gone: keyboard: the terminal is gone")


def test_taking_over_needs_a_device_that_sends_and_is_refused_twice() -> None:
    robot = Robot()
    assert robot.arbiter.take_over(robot.now_ns) == "no operator: no teleop device sends"
    assert robot.arbiter.give_back() == "the policy has the robot already"
    robot.send()
    assert robot.arbiter.take_over(robot.now_ns) is None
    assert robot.arbiter.take_over(robot.now_ns) == "the operator has the robot already"
    assert robot.arbiter.commander is Commander.OPERATOR


def test_what_the_operator_asked_of_the_gripper_before_a_takeover_is_forgotten() -> None:
    robot = Robot()
    assert robot.tick() is not None
    robot.stream.push_gripper(0.04)
    robot.send()
    robot.arbiter.take_over(robot.now_ns)
    command = robot.tick(linear=(0, 0, 0))
    assert command is not None
    assert command.target.gripper_position == 0.02  # as the policy had it: what it holds is not dropped


@pytest.mark.parametrize("how", ["taken over", "reset", "disengaged"])
def test_a_policy_that_waits_for_its_turn_has_it_at_once_when_the_old_one_is_not_asked_any_more(how: str) -> None:
    robot = Robot()
    assert robot.tick() is not None
    outcomes: list[str | None] = []
    other = SimulatedLanes(Script())
    robot.loop.change_policy(other, outcomes.append, robot.now_ns)
    assert outcomes == []  # three actions of the first chunk are left
    if how == "taken over":
        robot.send()
        assert robot.arbiter.take_over(robot.now_ns) is None
    elif how == "reset":
        robot.loop.reset()
    else:
        robot.loop.disengage()
    assert outcomes == [None]
    assert robot.loop.executor.lanes is other


def test_a_stale_operator_is_no_matter_while_the_policy_acts() -> None:
    robot = Robot()
    robot.send()
    assert all(robot.tick() is not None for _ in range(20))


def test_an_operator_may_act_where_the_policy_was_never_trained_and_the_policy_may_not() -> None:
    far = np.array([0.5, 0.44, -0.09])  # the cube was knocked away
    robot = Robot()
    robot.send()
    assert robot.tick(cube_position=np.array([0.5, 0.9, -0.09])) is None
    assert "training range" in robot.loop.reason
    assert robot.arbiter.take_over(robot.now_ns) is None
    assert robot.tick(linear=(0, 0.1, 0), cube_position=np.array([0.5, 0.9, -0.09])) is not None
    assert robot.tick(linear=(0, 0.1, 0), cube_position=far) is not None


def test_the_operators_actions_pass_the_same_limits_as_the_policys() -> None:
    robot = Robot()
    robot.send()
    robot.arbiter.take_over(robot.now_ns)
    outside = np.array([0.5, 0.0, -0.18])  # 0.06 m below the workspace; a margin of 0.05 m is clamped
    assert robot.tick(linear=(0, 0, 0), ee_position=outside) is None
    assert robot.loop.state is State.HOLD
    assert robot.loop.counters.rejects == 1


@pytest.mark.parametrize("seed", range(20))
def test_whatever_an_operator_sends_every_command_is_finite_and_within_the_limits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    robot = Robot()
    robot.send()
    robot.arbiter.take_over(robot.now_ns)
    hand, rotation = HAND["ee_position"].copy(), HAND["ee_rotation"].copy()
    low, high = np.array(CONTRACT.limits.workspace_low), np.array(CONTRACT.limits.workspace_high)
    for _ in range(200):
        wild = rng.choice([0.0, 0.1, -0.3, 5.0, 1e30, np.nan, np.inf], size=6)
        robot.stream.push(robot.now_ns, wild[:3], wild[3:], robot.now_ns)
        robot.stream.push_gripper(float(rng.choice([0.0, 0.04, -1.0, 1e9, np.nan])))
        command = robot.tick(ee_position=hand, ee_rotation=rotation)
        if command is None:
            continue
        target = command.target
        assert np.isfinite([*target.position, *target.quaternion, target.gripper_position]).all()
        assert (target.position >= low - 1e-12).all() and (target.position <= high + 1e-12).all()
        assert np.linalg.norm(target.position - hand) <= CONTRACT.limits.max_distance_m
        assert 0 <= target.gripper_position <= 0.04
        hand = hand + 0.5 * (target.position - hand)
        rotation = matrix_to_columns(quaternion_to_matrix(target.quaternion))
