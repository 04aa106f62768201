# SPDX-License-Identifier: Apache-2.0
"""``otpr teleop``: an operator drives the robot, alone or taking over from a policy, from a terminal."""

import argparse
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from otpr_operator.teleop.listing import devices
from otpr_operator.teleop.session import HELP
from otpr_operator.teleop.terminal import Terminal, standard_terminal
from otpr_policy import bringup
from otpr_policy.artifact import load
from otpr_policy.cli import Command
from otpr_policy.contract import RobotContract, load_contract
from otpr_policy.errors import ContractError, EnvironmentSetupError, OtprError
from otpr_policy.supervisor import Supervisor
from otpr_policy.table import format_table
from otpr_policy.takeover import require_teleop

_POLL_S = 0.1
_GOODBYE_S = 2.0


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--robot", default="panda_twin", help="name of a robot contract, or path of one (.yaml)")
    parser.add_argument("--device", default="keyboard", choices=("keyboard", "gamepad", "spacemouse"), help="what the operator holds")
    parser.add_argument("--policy", default="", metavar="ARTIFACT", help="policy that runs, and that the operator may take over from")
    parser.add_argument("--shadow", default="", metavar="ARTIFACT", help="policy that only proposes, and is compared with the operator")
    parser.add_argument("--report", default="", metavar="FILE.json", help="where that comparison is written at the end")
    parser.add_argument("--attach", action="store_true", help="start nothing; the policy node runs already (otpr bringup, ros2 launch)")
    parser.add_argument("--node", default="/policy_node", help="full name of the policy node that commands the robot")
    parser.add_argument("--sim", action=argparse.BooleanOptionalAction, default=True, help="start the simulated twin of the robot")
    parser.add_argument("--view", action="store_true", help="open the simulator's viewer on this desktop")
    parser.add_argument("--record", metavar="DIR", default="", help="directory to record into; none by default")
    parser.add_argument("--joy-topic", default="/joy", help="topic of the gamepad (sensor_msgs/Joy)")
    parser.add_argument("--joy-map", default="", metavar="FILE.yaml", help="map of the gamepad; by default an Xbox gamepad's")
    parser.add_argument("--list", action="store_true", help="list the devices, whether each can be used, and why not; start nothing")
    parser.add_argument("--json", action="store_true", help="with --list: print one JSON object")


def _run(options: argparse.Namespace) -> int:
    if options.list:
        return _list(options)
    contract = load_contract(options.robot)
    table = _check(options, contract)
    os.environ.update(bringup.environment(table, os.environ, bringup.TELEOP))  # ours too: before rclpy is imported
    # Standard input is no terminal: only a keyboard needs one.
    terminal = standard_terminal() if options.device == "keyboard" or sys.stdin.isatty() else None
    with ExitStack() as undo:
        undo.enter_context(_without_hangup())
        tell, show = _screen(terminal)
        supervisor = undo.enter_context(Supervisor(lambda name, line: tell(f"[{name}] {line}")))
        if not options.attach:
            for process in bringup.processes(table, table=bringup.TELEOP):
                supervisor.start(process, os.environ)
        if terminal is not None:
            undo.enter_context(terminal)
        return _drive(options, contract, supervisor, terminal, tell, show)


def _check(options: argparse.Namespace, contract: RobotContract) -> dict[str, str]:
    """Finds the user's mistakes before anything moves. Returns the arguments of the bring-up."""
    require_teleop(contract)
    if options.sim and contract.twin is None and not options.attach:
        raise ContractError(f"robot {contract.robot} has no twin; start it with --no-sim")
    for path in filter(None, (options.policy, options.shadow)):
        contract.check_serves(load(Path(path)).manifest.policy)
    if options.attach and (options.policy or options.shadow or options.record):
        raise OtprError("--attach starts nothing, so --policy, --shadow and --record belong to what runs already")
    if options.view and (options.attach or not options.sim):
        raise OtprError("--view is of the simulated twin, which --attach and --no-sim do not start")
    if options.report and not options.shadow:
        raise OtprError("--report is of --shadow; give both")
    if options.policy and options.shadow:
        raise OtprError("--policy commands and --shadow only proposes; give one of them")
    return {
        "mode": "command" if options.policy else "teleop",
        "policy": options.policy,
        "shadow": options.shadow,
        "report": options.report,
        "robot": options.robot,
        "sim": str(options.sim and contract.twin is not None).lower(),
        "view": str(options.view).lower(),
        "record": options.record,
        "log_level": "warn",
    }


def _drive(
    options: argparse.Namespace,
    contract: RobotContract,
    supervisor: Supervisor,
    terminal: Terminal | None,
    tell: Callable[[str], None],
    show: Callable[[str], None],
) -> int:
    from otpr_operator.ros.teleop import TeleopNode, TeleopParameters, make_device, running  # after the environment is set
    from otpr_operator.teleop.device import Device
    from otpr_operator.teleop.keyboard import Keyboard

    chosen: list[Device] = []
    if options.device != "keyboard":
        chosen.append(make_device(TeleopParameters(device=options.device, joy_topic=options.joy_topic, joy_map=options.joy_map)))
    if terminal is not None:
        chosen.append(Keyboard(terminal.read, moves=not chosen))
        terminal.print(f"robot {contract.robot}, {chosen[0].name}\n{HELP}")
    with running(lambda context: TeleopNode(contract, chosen, node=options.node, tell=tell, show=show, context=context)) as teleop:
        while not teleop.node.done:
            teleop.spin(_POLL_S)
            ended = supervisor.poll()
            if ended is not None:
                raise EnvironmentSetupError(f"{ended}; teleoperation ends")
        teleop.leave(_GOODBYE_S)
        if teleop.node.failure:
            raise EnvironmentSetupError(teleop.node.failure)
    return 0


def _screen(terminal: Terminal | None) -> tuple[Callable[[str], None], Callable[[str], None]]:
    """How lines are told, and how the state is shown."""
    if terminal is None:
        return lambda line: print(line, file=sys.stderr, flush=True), lambda _state: None
    return terminal.print, terminal.status


@contextmanager
def _without_hangup() -> Iterator[None]:
    """A terminal that goes away must not kill us: the robot is told first, and the recording completed."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, previous)


def _list(options: argparse.Namespace) -> int:
    contract = load_contract(options.robot)
    if contract.twin is not None:
        os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    publishers: int | None = None
    if importlib.util.find_spec("rclpy") is not None:
        from otpr_operator.ros.teleop import count_publishers

        publishers = count_publishers(options.joy_topic)
    found = devices(sys.stdin.fileno(), options.joy_topic, publishers)
    if options.json:
        print(json.dumps({"devices": [{"name": d.name, "usable": d.usable, "why": d.why} for d in found]}))
    else:
        print(format_table(["device", "usable", "why"], [[d.name, "yes" if d.usable else "no", d.why] for d in found]))
    return 0


COMMAND = Command("drive a robot by keyboard, gamepad or SpaceMouse, alone or taking over from a policy", _add_arguments, _run)
