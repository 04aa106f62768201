# SPDX-License-Identifier: Apache-2.0
"""The checker's rules: what may be seen passes, and each thing that may not be is found, with its name."""

from collections.abc import Callable

import numpy as np
import pytest
from faults.rules import Bounds, Command, Judge, Sample

BOUNDS = Bounds(0.05, 0.05, (0.2, -0.5, -0.2), (0.9, 0.5, 0.5), (0.0, 0.04), 0.10, 0.5, 1.0, 12.0, 2.0, 24.0, 0.5, "base")
HAND = np.array([0.5, 0.0, 0.1])
DOWN = np.array([1.0, 0.0, 0.0, 0.0])
X = np.array([1.0, 0.0, 0.0])
pytestmark = pytest.mark.faults


def turned(angle: float) -> "np.ndarray":
    """A hand that points down, turned about x."""
    return np.array([np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)])


class Tape:
    """A robot that is driven rightly, tick by tick; a test does one thing wrong."""

    def __init__(self) -> None:
        self.judge = Judge(BOUNDS, ("/hand", "/cube"))
        self.now_s = 1000.0
        self.judge.state(self.now_s, "READY: not engaged")
        self.judge.still(self.now_s, True)
        self.judge.event(self.now_s, "engage", "driver")
        self.samples()
        self.send()
        self.judge.state(self.now_s + 0.001, "ENGAGED")
        self.judge.still(self.now_s + 0.002, False)
        self.ticks(3)

    def samples(self, age_s: float = 0.005) -> None:
        for topic in ("/hand", "/cube"):
            hand = np.concatenate([HAND, DOWN]) if topic == "/hand" else None
            self.judge.sample(self.now_s, Sample(topic, self.now_s - age_s, None, hand))

    def send(self, position: "np.ndarray" = HAND, quaternion: "np.ndarray" = DOWN, finger: float = 0.02, frame: str = "base") -> None:
        self.judge.command(self.now_s, Command(None, "", np.array([finger])))
        self.judge.command(self.now_s, Command(self.now_s, frame, np.concatenate([position, quaternion])))

    def ticks(self, count: int, position: "np.ndarray" = HAND) -> None:
        for _ in range(count):
            self.wait(0.05)
            self.samples()
            self.send(position)

    def wait(self, seconds: float) -> None:
        """Time goes on while nothing is sent."""
        for _ in range(round(seconds / 0.01)):
            self.now_s += 0.01
            self.judge.until(self.now_s)

    def found(self) -> set[str]:
        return {violation.rule for violation in self.judge.violations}


def test_a_robot_that_is_driven_rightly_passes() -> None:
    tape = Tape()
    tape.ticks(20)
    tape.wait(0.06)
    tape.judge.state(tape.now_s, "HOLD: cube is 0.061 s old, allowed are 0.050 s")
    tape.wait(0.03)
    tape.judge.still(tape.now_s, True)
    tape.ticks(1)
    tape.judge.state(tape.now_s + 0.001, "ENGAGED")
    tape.judge.still(tape.now_s + 0.002, False)
    tape.ticks(3)
    tape.judge.event(tape.now_s + 0.001, "killed", "node")
    tape.wait(0.04)
    tape.judge.still(tape.now_s, True)
    tape.wait(5.0)
    assert tape.judge.violations == []
    verdict = tape.judge.verdict()
    assert verdict["passed"]
    assert verdict["death_ms"] == pytest.approx([39.0])
    assert verdict["hold_ms"] == pytest.approx([65.0])


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        ("finite", lambda t: t.send(HAND * np.nan)),
        ("finite", lambda t: t.send(finger=np.inf)),
        ("rotation", lambda t: t.send(quaternion=DOWN * 1.01)),
        ("frame", lambda t: t.send(frame="world")),
        ("workspace", lambda t: t.send(np.array([0.5, 0.0, 0.51]))),
        ("distance", lambda t: t.send(HAND + 0.11 * X)),
        ("velocity", lambda t: (t.wait(0.05), t.send(HAND + 0.06 * X))),
        ("acceleration", lambda t: t.ticks(1, HAND + 0.04 * X)),
        ("angular velocity", lambda t: (t.wait(0.05), t.send(quaternion=turned(0.12)))),
        ("angular acceleration", lambda t: (t.wait(0.05), t.send(quaternion=turned(0.07)))),
        ("turn", lambda t: [(t.wait(0.05), t.samples(), t.send(quaternion=turned(0.05 * n))) for n in range(12)]),
        ("fingers", lambda t: t.send(finger=0.05)),
        ("fingers", lambda t: t.judge.command(t.now_s, Command(None, "", np.array([0.02, 0.02])))),
        ("finger velocity", lambda t: [(t.wait(0.05), t.send(finger=finger)) for finger in (0.02, 0.04, 0.01)]),
        ("age", lambda t: (t.wait(0.12), t.send())),
        ("age", lambda t: t.judge.command(t.now_s, Command(t.now_s - 0.2, "base", np.concatenate([HAND, DOWN])))),
        ("age", lambda t: t.judge.command(t.now_s, Command(t.now_s + 3600, "base", np.concatenate([HAND, DOWN])))),
        ("hold", lambda t: t.wait(0.3)),
        ("silence", lambda t: [(t.wait(0.05), t.samples()) for _ in range(10)]),
        ("states", lambda t: (t.judge.state(t.now_s, "STOPPED: x"), t.judge.state(t.now_s, "ENGAGED"))),
        ("states", lambda t: (t.judge.state(t.now_s, "READY: x"), t.judge.state(t.now_s, "ENGAGED"))),
        ("engaged", lambda t: (t.judge.state(t.now_s, "STOPPED: x"), t.ticks(1), t.wait(1.5))),
        ("engaged", lambda t: (t.judge.state(t.now_s, "HOLD: x"), t.ticks(1), t.judge.state(t.now_s + 0.001, "READY"))),
        ("engaged", lambda t: (t.judge.state(t.now_s, "HOLD: x"), t.ticks(2), t.judge.state(t.now_s, "ENGAGED"))),
        ("engaged", lambda t: (t.judge.event(t.now_s, "killed", "node"), t.ticks(1), t.wait(1.5))),
        ("death", lambda t: (t.judge.event(t.now_s, "killed", "node"), t.wait(0.25))),
        ("death", lambda t: (t.judge.event(t.now_s, "frozen", "node"), t.wait(0.21), t.judge.still(t.now_s, True))),
        ("still", lambda t: (t.judge.state(t.now_s, "HOLD: cube is 0.1 s old"), t.wait(0.21), t.judge.still(t.now_s, True))),
    ],
)
def test_each_thing_that_may_not_be_seen_is_found(rule: str, wrong: Callable[[Tape], None]) -> None:
    tape = Tape()
    assert tape.judge.violations == []
    wrong(tape)
    assert rule in tape.found()


