# SPDX-License-Identifier: Apache-2.0
"""``otpr pilot``: a scripted operator records demonstrations on the twin, by the keys of ``otpr teleop`` and ``otpr record``."""

import argparse
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from otpr_operator.bag import unfinished
from otpr_operator.pilot.console import Console
from otpr_operator.pilot.lift import LOOK_S, LiftKeys
from otpr_operator.teleop.session import START
from otpr_policy import bringup
from otpr_policy.cli import Command
from otpr_policy.contract import RobotContract, load_contract
from otpr_policy.errors import ContractError, EnvironmentSetupError, OtprError, TaskError
from otpr_policy.files import make_directory
from otpr_policy.takeover import require_teleop

if TYPE_CHECKING:  # needs rclpy, which reads the ROS domain when it is first used: not before one was chosen
    from otpr_operator.ros.pilot import Onlooker

TASKS = ("lift",)  # that there is a script for
_FIELDS = ("ee_position", "cube_position")
_ATTEMPTS_PER_EPISODE = 10
_START_TIMEOUT_S = 120.0  # the first start after an installation compiles
_ANSWER_S = 15.0
_ATTEMPT_S = 20.0
_AFTER_SUCCESS_S = 0.4  # a person sees the cube in the air, and then says so
_GOODBYE_S = 10.0


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--robot", default="panda_twin", help="name of a robot contract with a twin, or path of one (.yaml)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory of the recordings; each is a directory in it")
    parser.add_argument(
        "--episodes", type=int, default=20, help="recordings to save; one in which the cube was not lifted or the robot held is discarded"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run(arguments: argparse.Namespace) -> int:
    contract = _check(arguments)
    make_directory(arguments.out)
    # Whatever else is on this machine's network, a script commands a simulation of its own.
    environment = bringup.isolated({"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", **os.environ})
    os.environ.update({name: environment[name] for name in ("ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE")})
    with ExitStack() as undo:
        otpr = [sys.executable, "-m", "otpr_policy.cli"]
        teleop = undo.enter_context(Console([*otpr, "teleop", "--robot", arguments.robot], environment))
        recorder = undo.enter_context(Console([*otpr, "record", "--robot", arguments.robot, "--out", str(arguments.out)], environment))
        from otpr_operator.ros.pilot import looking

        def alive() -> None:
            for name, console in (("teleop", teleop), ("record", recorder)):
                console.text()
                if console.ended() is not None:
                    raise EnvironmentSetupError(f"'otpr {name}' ended with status {console.ended()}: {console.last_line()}")

        onlooker = undo.enter_context(looking(contract, _FIELDS, alive))
        pilot = Pilot(contract, teleop, recorder, onlooker)
        counts = pilot.fly(arguments.episodes)
        teleop.press("q")
        recorder.press("\x03")
        teleop.wait(_GOODBYE_S)
        recorder.wait(_GOODBYE_S)
    if arguments.json:
        print(json.dumps({"out": str(arguments.out), **counts}))
    else:
        print(f"{arguments.out}: {counts['saved']} recordings saved, {counts['discarded']} of {counts['attempts']} attempts discarded")
    return 0


def _check(arguments: argparse.Namespace) -> RobotContract:
    contract = load_contract(arguments.robot)
    require_teleop(contract)
    if arguments.episodes < 1:
        raise OtprError(f"--episodes must be at least 1, got {arguments.episodes}")
    if contract.twin is None:
        raise ContractError(f"robot {contract.robot} has no twin; a script does not drive a robot")
    if contract.twin.task not in TASKS:
        raise TaskError(f"there is no script for task {contract.twin.task!r}, only for {', '.join(TASKS)}; 'otpr demos collect' has more")
    if left := unfinished(arguments.out):
        raise OtprError(f"{left[0]} was not completed; 'otpr recordings recover {left[0]}' does it, or choose another --out")
    return contract


class Pilot:
    """Does what a person does with two terminals."""

    def __init__(self, contract: RobotContract, teleop: Console, recorder: Console, onlooker: "Onlooker") -> None:
        self._fastest_m_s = require_teleop(contract).linear_speed
        self._teleop = teleop
        self._recorder = recorder
        self._look = onlooker
        self._level = START

    def fly(self, episodes: int) -> dict[str, int]:
        """Records until so many are saved. Returns how many were ``saved``, ``discarded`` and tried (``attempts``)."""
        look = self._look
        look.wait_for(
            lambda: bool(look.state and look.recorder and look.episode >= 0), "teleoperation and recorder to start", _START_TIMEOUT_S
        )
        saved = attempts = 0
        with tqdm(total=episodes, unit="episode", file=sys.stderr) as bar:
            while saved < episodes:
                if attempts == _ATTEMPTS_PER_EPISODE * episodes:
                    raise EnvironmentSetupError(
                        f"{saved} of {episodes} recordings were saved in {attempts} attempts; the last words are above"
                    )
                attempts += 1
                problem, found = self._attempt()
                saved += problem is None
                bar.update(problem is None)
                if problem is not None:
                    bar.write(f"attempt {attempts} discarded: {problem}", file=sys.stderr)
                elif found:
                    bar.write(f"{found[0]}: {found[1]}", file=sys.stderr)
                self._next_scene()
        return {"saved": saved, "discarded": attempts - saved, "attempts": attempts}

    def _attempt(self) -> tuple[str | None, tuple[str, str] | None]:
        """Records one. Returns None when it was saved, or why it was discarded; and its name with the recorder's first finding."""
        self._engage()
        self._look.held = ""
        self._record("s", "recording")
        problem = self._lift()
        self._record("n" if problem else "y", "review")
        status = self._look.recorder
        found = (status["episode"], status["problems"][0]) if status["problems"] else None
        self._record("d" if problem else " ", "idle")
        return problem, found

    def _lift(self) -> str | None:
        """Presses keys until the cube is in the air. Returns None, or why it is not."""
        look = self._look
        script = LiftKeys(self._fastest_m_s, self._level)
        problem = None
        looks = 0
        while not look.solved and problem is None:
            self._teleop.press(script.look(look.seen["ee_position"], look.seen["cube_position"]))
            look.spin(LOOK_S)
            looks += 1
            if look.held:
                problem = look.held
            elif looks * LOOK_S > _ATTEMPT_S:
                problem = f"the cube was not lifted within {_ATTEMPT_S:.0f} s"
        self._level = script.level
        if problem is None:
            look.spin(_AFTER_SUCCESS_S)
        return problem or look.held or None

    def _engage(self) -> None:
        """Enter, as often as it takes: the first observation may still be on its way, or a busy machine have stopped the robot."""
        look = self._look

        def engaged() -> bool:
            if not look.state.startswith("ENGAGED"):
                self._teleop.press("b\r" if look.state.startswith("STOPPED") else "\r")
                look.spin(0.5)
            return look.state.startswith("ENGAGED") and all(name in look.seen for name in _FIELDS)

        look.wait_for(engaged, "the robot to be engaged", _START_TIMEOUT_S)

    def _next_scene(self) -> None:
        look, before = self._look, self._look.episode
        self._teleop.press("n")
        look.wait_for(lambda: look.episode > before and not look.solved, "the twin's next scene", _ANSWER_S)

    def _record(self, key: str, phase: str) -> None:
        self._recorder.press(key)
        self._look.wait_for(lambda: bool(self._look.recorder.get("phase") == phase), f"the recorder to be {phase}", _ANSWER_S)


COMMAND = Command("a scripted operator records demonstrations on the twin, by the keys of teleop and record", _add_arguments, _run)
