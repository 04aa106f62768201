# SPDX-License-Identifier: Apache-2.0
"""The scripted operator: its keys bring a hand to the cube, and nothing that could not be flown is begun."""

from argparse import Namespace
from pathlib import Path

import contracts
import numpy as np
import pytest
import yaml

from otpr_operator.commands.pilot import COMMAND
from otpr_operator.pilot.lift import LOOK_S, LiftKeys, Stage
from otpr_operator.teleop.keyboard import Keyboard
from otpr_operator.teleop.session import Session
from otpr_policy.contract import load_contract
from otpr_policy.errors import ContractError, OtprError, TaskError

TELEOP = load_contract("panda_twin").teleop
CUBE = np.array([0.56, 0.02, -0.09])
UP = np.array([0.0, 0.0, 1.0])
DELAY_LOOKS = 3  # from a key to the hand's obeying


@pytest.mark.parametrize("start", [(0.45, 0.0, 0.12), (0.38, -0.20, 0.00), (0.56, 0.02, 0.10), (0.40, 0.20, -0.05)])
def test_the_keys_bring_a_slow_hand_to_the_cube_from_above_and_lift_it(start: tuple[float, float, float]) -> None:
    """Through the real keyboard and session, on a hand that obeys 0.15 s late. The fingers close once, at the cube."""
    assert TELEOP is not None
    script, session, hand = LiftKeys(TELEOP.linear_speed), Session(TELEOP), np.array(start)
    typed: list[str] = []
    keyboard = Keyboard(lambda: typed.pop(0) if typed else "")
    asked = [np.zeros(3)] * DELAY_LOOKS
    grippers: list[tuple[float, float]] = []
    for look in range(round(8.0 / LOOK_S)):
        typed.append(script.look(hand, CUBE))
        out = session.step([keyboard.poll(look * LOOK_S)])
        asked.append(out.linear)
        if out.gripper is not None:
            grippers.append((out.gripper, float(np.abs(hand - CUBE).max())))
        low = np.abs(hand - CUBE)[:2].max() > 0.02 and hand[2] < CUBE[2] + 0.03
        assert not low or start[2] < CUBE[2] + 0.06, "it came down beside the cube"
        hand = hand + LOOK_S * asked[-DELAY_LOOKS]
        if hand[2] > CUBE[2] + 0.1 and script.stage is Stage.LIFT:
            break
    assert script.stage is Stage.LIFT
    assert [target for target, _ in grippers] == [TELEOP.gripper_open, TELEOP.gripper_closed]
    assert grippers[1][1] < 0.012
    assert look * LOOK_S < 6.0


def test_a_new_attempt_goes_on_with_the_speed_of_the_last() -> None:
    """The speed is teleoperation's and outlasts an attempt; taken wrongly, the hand would be five times too fast."""
    assert TELEOP is not None
    session = Session(TELEOP)
    keys = Keyboard(lambda: typed)
    script = LiftKeys(TELEOP.linear_speed)
    for hand in (CUBE + 0.2 * UP, CUBE + 0.004 * UP):
        typed = script.look(hand, CUBE)
        session.step([keys.poll(0.0)])
        script = LiftKeys(TELEOP.linear_speed, script.level)
    typed = script.look(CUBE + 0.012 * UP, CUBE)
    session.step([keys.poll(0.0)])
    assert session.linear_speed == pytest.approx(TELEOP.linear_speed * 0.2)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"twin": None}, ContractError, "has no twin; a script does not drive a robot"),
        ({"twin": {"task": "can"}}, TaskError, "no script for task 'can', only for lift"),
        ({"teleop": None}, ContractError, "has no section 'teleop'"),
    ],
)
def test_what_cannot_be_flown_is_not_begun(tmp_path: Path, change: dict[str, object], error: type[Exception], says: str) -> None:
    robot = Path(contracts.write(tmp_path / "robot.yaml", **change))
    without = {key: value for key, value in yaml.safe_load(robot.read_text()).items() if value is not None}
    robot.write_text(yaml.safe_dump(without))
    with pytest.raises(error, match=says):
        COMMAND.run(Namespace(robot=str(robot), out=tmp_path / "out", episodes=2, json=False))
    assert not (tmp_path / "out").exists()


def test_no_episodes_are_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(OtprError, match="--episodes must be at least 1, got 0"):
        COMMAND.run(Namespace(robot="panda_twin", out=tmp_path / "out", episodes=0, json=False))