def test_what_a_consumer_did_not_do_while_it_was_frozen_is_not_held_against_it() -> None:
    tape = Tape()
    tape.judge.event(tape.now_s, "frozen", "twin")
    tape.wait(0.06)
    tape.judge.state(tape.now_s, "HOLD: cube is 0.061 s old, allowed are 0.050 s")
    tape.wait(0.4)
    tape.judge.event(tape.now_s, "thawed", "twin")
    tape.wait(0.01)
    tape.judge.still(tape.now_s, True)
    assert tape.judge.violations == []


def test_a_new_nodes_first_commands_may_be_missed() -> None:
    tape = Tape()
    tape.judge.event(tape.now_s, "killed", "node")
    tape.wait(0.04)
    tape.judge.still(tape.now_s, True)
    tape.wait(3.0)
    tape.judge.event(tape.now_s, "started", "node")
    tape.judge.still(tape.now_s, False)
    tape.wait(0.01)
    assert tape.judge.violations == []


@pytest.mark.parametrize("problem", [None, "numbers"])
def test_what_is_unusable_late_out_of_order_or_of_the_future_does_not_count_as_a_measurement(problem: str | None) -> None:
    tape = Tape()
    for stamp_s in (tape.now_s - 1.0, tape.now_s + 3600.0) if problem is None else (tape.now_s + 0.04,):
        for _ in range(3):
            tape.wait(0.05)
            tape.judge.sample(tape.now_s, Sample("/hand", stamp_s, problem, np.concatenate([HAND, DOWN])))
            tape.judge.sample(tape.now_s, Sample("/cube", stamp_s, problem))
    tape.send()
    assert "age" in tape.found()


def test_a_bound_is_widened_by_what_the_machine_held_the_process_up_and_by_no_more() -> None:
    for stall_s, found in ((0.08, False), (0.06, True)):
        tape = Tape()
        tape.judge.stall_s = lambda _who, _begin_s, _end_s, stall_s=stall_s: stall_s
        tape.wait(0.17)  # 175 ms old, allowed are 100
        tape.judge.bounds = BOUNDS
        tape.send()
        assert ("age" in tape.found()) is found
        assert bool(tape.judge.excused) is not found


def test_by_a_simulations_clock_only_what_a_command_says_of_itself_is_judged() -> None:
    judge = Judge(BOUNDS, ("/hand",), simulated=True)
    judge.event(0.0, "engage", "driver")
    judge.state(0.0, "READY")
    judge.sample(1.0, Sample("/hand", 7.0, None, np.concatenate([HAND, DOWN])))
    judge.clock(1.0, 7.0)
    pose = np.concatenate([HAND, DOWN])
    judge.command(1.01, Command(7.0, "base", pose))
    judge.state(1.01, "ENGAGED")
    assert judge.violations == []
    judge.clock(1.02, 3607.0)
    judge.clock(1.2, 3607.2)
    judge.command(1.21, Command(7.0, "base", pose))
    assert [violation.rule for violation in judge.violations] == ["age"]


def test_of_a_hand_whose_rotation_is_none_the_position_counts_and_the_turn_does_not() -> None:
    elsewhere = HAND + 0.2 * X
    half = np.concatenate([elsewhere, np.full(4, np.nan)])
    for quaternion, rules in ((DOWN, {"velocity", "acceleration"}), (turned(0.6), None)):
        tape = Tape()
        tape.wait(0.05)
        tape.samples()
        tape.judge.sample(tape.now_s, Sample("/hand", tape.now_s, None, half))
        tape.send(elsewhere, quaternion)
        assert "distance" not in tape.found()
        assert tape.found() <= rules if rules is not None else "turn" in tape.found()
