# SPDX-License-Identifier: Apache-2.0
"""The launch file says what the table in otpr_policy.bringup says.

``launch`` and ``launch_ros`` come with ROS and not from pip. Where they are missing a stand-in records how the launch file calls them;
where they are there, the last tests run the real thing.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path

import pytest
import tiny_policy
import yaml
from launch_stand_in import Call, evaluate, recorded

from otpr_policy import bringup

LAUNCH = Path(__file__).resolve().parent.parent / "launch"
LAUNCH_FILE = LAUNCH / "bringup.launch.py"
TABLES = {"bringup.launch.py": bringup.BRINGUP, "teleop.launch.py": bringup.TELEOP}
NO_LAUNCH_ROS = "launch_ros is not on PyPI; this runs on a machine that has ROS 2"
ROS2 = shutil.which("ros2", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


@pytest.fixture
def actions(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What the launch file makes, recorded."""
    return recorded(LAUNCH_FILE, monkeypatch)


@pytest.mark.parametrize("name", TABLES)
def test_a_launch_file_declares_the_arguments_of_its_table(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    actions = recorded(LAUNCH / name, monkeypatch)
    declared = [action for action in actions if action.name == "DeclareLaunchArgument"]
    assert [
        (*action.args, action.kwargs["default_value"], action.kwargs["description"], action.kwargs["choices"]) for action in declared
    ] == [(argument.name, argument.default, argument.description, argument.choices or None) for argument in TABLES[name].arguments]


@pytest.mark.parametrize(("sim", "record", "flag"), list(product(["true", "false"], ["", "episodes"], ["true", "false"])))
def test_launch_file_and_command_start_the_same_processes(actions: list[Call], sim: str, record: str, flag: str) -> None:
    given = {"policy": "a policy.onnx", "robot": "007", "sim": sim, "record": record, "log_level": "warn"}
    given |= {"use_sim_time": flag, "view": flag}
    assert_alike(actions, given, bringup.BRINGUP)


@pytest.mark.parametrize(("shadow", "device", "record"), list(product(["", "b.onnx"], ["none", "gamepad"], ["", "episodes"])))
def test_teleop_by_launch_and_by_command_starts_the_same_processes(
    shadow: str, device: str, record: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "mode": "command",
        "policy": "a.onnx",
        "shadow": shadow,
        "report": "r.json",
        "device": device,
        "joy_map": "",
        "robot": "007",
        "sim": "true",
        "record": record,
        "use_sim_time": "false",
        "view": "false",
        "log_level": "warn",
    }
    assert_alike(recorded(LAUNCH / "teleop.launch.py", monkeypatch), given, bringup.TELEOP)
    started = [process.name for process in bringup.processes(given, table=bringup.TELEOP)]
    expected = {"policy_node": True, "shadow_node": bool(shadow), "twin": True, "recorder": bool(record), "teleop": device != "none"}
    assert started == [name for name, is_started in expected.items() if is_started]


def assert_alike(actions: list[Call], given: dict[str, str], table: bringup.Table) -> None:
    by_launch = []
    for node in (action for action in actions if action.name == "Node"):
        if node.kwargs["condition"] is None or evaluate(node.kwargs["condition"], given):
            (parameters,) = node.kwargs["parameters"]
            assert evaluate(node.kwargs["ros_arguments"][1], given) == "warn"
            values = {name: evaluate(value, given) for name, value in parameters.items()}
            by_launch.append((node.kwargs["name"], [node.kwargs["executable"], *node.kwargs["arguments"]], values))
    by_command = []
    for process in bringup.processes(given, table=table):
        words = list(process.argv)
        by_command.append((process.name, words[: words.index("--ros-args")], dict(ros_parameters(words))))
    assert by_launch == by_command


def ros_parameters(words: list[str]) -> Iterator[tuple[str, object]]:
    """The parameters on a command line, read as ROS reads them."""
    for flag, value in pairwise(words):
        if flag == "--param":
            name, _, text = value.partition(":=")
            yield name, yaml.safe_load(text)


def test_a_simulation_stays_on_this_machine_unless_the_user_says_otherwise(actions: list[Call]) -> None:
    variables = {action.args[0]: action for action in actions if action.name == "SetEnvironmentVariable"}
    assert set(variables) == {"ROS_AUTOMATIC_DISCOVERY_RANGE", "PYTHONSAFEPATH"}
    variable = variables["ROS_AUTOMATIC_DISCOVERY_RANGE"]
    name, value = variable.args
    assert (name, value.name, value.args, value.kwargs) == (
        "ROS_AUTOMATIC_DISCOVERY_RANGE",
        "EnvironmentVariable",
        ("ROS_AUTOMATIC_DISCOVERY_RANGE",),
        {"default_value": "LOCALHOST"},
    )
    assert evaluate(variable.kwargs["condition"], {"sim": "true"})
    assert not evaluate(variable.kwargs["condition"], {"sim": "false"})


def test_ros2_launch_shows_the_arguments() -> None:
    pytest.importorskip("launch_ros", reason=NO_LAUNCH_ROS)
    assert ROS2 is not None
    shown = subprocess.run([ROS2, "launch", LAUNCH_FILE, "--show-args"], capture_output=True, text=True, timeout=60, check=False)
    assert shown.returncode == 0, shown.stderr
    for argument in bringup.ARGUMENTS:
        assert f"'{argument.name}':" in shown.stdout
        assert argument.description in shown.stdout


@pytest.mark.ros
def test_ros2_launch_brings_the_policy_node_up_and_down(tmp_path: Path) -> None:
    pytest.importorskip("launch_ros", reason=NO_LAUNCH_ROS)
    assert ROS2 is not None
    policy = tiny_policy.write(tmp_path / "tiny.onnx")
    log = tmp_path / "log"
    with log.open("w", encoding="utf-8") as output:
        words = [ROS2, "launch", str(LAUNCH_FILE), f"policy:={policy}", "sim:=false"]
        launch = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 60
            while "READY" not in log.read_text(encoding="utf-8") and time.monotonic() < deadline:
                assert launch.poll() is None, log.read_text(encoding="utf-8")
                time.sleep(0.1)
            launch.send_signal(signal.SIGINT)
            launch.wait(timeout=30)
        finally:
            launch.kill()
    text = log.read_text(encoding="utf-8")
    assert "READY" in text, text
    assert "[policy_node-1]: process has finished cleanly" in text, text
