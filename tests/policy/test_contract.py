# SPDX-License-Identifier: Apache-2.0
"""Laws of the robot contract: a misspelt, missing, mistyped or meaningless entry is refused, and says where and what is valid."""

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_policy
import yaml

from otpr_policy.contract import MessageType, Part, Reliability, RobotContract, load_contract, parse_contract, robot_names, source_size
from otpr_policy.dead_man import AfterRelease
from otpr_policy.errors import ContractError
from otpr_policy.spec import Field, PolicySpec, Semantics, VectorSpec

SHIPPED = Path(__file__).parents[2] / "ros2_ws" / "src" / "otpr" / "config" / "robots" / "panda_twin.yaml"
DATA = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))


def _with(path: str, value: Any) -> dict[str, Any]:
    """The shipped contract with one entry replaced; the path joins keys with dots."""
    data = copy.deepcopy(DATA)
    *way, last = path.split(".")
    place = data
    for key in way:
        place = place[key]
    place[last] = value
    return dict(data)


def _without(path: str) -> dict[str, Any]:
    data = _with(path, None)
    *way, last = path.split(".")
    place = data
    for key in way:
        place = place[key]
    del place[last]
    return data


def _keys(data: Any, path: str = "") -> list[str]:
    if not isinstance(data, dict):
        return []
    return [entry for key, value in data.items() for entry in (path + key, *_keys(value, f"{path}{key}."))]


def _load_text(folder: Path, text: str) -> RobotContract:
    (folder / "robot.yaml").write_text(text, encoding="utf-8")
    return load_contract(str(folder / "robot.yaml"))


def test_the_shipped_contract_says_what_the_file_says() -> None:
    contract = load_contract(str(SHIPPED))
    hand, fingers = contract.observations["ee_rotation"], contract.observations["gripper_position"]
    assert contract.robot == "panda_twin"
    assert tuple(contract.observations) == ("ee_position", "ee_rotation", "gripper_position", "cube_position")
    assert (hand.topic, hand.type, hand.part, hand.frame) == ("/ee_pose", MessageType.POSE_STAMPED, Part.ROTATION_COLUMNS, "panda_link0")
    assert fingers.joints == ("panda_finger_joint1", "panda_finger_joint2")
    assert fingers.reliability is Reliability.BEST_EFFORT  # the default
    assert contract.max_ages_s() == dict.fromkeys(contract.observations, 0.05)
    assert contract.limits.workspace_low == (0.25, -0.45, -0.12)
    assert contract.limits.max_rotation_rad == 0.9
    assert contract.stop_after_s == 0.5
    assert contract.twin is not None
    assert contract.twin.task == "lift"
    assert parse_contract(_without("twin")).twin is None


def test_the_shipped_contract_serves_the_lift_policy() -> None:
    load_contract(str(SHIPPED)).check_serves(tiny_policy.SPEC)


def test_a_source_yields_as_many_numbers_as_its_field_has() -> None:
    sizes = {name: source_size(source) for name, source in parse_contract(DATA).observations.items()}
    assert sizes == {field.name: field.size for field in tiny_policy.OBSERVATION.fields}


# What does not parse


@pytest.mark.parametrize(
    ("section", "known"),
    [
        ("", "dead_man, gripper_command, limits, observations, pose_command, robot, stop_after_s, teleop, twin"),
        ("observations.ee_position.", "frame, joints, max_age_s, part, reliability, topic, type, unit"),
        ("pose_command.", "frame, topic"),
        ("gripper_command.", "joint, topic"),
        ("limits.", "action_margin, gripper_high_m, gripper_low_m, max_acceleration_m_s2, max_angular_acceleration_rad_s2"),
        ("twin.", "task"),
    ],
)
def test_an_unknown_key_is_refused_at_every_level_and_the_known_ones_are_listed(section: str, known: str) -> None:
    with pytest.raises(ContractError) as caught:
        parse_contract(_with(f"{section}max_distanse_m", 0.1))
    assert f"unknown key 'max_distanse_m'; known: {known}" in str(caught.value)
    assert (section.rstrip(".") or "contract") in str(caught.value)


