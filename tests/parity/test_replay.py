# SPDX-License-Identifier: Apache-2.0
"""A flight of the shipped policy on the twin, in processes of their own, is computed again bit for bit."""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from std_srvs.srv import Trigger

from otpr_policy import bringup
from otpr_policy.commands.replay import COMMAND
from otpr_policy.errors import OtprError
from otpr_policy.ros.service_call import call, engage
from otpr_policy.supervisor import Supervisor

SHIPPED_POLICY = Path(__file__).parents[2] / "policies" / "lift.onnx"
pytestmark = pytest.mark.ros


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 120
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.05)
    return value


def replayed(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    COMMAND.add_arguments(parser)
    capsys.readouterr()
    assert COMMAND.run(parser.parse_args([str(path), "--json"])) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def start(supervisor: Supervisor, lockstep: bool, name: str, flights: Path) -> None:
    arguments = {"policy": str(SHIPPED_POLICY), "robot": "panda_twin", "log_level": "warn"}
    overrides: dict[str, dict[str, bringup.ParameterValue]] = {
        "policy_node": {"pacing": "observation" if lockstep else "clock", "flight_directory": str(flights)},
        "twin": {"pacing": "lockstep" if lockstep else "real_time"},
    }
    (process,) = (process for process in bringup.processes(arguments, overrides) if process.name == name)
    supervisor.start(process, bringup.environment(arguments, os.environ))


def engaged() -> bool:
    try:
        engage("/policy_node", True, 20.0)
    except OtprError as error:  # the first observation is on its way, or on a busy machine the answer to an earlier call
        return "already engaged" in str(error)
    return True


@pytest.mark.parametrize("lockstep", [True, False])
def test_a_flight_on_the_twin_replays_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str], lockstep: bool) -> None:
    """In lockstep the flight that is asked for; in real time the one that the stop leaves when the robot dies."""
    with Supervisor() as node, Supervisor() as robot:
        start(node, lockstep, "policy_node", tmp_path)
        start(robot, lockstep, "twin", tmp_path)
        wait_for(engaged, "the node to engage")
        time.sleep(2.0)
        if lockstep:
            assert call(Trigger, "/policy_node/save", Trigger.Request(), 10.0).success
        else:
            robot.stop(grace_s=0.0)
        (path,) = wait_for(lambda: list(tmp_path.glob("flight_*.mcap")), "the flight")
    report = replayed(path, capsys)
    assert report["exact"]
    assert report["actions"] >= 10
    assert report["reason"].startswith("asked for" if lockstep else "STOPPED")
