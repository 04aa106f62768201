# SPDX-License-Identifier: Apache-2.0
"""Configured, activated, deactivated, cleaned up, again and again: the policy node's process, looked at from outside."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import contracts
import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from otpr_policy import bringup
from otpr_policy.ros.process import start_ros

SHIPPED_POLICY = Path(__file__).parents[2] / "policies" / "lift.onnx"
WARM_UP = 25  # loops in which libraries fill their caches
GROWTH_MB = 5.0
LOOPS_PER_CONNECTION = 40
LOOP = (
    Transition.TRANSITION_CONFIGURE,
    Transition.TRANSITION_ACTIVATE,
    Transition.TRANSITION_DEACTIVATE,
    Transition.TRANSITION_CLEANUP,
)
pytestmark = [pytest.mark.ros, pytest.mark.faults]


@dataclass(frozen=True)
class Held:
    """What a process holds, according to the kernel."""

    threads: int
    descriptors: int
    memory_mb: float

    @classmethod
    def by(cls, pid: int) -> "Held":
        proc = Path("/proc") / str(pid)
        anonymous = next(line for line in (proc / "status").read_text().splitlines() if line.startswith("RssAnon"))
        return cls(len(list((proc / "task").iterdir())), len(list((proc / "fd").iterdir())), int(anonymous.split()[1]) / 1024)


class Driver:
    """Moves the node of another process through its lifecycle."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self._log = log
        self._connect()

    def _connect(self) -> None:
        """Joins the network. What sees thousands of a node's topics come and go gets slow, so a long test joins anew now and then."""
        self._loops = 0
        self._context = Context()
        start_ros(context=self._context)
        self._node = Node("lifecycle_driver", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._client = self._node.create_client(ChangeState, "/policy_node/change_state")
        asked = self._node.create_client(GetState, "/policy_node/get_state")
        assert self._client.wait_for_service(timeout_sec=60), self.words()
        assert asked.wait_for_service(timeout_sec=60), self.words()
        for _ in range(30):  # a server that does not know its client yet answers nobody
            future = asked.call_async(GetState.Request())
            self._executor.spin_until_future_complete(future, 1)
            if future.done():
                break
        assert future.done(), self.words()

    def words(self) -> str:
        return self._log.read_text()[-2000:]

    def loop(self) -> None:
        self._loops += 1
        if self._loops > LOOPS_PER_CONNECTION:
            self.close()
            self._connect()
        for transition in LOOP:
            future = self._client.call_async(ChangeState.Request(transition=Transition(id=transition)))
            self._executor.spin_until_future_complete(future, 30)
            assert future.done(), f"transition {transition} is not answered; {self.words()}"
            assert future.result().success, f"transition {transition} failed; {self.words()}"
            assert self.process.poll() is None, self.words()

    def close(self) -> None:
        self._executor.remove_node(self._node)
        self._node.destroy_node()
        self._executor.shutdown()
        self._context.try_shutdown()


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    robot = contracts.write(tmp_path / "robot.yaml")
    arguments = {"policy": str(SHIPPED_POLICY), "robot": robot, "sim": "false"}
    node = bringup.processes(arguments, {"policy_node": {"autostart": False}})[0]
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(node.argv, stdout=file, stderr=file)
    try:
        driver = Driver(process, log)
        yield driver
        driver.close()
    finally:
        process.kill()
        process.wait()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("loops", [15, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_node_that_goes_through_its_lifecycle_again_and_again_keeps_nothing(driver: Driver, loops: int) -> None:
    for _ in range(min(WARM_UP, loops)):
        driver.loop()
    before = Held.by(driver.process.pid)
    for _ in range(loops):
        driver.loop()
    after = Held.by(driver.process.pid)
    print(f"{loops} loops: before {before}, after {after}")
    assert after.threads == before.threads
    assert after.descriptors == before.descriptors
    assert after.memory_mb - before.memory_mb < GROWTH_MB