OPTIONAL = {"twin", "teleop"}


@pytest.mark.parametrize("path", [path for path in _keys(DATA) if path not in OPTIONAL and not path.startswith("observations.")])
def test_every_key_outside_the_observations_is_required(path: str) -> None:
    with pytest.raises(ContractError, match=f"key '{path.split('.')[-1]}' is missing; required: "):
        parse_contract(_without(path))


@pytest.mark.parametrize("key", ["topic", "type", "part", "unit", "max_age_s"])
def test_every_source_must_say_where_what_and_how_old(key: str) -> None:
    with pytest.raises(ContractError, match=rf"observations\.gripper_position: key '{key}' is missing"):
        parse_contract(_without(f"observations.gripper_position.{key}"))


@pytest.mark.parametrize("path", [path for path in _keys(DATA) if path.startswith(("limits.", "stop_")) or path.endswith("max_age_s")])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, True, "0.1", None, {}, 10**400], ids=lambda value: str(value)[:9])
def test_a_number_must_be_a_finite_number_and_in_its_range(path: str, value: Any) -> None:
    if path.startswith("limits.workspace_") and not path.endswith("margin_m"):
        value = [0.3, value, 0.3]
        if value[1] == -1.0 and path.endswith("_low"):
            value[1] = 1.0  # a lower end of -1 is in order, 1 lies above the upper end
    elif path == "limits.gripper_low_m" and value == -1.0:
        value = 1.0
    with pytest.raises(ContractError, match=path.split(".")[-1] + "|workspace"):
        parse_contract(_with(path, value))


@pytest.mark.parametrize("value", [[0.1, 0.2], [0.1, 0.2, 0.3, 0.4], [], 0.5, "0.1", None, {"x": 1}])
def test_a_corner_of_the_workspace_is_a_list_of_three(value: Any) -> None:
    with pytest.raises(ContractError, match=r"limits\.workspace_low must be a list of 3"):
        parse_contract(_with("limits.workspace_low", value))


@pytest.mark.parametrize("axis", range(3))
def test_an_inverted_workspace_is_refused(axis: int) -> None:
    high = list(DATA["limits"]["workspace_high"])
    high[axis] = DATA["limits"]["workspace_low"][axis] - 0.1
    with pytest.raises(ContractError, match=f"workspace {'xyz'[axis]}"):
        parse_contract(_with("limits.workspace_high", high))


@pytest.mark.parametrize("path", ["robot", "pose_command.topic", "gripper_command.joint", "observations.ee_position.unit", "twin.task"])
@pytest.mark.parametrize("value", [1, True, None, ["x"], {"x": "y"}])
def test_a_text_must_be_text(path: str, value: Any) -> None:
    with pytest.raises(ContractError, match=rf"{path} must be text"):
        parse_contract(_with(path, value))


@pytest.mark.parametrize("path", ["observations", "observations.ee_position", "pose_command", "gripper_command", "limits", "twin"])
@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_a_section_must_be_a_mapping(path: str, value: Any) -> None:
    with pytest.raises(ContractError, match=f"{path} must be a mapping"):
        parse_contract(_with(path, value))


@pytest.mark.parametrize("data", [None, [], "x", 1, [DATA]])
def test_a_contract_must_be_a_mapping(data: Any) -> None:
    with pytest.raises(ContractError, match="must be a mapping with the keys robot, observations"):
        parse_contract(data)


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("observations.ee_position.type", "geometry_msgs/msg/PoseStamped"),
        ("observations.ee_position.part", "position, rotation_columns, velocity"),
        ("observations.ee_position.reliability", "best_effort, reliable"),
    ],
)
@pytest.mark.parametrize("value", ["other", None, 1, ["position"], {}])
def test_an_unknown_choice_lists_the_known_ones(path: str, known: str, value: Any) -> None:
    with pytest.raises(ContractError, match=known):
        parse_contract(_with(path, value))


