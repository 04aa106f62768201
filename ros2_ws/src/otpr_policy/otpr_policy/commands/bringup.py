# SPDX-License-Identifier: Apache-2.0
"""``otpr bringup``: the processes of ``bringup.launch.py`` on a machine that has no ``launch_ros``."""

import argparse
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from otpr_policy import artifact, bringup, contract
from otpr_policy.cli import Command
from otpr_policy.desktop import check_desktop
from otpr_policy.errors import ContractError, EnvironmentSetupError, OutputError
from otpr_policy.supervisor import Supervisor

_POLL_S = 0.1


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments = {argument.name: argument for argument in bringup.ARGUMENTS}
    parser.add_argument("policy", metavar="ARTIFACT", help=arguments["policy"].description)
    parser.add_argument("--robot", default=arguments["robot"].default, help=arguments["robot"].description)
    parser.add_argument(
        "--sim",
        action=argparse.BooleanOptionalAction,
        default=arguments["sim"].default == "true",
        help=arguments["sim"].description,
    )
    parser.add_argument("--view", action="store_true", help=arguments["view"].description)
    parser.add_argument("--record", metavar="DIR", default=arguments["record"].default, help=arguments["record"].description)
    parser.add_argument("--use-sim-time", action="store_true", help=arguments["use_sim_time"].description)
    parser.add_argument(
        "--log-level",
        choices=arguments["log_level"].choices,
        default=arguments["log_level"].default,
        help=arguments["log_level"].description,
    )


def _run(options: argparse.Namespace) -> int:
    arguments = _as_launch_arguments(options)
    _check(options)
    processes = bringup.processes(arguments)
    for process in processes:
        _check_importable(process)
    environment = bringup.environment(arguments, os.environ)
    with _stop_signals() as stop, Supervisor() as supervisor:
        for process in processes:
            if stop.is_set():
                break
            print(f"otpr: starting {process.name}", file=sys.stderr, flush=True)
            supervisor.start(process, environment)
        while not stop.wait(_POLL_S):
            ended = supervisor.poll()
            if ended is not None:
                print(f"otpr: error: {ended}; stopping the others", file=sys.stderr, flush=True)
                return 1
        print("otpr: stopping", file=sys.stderr, flush=True)
        # The signal may have reached a node before its own handler stood, so how a node ended says nothing; that it ended does.
        supervisor.stop()
    return 0


def _as_launch_arguments(options: argparse.Namespace) -> dict[str, str]:
    """The options as the texts that `ros2 launch` would give."""
    return {
        argument.name: str(value).lower() if isinstance(value, bool) else value
        for argument in bringup.ARGUMENTS
        for value in [getattr(options, argument.name)]
    }


def _check(options: argparse.Namespace) -> None:
    """Finds the user's mistakes before anything moves, where they are one line instead of a node's log."""
    robot = contract.load_contract(options.robot)
    robot.check_serves(artifact.load(Path(options.policy)).manifest.policy)
    if options.sim and robot.twin is None:
        raise ContractError(f"robot {robot.robot} has no twin; start it with --no-sim")
    if options.view:
        if not options.sim:
            raise EnvironmentSetupError("--view shows the simulation, and with --no-sim there is none")
        check_desktop(os.environ, sys.platform)
    if options.record and Path(options.record).exists() and not Path(options.record).is_dir():
        raise OutputError(f"cannot record into {options.record}: it is not a directory")


def _check_importable(process: bringup.Process) -> None:
    package = process.argv[2].split(".")[0]
    if importlib.util.find_spec(package) is None:
        raise EnvironmentSetupError(f"{process.name} needs package {package}, which is not installed in {sys.prefix}")


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM set the event instead of ending us: a started process must never lose its supervisor."""
    stop = threading.Event()

    def request_stop(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    previous = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


COMMAND = Command(
    help="start the policy node (and the twin, and the recorder) on this machine; Ctrl-C stops them",
    add_arguments=_add_arguments,
    run=_run,
)
