# SPDX-License-Identifier: Apache-2.0
"""The table of a bring-up, as command lines and environment."""

import sys
from itertools import pairwise

import pytest
import yaml

from otpr_policy import bringup
from otpr_policy.errors import OtprError

POLICY = {"policy": "lift.onnx"}


def words_after(flag: str, argv: tuple[str, ...]) -> list[str]:
    return [value for here, value in pairwise(argv) if here == flag]


def parameters(process: bringup.Process) -> dict[str, object]:
    """ROS parameters of a command line; ROS reads their values as YAML."""
    pairs = (text.partition(":=") for text in words_after("--param", process.argv))
    return {name: yaml.safe_load(value) for name, _, value in pairs}


def test_by_default_policy_node_and_twin_are_started_and_nothing_is_recorded() -> None:
    started = bringup.processes(POLICY)
    assert [(process.name, process.argv[:3]) for process in started] == [
        ("policy_node", (sys.executable, "-m", "otpr_policy.ros.node")),
        ("twin", (sys.executable, "-m", "otpr_sim.ros.twin")),
    ]
    assert parameters(started[0]) == {"policy": "lift.onnx", "robot": "panda_twin", "autostart": True, "use_sim_time": False}
    assert words_after("--remap", started[0].argv) == ["__node:=policy_node"]
    assert words_after("--log-level", started[0].argv) == ["info"]


def test_a_real_robot_starts_no_twin_and_a_directory_starts_the_recorder() -> None:
    started = bringup.processes({**POLICY, "sim": "false", "record": "episodes", "robot": "ur5e.yaml"})
    assert [process.name for process in started] == ["policy_node", "recorder"]
    assert parameters(started[1]) == {"robot": "ur5e.yaml", "directory": "episodes", "autostart": True, "use_sim_time": False}


@pytest.mark.parametrize("text", ["007", "true", "1e3", "a: b", "with space", 'quo"te', "back\\slash", "ü", "null", "[1]", ""])
def test_a_text_reaches_the_node_as_that_text_whatever_it_looks_like(text: str) -> None:
    (node,) = bringup.processes({**POLICY, "robot": text, "sim": "false"})
    assert parameters(node)["robot"] == text


def test_overrides_add_and_replace_parameters_of_one_node() -> None:
    overrides = {"policy_node": {"noise_seed": 3, "pacing": "observation", "autostart": False}, "twin": {"seed": 7}}
    node, twin = bringup.processes(POLICY, overrides)
    assert parameters(node) == {
        "policy": "lift.onnx",
        "robot": "panda_twin",
        "autostart": False,
        "use_sim_time": False,
        "noise_seed": 3,
        "pacing": "observation",
    }
    assert parameters(twin) == {"robot": "panda_twin", "view": False, "use_sim_time": False, "seed": 7}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "argument policy must be given"),
        ({**POLICY, "robto": "panda_twin"}, "unknown argument 'robto'; known: log_level, policy, record, robot, sim, use_sim_time, view"),
        ({**POLICY, "sim": "maybe"}, "unknown value of sim 'maybe'; known: false, true"),
        ({**POLICY, "log_level": "loud"}, "unknown value of log_level 'loud'; known: debug, error, fatal, info, warn"),
    ],
)
def test_a_wrong_argument_is_refused_with_what_is_valid(arguments: dict[str, str], says: str) -> None:
    with pytest.raises(OtprError) as raised:
        bringup.processes(arguments)
    assert str(raised.value).startswith(says)


def test_overrides_of_a_node_that_does_not_exist_are_refused() -> None:
    with pytest.raises(OtprError, match="unknown node 'twim'; known: policy_node, recorder, twin"):
        bringup.processes(POLICY, {"twim": {"seed": 1}})


def test_a_simulation_stays_on_this_machine_and_a_robot_and_the_users_choice_stay_what_they_are() -> None:
    reach = "ROS_AUTOMATIC_DISCOVERY_RANGE"
    always = {"PYTHONSAFEPATH": "1"}
    assert bringup.environment(POLICY, {"HOME": "/h"}) == {"HOME": "/h", reach: "LOCALHOST", **always}
    assert bringup.environment(POLICY, {reach: "SUBNET"}) == {reach: "SUBNET", **always}
    assert bringup.environment({**POLICY, "sim": "false"}, {"HOME": "/h"}) == {"HOME": "/h", **always}
