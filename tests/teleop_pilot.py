# SPDX-License-Identifier: Apache-2.0
"""A pilot for teleoperation tests: reads the robot's published poses, and says which way the hand shall go to lift the cube."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from scene import EVERY
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool

from otpr_policy.ros.messages import LATCHED_QOS, STATE_PUBLISHER_QOS, pose_position
from otpr_policy.spec import Array

NEAR = 0.004  # m
GRASP_HEIGHT = -0.002  # m, grip site relative to the cube's centre
# A command as `otpr` runs it, also where it is not installed as an entry point yet.
PROGRAM = """
import argparse, signal, sys
from otpr_operator.commands.teleop import COMMAND
from otpr_policy.cli import _as_interrupt
from otpr_policy.errors import OtprError
signal.signal(signal.SIGTERM, _as_interrupt)
parser = argparse.ArgumentParser()
COMMAND.add_arguments(parser)
try:
    sys.exit(COMMAND.run(parser.parse_args()))
except OtprError as error:
    print(f"otpr: error: {error}", file=sys.stderr)
    sys.exit(1)
except KeyboardInterrupt:
    sys.exit(130)
"""


class Watcher:
    """What an onlooker of the topics sees."""

    def __init__(self, context: Context) -> None:
        self.node = Node("watcher", context=context)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self.node)
        self.hand: Array | None = None
        self.cube: Array | None = None
        self.lifted = False
        self.states: list[str] = []
        self.labels: list[str] = []
        self.commands: list[PoseStamped] = []
        listen = self.node.create_subscription
        listen(PoseStamped, "/ee_pose", lambda m: setattr(self, "hand", pose_position(m.pose)), STATE_PUBLISHER_QOS)
        listen(PoseStamped, "/objects/cube/pose", lambda m: setattr(self, "cube", pose_position(m.pose)), STATE_PUBLISHER_QOS)
        listen(PoseStamped, "/target_pose", self.commands.append, 10)
        listen(Bool, "/twin/success", lambda m: setattr(self, "lifted", m.data), LATCHED_QOS)
        listen(String, "/policy_node/state", lambda m: self.states.append(m.data), EVERY)
        listen(String, "/policy_node/commander", lambda m: self.labels.append(m.data), 20)

    @property
    def state(self) -> str:
        return self.states[-1] if self.states else ""

    def spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (remaining := end - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=remaining)

    def wait_for(self, condition: Callable[[], Any], what: Callable[[], str] | str, timeout_s: float = 30.0) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, (what if isinstance(what, str) else what(), self.states, self.hand)
            self._executor.spin_once(timeout_sec=0.02)

    def call(self, service: str, value: bool) -> Any:
        client = self.node.create_client(SetBool, service)
        self.wait_for(client.service_is_ready, service)
        future = client.call_async(SetBool.Request(data=value))
        self.wait_for(future.done, f"an answer of {service}")
        self.node.destroy_client(client)
        return future.result()

    def close(self) -> None:
        self._executor.remove_node(self.node)
        self.node.destroy_node()
        self._executor.shutdown()


def way_to_grasp(hand: Array, cube: Array) -> Array:
    """(3,) how far the hand still has to go: first beside, above the cube, then down."""
    way = cube + np.array([0.0, 0.0, GRASP_HEIGHT]) - hand
    if np.abs(way[:2]).max() > NEAR:
        way[2] = max(way[2], min(0.0, cube[2] + 0.06 - hand[2]))
    return way


class Teleop:
    """``otpr teleop`` in a pseudo-terminal."""

    def __init__(self, *words: str, folder: Path) -> None:
        self.screen = b""
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *words], stdin=slave, stdout=slave, stderr=slave, start_new_session=True, cwd=folder
        )
        self.slave = slave
        os.set_blocking(self.master, False)

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def text(self) -> str:
        """Everything on the screen so far."""
        try:
            while chunk := os.read(self.master, 65536):
                self.screen += chunk
        except OSError:  # nothing more, or the terminal was closed
            pass
        return self.screen.decode(errors="replace")

    def wait(self, timeout_s: float = 20.0) -> int:
        end = time.monotonic() + timeout_s
        while self.process.poll() is None:
            self.text()  # a full screen buffer would block it
            assert time.monotonic() < end, self.text()
            time.sleep(0.02)
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.wait()
            finally:
                self.process.kill()
        for descriptor in (self.master, self.slave):
            with suppress(OSError):
                os.close(descriptor)


@contextmanager
def watching() -> Iterator[Watcher]:
    import rclpy

    context = Context()
    rclpy.init(context=context)
    watcher = Watcher(context)
    try:
        yield watcher
    finally:
        watcher.close()
        rclpy.try_shutdown(context=context)