def test_a_source_must_be_readable_and_complete() -> None:
    with pytest.raises(ContractError, match="unknown readable message type 'std_msgs/msg/Float64MultiArray'"):
        parse_contract(_with("observations.ee_position.type", "std_msgs/msg/Float64MultiArray"))
    with pytest.raises(ContractError, match=r"unknown part of sensor_msgs/msg/JointState 'rotation_columns'; known: position, velocity"):
        parse_contract(_with("observations.gripper_position.part", "rotation_columns"))
    with pytest.raises(ContractError, match=r"unknown part of geometry_msgs/msg/PoseStamped 'velocity'"):
        parse_contract(_with("observations.cube_position.part", "velocity"))
    with pytest.raises(ContractError, match=r"observations\.cube_position\.frame must name"):
        parse_contract(_without("observations.cube_position.frame"))
    for joints in ([], ["a", "a"]):
        with pytest.raises(ContractError, match=r"observations\.gripper_position\.joints must name each joint once"):
            parse_contract(_with("observations.gripper_position.joints", joints))
    with pytest.raises(ContractError, match="at least one field"):
        parse_contract(_with("observations", {}))
    for joints in (["panda_joint1"], ["a", "a"]):
        with pytest.raises(ContractError, match=r"observations\.cube_position\.joints has no meaning for a pose"):
            parse_contract(_with("observations.cube_position.joints", joints))


@pytest.mark.parametrize("path", [path for path in _keys(DATA) if path.endswith(".topic")])
def test_a_topic_that_is_empty_is_refused(path: str) -> None:
    with pytest.raises(ContractError, match=f"{path}: '' is not a topic name"):
        parse_contract(_with(path, ""))


@pytest.mark.parametrize("key", ["position", "rotation", "joints"])
def test_a_contract_cannot_rename_the_action_fields_that_a_command_carries(key: str) -> None:
    # command.py names them: an earlier form of this file had keys for it, and one that still has them must not seem to work.
    section = "gripper_command" if key == "joints" else "pose_command"
    with pytest.raises(ContractError, match=f"{section}: unknown key '{key}'"):
        parse_contract(_with(f"{section}.{key}", "ee_position_delta"))


@pytest.mark.parametrize("path", ["pose_command.frame", "observations.ee_position.frame", "observations.ee_rotation.frame"])
def test_targets_are_given_in_the_frame_of_the_measurement_that_they_are_made_from(path: str) -> None:
    with pytest.raises(ContractError, match="'camera'"):
        parse_contract(_with(path, "camera"))


# The person's switch and the finger


SWITCH = {"topic": "/joy", "type": "sensor_msgs/msg/Joy", "button": 5, "max_age_s": 0.2}


def test_a_contract_says_which_switch_a_person_holds_or_that_there_is_none() -> None:
    assert parse_contract(DATA).dead_man_switch is None
    switch = parse_contract(_with("dead_man", SWITCH)).dead_man_switch
    assert switch is not None
    assert (switch.topic, switch.button, switch.after_release) == ("/joy", 5, AfterRelease.ENGAGE)


def test_a_contract_that_forgets_the_switch_is_refused_and_told_what_to_write() -> None:
    with pytest.raises(ContractError, match=r"key 'dead_man' is missing; required: a section with topic, type and max_age_s, or the word"):
        parse_contract(_without("dead_man"))
    with pytest.raises(ContractError, match=r"dead_man\.topic: '' is not a topic name"):
        parse_contract(_with("dead_man", SWITCH | {"topic": ""}))
    with pytest.raises(ContractError, match=r"dead_man\.max_age_s is nan"):
        parse_contract(_with("dead_man", SWITCH | {"max_age_s": float("nan")}))


