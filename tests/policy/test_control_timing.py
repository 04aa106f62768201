# SPDX-License-Identifier: Apache-2.0
"""The control loop in time: how fast it lets a robot move, and what becomes of ticks that were skipped."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny_policy
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_robot import LIMITS, STEP_NS, Robot, Script

from otpr_policy.black_box import BlackBox, FlightSettings
from otpr_policy.contract import load_contract
from otpr_policy.control import State
from otpr_policy.limits import Limits
from otpr_policy.replay import replay
from otpr_policy.timeline import Gap, TimedAction

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


def test_a_command_that_was_held_up_on_its_way_out_lets_the_next_one_move_less() -> None:
    """At the instants at which commands leave, no two targets are faster apart than 0.2 m/s."""
    now_s = 0.0
    limits = replace(SLOW, max_acceleration_m_s2=1000.0)
    robot = Robot(limits=limits, clock=lambda: now_s, action=np.array([0.05, 0, 0, 0, 0, 0, 0.02])).in_state(State.ENGAGED)
    left: list[tuple[float, float]] = []
    for number, held_up_s in enumerate((0.0, 0.04, 0.0, 0.0)):
        now_s = 0.05 * number
        command = robot.tick()
        assert command is not None
        now_s += held_up_s
        robot.loop.sent()
        left.append((now_s, float(command.target.position[0])))
    speeds = [(x - before) / (at_s - before_s) for (before_s, before), (at_s, x) in pairwise(left)]
    assert max(speeds) <= 0.2 + 1e-6
    assert speeds[1:] == pytest.approx([0.2, 0.2])  # and no slower than that


def test_in_lockstep_commands_are_a_period_apart_however_long_sending_takes() -> None:
    robot = Robot(limits=replace(SLOW, max_acceleration_m_s2=1000.0), action=np.array([0.05, 0, 0, 0, 0, 0, 0.02])).in_state(State.ENGAGED)
    places = []
    for _ in range(2):
        command = robot.tick()
        assert command is not None
        robot.loop.sent()
        places.append(float(command.target.position[0]))
    assert places == pytest.approx([0.51, 0.52])


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
