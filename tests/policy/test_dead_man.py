# SPDX-License-Identifier: Apache-2.0
"""Laws of the dead-man switch: only a switch that is heard to be pressed, and just now, allows motion."""

from typing import Any

import pytest

from otpr_policy.dead_man import AfterRelease, DeadMan, DeadManSwitch, DeadManType, parse_dead_man
from otpr_policy.errors import ContractError

JOY = {"topic": "/joy", "type": "sensor_msgs/msg/Joy", "button": 5, "max_age_s": 0.2}
HEARTBEAT = {"topic": "/dead_man", "type": "std_msgs/msg/Bool", "max_age_s": 0.2}


def test_a_switch_that_nobody_has_heard_of_is_released() -> None:
    assert DeadMan(0.25).problem(0.0) == "the dead-man switch has not been heard of"


def test_a_pressed_switch_allows_motion_for_as_long_as_it_is_heard_of() -> None:
    switch = DeadMan(0.25)
    switch.hear(True, 10.0)
    assert switch.problem(10.0) is None
    assert switch.problem(10.25) is None
    assert switch.problem(10.26) == "the dead-man switch was last heard of 0.260 s ago, allowed are 0.250 s"
    switch.hear(True, 10.26)
    assert switch.problem(10.5) is None


def test_a_released_switch_does_not_allow_motion_however_fresh() -> None:
    switch = DeadMan(0.25)
    switch.hear(True, 10.0)
    switch.hear(False, 10.1)
    assert switch.problem(10.1) == "the dead-man switch is released"
    switch.hear(True, 10.2)
    assert switch.problem(10.2) is None


def test_a_release_between_two_looks_is_noticed_once_however_short() -> None:
    switch = DeadMan(0.25)
    switch.hear(True, 10.0)
    switch.problem_since(10.0)
    assert switch.problem_since(10.1) is None
    for _ in range(2):
        switch.hear(False, 10.1)
        switch.hear(True, 10.1)
    assert switch.problem(10.1) is None
    assert switch.problem_since(10.1) == "the dead-man switch was let go for a moment"
    assert switch.problem_since(10.2) is None
    switch.hear(False, 10.2)
    assert switch.problem_since(10.2) == "the dead-man switch is released"


def test_silence_between_two_looks_is_noticed_and_messages_in_time_are_none() -> None:
    switch = DeadMan(0.25)
    switch.hear(True, 10.0)
    switch.problem_since(10.0)
    switch.hear(True, 10.25)
    assert switch.problem_since(10.25) is None
    switch.hear(True, 10.51)
    assert switch.problem_since(10.51) == "the dead-man switch was let go for a moment"


def test_messages_whose_arrival_is_not_known_exactly_arrived_in_turn_and_are_no_release() -> None:
    switch = DeadMan(0.25)
    switch.hear(True, 10.002)  # said to have come a little later than it did
    switch.problem_since(10.003)
    switch.hear(True, 10.001)
    assert switch.problem_since(10.003) is None
    assert switch.problem(10.252) is None and switch.problem(10.253) is not None  # no newer than the first
    switch.hear(False, 10.001)
    assert switch.problem_since(10.003) == "the dead-man switch is released"


@pytest.mark.parametrize("now_s", [9.9, float("nan"), float("inf")])
def test_a_time_before_the_message_or_no_time_at_all_does_not_allow_motion(now_s: float) -> None:
    switch = DeadMan(0.25)
    switch.hear(True, 10.0)
    assert switch.problem(now_s) is not None


@pytest.mark.parametrize(
    ("buttons", "pressed"),
    [([0, 0, 1], True), ([1, 1, 0], False), ([0, 0, 1, 0], True), ([1, 1], False), ([], False), ([0, 0, 2], False), ([0, 0, -1], False)],
)
def test_the_button_of_a_joystick_is_the_one_of_the_contract(buttons: list[int], pressed: bool) -> None:
    assert DeadManSwitch("/joy", DeadManType.JOY, 0.2, button=2).is_pressed(buttons) is pressed


def test_the_first_button_is_number_zero() -> None:
    assert DeadManSwitch("/joy", DeadManType.JOY, 0.2, button=0).is_pressed([1])


# The contract's section


def test_a_section_is_read_as_it_stands() -> None:
    assert parse_dead_man(JOY) == DeadManSwitch("/joy", DeadManType.JOY, 0.2, 5, AfterRelease.ENGAGE)
    assert parse_dead_man(HEARTBEAT | {"after_release": "resume"}) == DeadManSwitch(
        "/dead_man", DeadManType.BOOL, 0.2, after_release=AfterRelease.RESUME
    )
    assert parse_dead_man("not_required") is None
    assert parse_dead_man(HEARTBEAT | {"max_age_s": 1.0}) == DeadManSwitch("/dead_man", DeadManType.BOOL, 1.0)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "key 'dead_man' is missing; required: a section with topic, type and max_age_s, or the word not_required"),
        ("none", "unknown value 'none'; known: not_required; or a section with topic, type, max_age_s"),
        (False, "dead_man must be a mapping with the keys topic, type, max_age_s"),
        ([], "dead_man must be a mapping"),
        ({}, "key 'topic' is missing"),
        (JOY | {"max_age": 0.1}, "unknown key 'max_age'"),
        (JOY | {"type": "std_msgs/msg/Int8"}, "sensor_msgs/msg/Joy, std_msgs/msg/Bool"),
        (JOY | {"after_release": "go"}, "engage, resume"),
        ({key: value for key, value in JOY.items() if key != "button"}, "dead_man.button must be the index"),
        (JOY | {"button": -1}, "dead_man.button must be the index"),
        (JOY | {"button": -2}, "dead_man.button must be the index"),
        (HEARTBEAT | {"button": 0}, "dead_man.button has no meaning for std_msgs/msg/Bool"),
        (HEARTBEAT | {"button": -2}, "dead_man.button has no meaning for std_msgs/msg/Bool"),
        *((JOY | {"max_age_s": value}, f"dead_man.max_age_s is {value}") for value in (0.0, -1.0, 1.001, float("nan"), float("inf"))),
    ],
)
def test_a_section_that_does_not_hold_is_refused_and_says_what_would(data: Any, reason: str) -> None:
    with pytest.raises(ContractError) as caught:
        parse_dead_man(data)
    assert reason in str(caught.value)