@pytest.mark.parametrize(
    ("path", "topic", "whose"),
    [
        ("pose_command.topic", "/ee_pose", "observations.ee_rotation"),
        ("pose_command.topic", "ee_pose", "observations.ee_rotation"),  # the same in the root namespace
        ("gripper_command.topic", "/joint_states", "observations.gripper_position"),
        ("gripper_command.topic", "/target_pose", "pose_command"),
        ("dead_man", SWITCH | {"topic": "/target_pose"}, "pose_command"),
        ("dead_man", SWITCH | {"topic": "/gripper_controller/commands"}, "gripper_command"),
        ("dead_man", SWITCH | {"topic": "/joint_states"}, "observations.gripper_position"),
    ],
)
def test_a_topic_of_commands_or_of_the_switch_is_nobody_elses(path: str, topic: Any, whose: str) -> None:
    with pytest.raises(ContractError, match=f"{whose}'s topic already"):
        parse_contract(_with(path, topic))


def test_the_finger_is_measured_by_the_field_that_names_the_commanded_joint() -> None:
    assert parse_contract(DATA).measured_finger == ("gripper_position", 0)
    assert parse_contract(_with("gripper_command.joint", "panda_finger_joint2")).measured_finger == ("gripper_position", 1)
    assert parse_contract(_with("gripper_command.joint", "another")).measured_finger is None
    assert parse_contract(_with("observations.gripper_position.part", "velocity")).measured_finger is None


# What is not YAML, or more than YAML


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/object/apply:pathlib.Path.touch", "!!python/name:os.system", "!x"]
)
def test_a_tag_that_would_run_code_is_refused_and_nothing_runs(tag: str, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    text = SHIPPED.read_text(encoding="utf-8").replace("robot: panda_twin", f"robot: {tag} ['touch {sprung}']")
    with pytest.raises(ContractError, match="is not YAML"):
        _load_text(tmp_path, text)
    assert not sprung.exists()


@pytest.mark.parametrize("key", ["robot", "pose_command", "max_distance_m", "max_age_s", "cube_position", "task"])
def test_a_key_that_is_repeated_anywhere_in_the_file_is_refused(key: str, tmp_path: Path) -> None:
    lines = SHIPPED.read_text(encoding="utf-8").splitlines()
    (at, line) = next((at, line) for at, line in enumerate(lines) if line.strip().startswith(f"{key}:"))
    indent = line[: len(line) - len(line.lstrip())]
    text = "\n".join([*lines[:at], f"{indent}{key}: 0.2", *lines[at:]]) + "\n"
    with pytest.raises(ContractError, match=f"key '{key}' is repeated"):
        _load_text(tmp_path, text)


def test_a_contract_that_refers_to_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"robot must be text"):
        _load_text(tmp_path, "&a {robot: *a}")


def test_a_path_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    for name in ("missing.yaml", "missing.yml", "folder.yaml"):
        with pytest.raises(ContractError, match=f"cannot read contract .*{name}"):
            load_contract(str(tmp_path / name))


def test_a_robot_is_found_by_its_name_and_an_unknown_name_lists_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share = tmp_path / "share" / "otpr"
    (share / "config" / "robots").mkdir(parents=True)
    (share / "package.xml").write_text("<package/>", encoding="utf-8")
    for name in ("panda_twin", "arm"):
        shutil.copy(SHIPPED, share / "config" / "robots" / f"{name}.yaml")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    assert robot_names() == ["arm", "panda_twin"]
    assert load_contract("panda_twin") == load_contract(str(SHIPPED))
    for unknown in ("panda", "../panda_twin", ""):
        with pytest.raises(ContractError, match=f"unknown robot '{unknown}'; known: arm, panda_twin; or give the path"):
            load_contract(unknown)


# What parses but does not serve the policy


