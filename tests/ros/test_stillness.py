# SPDX-License-Identifier: Apache-2.0
"""How long the robot goes on when something dies: policy node, twin and a tracker as processes, ended or stopped by signals.

Times are the senders' own stamps of what they sent, so that a busy observer does not count.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import contracts
import pytest
import yaml
from scene import Scene
from std_msgs.msg import Bool

from otpr_policy import bringup

SHIPPED_POLICY = Path(__file__).parents[2] / "policies" / "lift.onnx"
pytestmark = [pytest.mark.ros, pytest.mark.faults]


def _scene(folder: Path, **entries: Any) -> Scene:
    """The twin, the node, and a tracker for the cube between them."""
    robot = contracts.write(folder / "robot.yaml", limits={}, max_age_s=0.05, **entries)
    data = yaml.safe_load(Path(robot).read_text())
    data["observations"]["cube_position"]["topic"] = "/tracker/cube"
    (folder / "policy.yaml").write_text(yaml.safe_dump(data))
    node = bringup.processes({"policy": str(SHIPPED_POLICY), "robot": str(folder / "policy.yaml"), "sim": "false"})
    twin = bringup.processes({"policy": str(SHIPPED_POLICY), "robot": robot})[1:]
    relay = [sys.executable, str(Path(__file__).parents[1] / "relay.py"), "/objects/cube/pose", "/tracker/cube"]
    return Scene(folder, {"node": node[0].argv, "twin": twin[0].argv, "tracker": relay}, "/tracker/cube")


@pytest.fixture
def make_scene(tmp_path: Path) -> Iterator[Callable[..., Scene]]:
    scenes: list[Scene] = []

    def make(**entries: Any) -> Scene:
        scenes.append(_scene(tmp_path, **entries))
        return scenes[-1]

    yield make
    for scene in scenes:
        scene.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_robot_is_held_within_200_ms_when_the_node_is_killed_or_frozen(
    make_scene: Callable[..., Scene], number: signal.Signals
) -> None:
    scene = make_scene()
    scene.engage()
    struck_s = scene.send("node", number)
    held_s = scene.held_s(struck_s)
    print(f"{number.name}: held {1e3 * (held_s - struck_s):.0f} ms after the signal")
    assert held_s - struck_s < 0.2
    time.sleep(0.3)
    assert scene.holding[-1][1], "nothing moves it again"
    if number is signal.SIGKILL:
        sent = len(scene.commands)
        scene.processes["node"].wait()
        scene.start("node")
        scene.wait_for(lambda: scene.states[-1][0] > struck_s and "READY" in scene.states[-1][1], "the node to come up again")
        time.sleep(0.5)
        assert "READY: not engaged" in scene.states[-1][1]
        assert len(scene.commands) == sent


def test_letting_the_switch_go_holds_the_robot_between_two_ticks(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(dead_man={"topic": "/dead_man", "type": "std_msgs/msg/Bool", "max_age_s": 0.3})
    publisher = scene.observer.create_publisher(Bool, "/dead_man", 1)
    timer = scene.observer.create_timer(0.02, lambda: publisher.publish(Bool(data=True)))
    scene.engage()
    scene.observer.destroy_timer(timer)
    time.sleep(0.05)
    released_s = time.time()
    publisher.publish(Bool(data=False))
    held_s = scene.held_s(released_s)
    print(f"held {1e3 * (held_s - released_s):.0f} ms after the switch was let go")
    assert held_s - released_s < 0.15
    scene.wait_for(lambda: "press it and engage again" in scene.states[-1][1], "the reason")


def test_a_tracker_that_freezes_holds_the_node_within_three_periods_and_the_robot_with_it(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene()
    scene.engage()
    struck_s = scene.send("tracker", signal.SIGSTOP)
    hold_s = scene.state_s("HOLD: cube_position is", struck_s)
    held_s = scene.held_s(struck_s)
    last_s = max(at_s for at_s in scene.tracked if at_s < hold_s)
    print(
        f"after the last sample: node {1e3 * (hold_s - last_s):.0f} ms, twin {1e3 * (held_s - last_s):.0f} ms, "
        f"last command {1e3 * (max(scene.commands) - last_s):.0f} ms"
    )
    assert hold_s - last_s < 0.15
    assert held_s - last_s < 0.15
    sent = len(scene.commands)
    scene.state_s("STOPPED", struck_s)
    assert len(scene.commands) == sent
    scene.send("tracker", signal.SIGCONT)
    time.sleep(0.3)
    assert len(scene.commands) == sent, "data alone does not bring it back"
