# SPDX-License-Identifier: Apache-2.0
"""How a node's process ends, and the calls that a person makes of it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_policy

OTPR = (sys.executable, "-m", "otpr_policy.cli")
pytestmark = pytest.mark.ros


def start_node(policy: Path, **environment: str) -> "subprocess.Popen[str]":
    arguments = ["-p", f"policy:={policy}", "-p", "robot:=panda_twin", "-p", "autostart:=true"]
    return subprocess.Popen(
        [sys.executable, "-m", "otpr_policy.ros.node", "--ros-args", *arguments],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_it_serves() -> None:
    for _ in range(3):
        if subprocess.run([*OTPR, "reset"], capture_output=True, timeout=60).returncode == 0:
            return
    pytest.fail("the policy node does not serve")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_node_with_status_zero(tmp_path: Path, number: int) -> None:
    node = start_node(tiny_policy.write(tmp_path / "tiny.onnx"))
    try:
        wait_until_it_serves()
        node.send_signal(number)
        assert node.wait(10) == 0
    finally:
        node.kill()
        node.communicate()


def test_a_node_that_cannot_start_says_one_line_and_ends_with_status_one(tmp_path: Path) -> None:
    node = start_node(tmp_path / "none.onnx")
    _, output = node.communicate(timeout=30)
    assert node.returncode == 1
    assert f"cannot read policy {tmp_path / 'none.onnx'}" in output.splitlines()[-1]
    assert "Traceback" not in output


def test_engaging_without_observations_is_refused_in_one_line(tmp_path: Path) -> None:
    node = start_node(tiny_policy.write(tmp_path / "tiny.onnx"))
    try:
        wait_until_it_serves()
        engage = subprocess.run([*OTPR, "engage"], capture_output=True, text=True, timeout=60)
        assert engage.returncode == 1
        (line,) = engage.stderr.splitlines()
        assert "/policy_node/engage refuses" in line
    finally:
        node.send_signal(signal.SIGINT)
        node.communicate(timeout=10)


def test_a_node_ends_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    policy = tiny_policy.write(tmp_path / "tiny.onnx")
    pid_file = tmp_path / "pid"
    supervisor = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\n"
            "from otpr_policy.bringup import processes\n"
            "from otpr_policy.supervisor import Supervisor\n"
            "supervisor = Supervisor()\n"
            f"supervisor.start(processes({{'policy': {str(policy)!r}, 'sim': 'false'}})[0])\n"
            f"open({str(pid_file)!r}, 'w').write(str(supervisor._children['policy_node'].pid))\n"
            "time.sleep(60)",
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until_it_serves()
        node = int(pid_file.read_text())
        supervisor.kill()
        supervisor.wait()
        deadline = time.monotonic() + 10
        while Path(f"/proc/{node}").exists() and "Z" not in Path(f"/proc/{node}/stat").read_text().split()[2]:
            assert time.monotonic() < deadline, "the node lives on"
            time.sleep(0.1)
    finally:
        supervisor.kill()