def _policy(**changed: Field | None) -> PolicySpec:
    """The lift policy with fields of its observation or action replaced, dropped (None) or, at the end, added to the observation."""
    changes = dict(changed)

    def apply(spec: VectorSpec) -> tuple[Field, ...]:
        fields = (changes.pop(field.name, field) if field.name in changes else field for field in spec.fields)
        return tuple(field for field in fields if field is not None)

    action = (
        VectorSpec(apply(tiny_policy.ACTION))
        if set(changes) & (set(tiny_policy.ACTION.names) - {"gripper_position"})
        else tiny_policy.ACTION
    )
    observation = apply(tiny_policy.OBSERVATION)
    return replace(tiny_policy.SPEC, observation=VectorSpec((*observation, *(f for f in changes.values() if f is not None))), action=action)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"camera": Field("camera", "1", (0.0,), (1.0,))}, "unknown observation field 'camera'; known: cube_position, ee_position"),
        (
            {"cube_position": Field("cube_position", "mm", (0.0,) * 3, (1.0,) * 3)},
            "cube_position is in 'm', but the artifact was trained in 'mm'",
        ),
        ({"cube_position": Field("cube_position", "m", (0.0,) * 2, (1.0,) * 2)}, "cube_position has 3 numbers, but the artifact reads 2"),
        ({"ee_rotation": None}, "Cartesian commands are made from the observation field 'ee_rotation'; the policy reads ee_position, "),
        ({"ee_position": None}, "Cartesian commands are made from the observation field 'ee_position'; the policy reads ee_rotation, "),
        (
            {"ee_rotation_delta": None},
            "commands carry ee_position_delta, ee_rotation_delta, gripper_position; the policy writes ee_position_delta, g",
        ),
        (
            {"ee_rotation_delta": Field("ee_rotation_delta", "deg", (-1.0,) * 3, (1.0,) * 3, Semantics.DELTA)},
            "ee_rotation_delta must be 3 delta numbers in 'rad'; the policy writes 3 delta in 'deg'",
        ),
        (
            {"ee_position_delta": Field("ee_position_delta", "m", (-1.0,) * 2, (1.0,) * 2, Semantics.DELTA)},
            "ee_position_delta must be 3 delta numbers in 'm'; the policy writes 2 delta",
        ),
        (
            {"ee_position_delta": Field("ee_position_delta", "m", (-1.0,) * 3, (1.0,) * 3, Semantics.ABSOLUTE)},
            "ee_position_delta must be 3 delta numbers in 'm'; the policy writes 3 absolute",
        ),
    ],
)
def test_a_policy_that_the_robot_cannot_serve_is_refused_and_says_why(changed: dict[str, Field | None], reason: str) -> None:
    with pytest.raises(ContractError) as caught:
        parse_contract(DATA).check_serves(_policy(**changed))
    assert str(caught.value).startswith("contract panda_twin: ")
    assert reason in str(caught.value)


def test_a_robot_that_lacks_a_field_in_unit_or_at_all_is_refused() -> None:
    with pytest.raises(ContractError, match="unknown observation field 'cube_position'"):
        parse_contract(_without("observations.cube_position")).check_serves(tiny_policy.SPEC)
    with pytest.raises(ContractError, match="cube_position is in 'mm'"):
        parse_contract(_with("observations.cube_position.unit", "mm")).check_serves(tiny_policy.SPEC)
    with pytest.raises(ContractError, match="gripper_position has 1 numbers, but the artifact reads 2"):
        parse_contract(_with("observations.gripper_position.joints", ["panda_finger_joint1"])).check_serves(tiny_policy.SPEC)


def test_a_robot_may_offer_more_than_the_policy_reads() -> None:
    more = _with("observations.bin_position", DATA["observations"]["cube_position"])
    parse_contract(more).check_serves(tiny_policy.SPEC)


@pytest.mark.parametrize(("key", "value"), [("gripper_closed", -0.001), ("gripper_open", 0.041)])
def test_an_operator_may_not_be_offered_fingers_beyond_the_robots_limits(key: str, value: float) -> None:
    with pytest.raises(ContractError, match=r"gripper_closed .* gripper_open .* within the limits' \[0.0, 0.04\]|must be below"):
        parse_contract(_with(f"teleop.{key}", value))
