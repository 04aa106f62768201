# SPDX-License-Identifier: Apache-2.0
"""The robot contract: which topic carries which field, and what the robot may be told. A robot is a file, not code.

docs/deploy.md explains every key by example. Parsing refuses unknown keys and lists the ones that exist: a misspelt
limit must not be a limit that silently does not hold.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

from otpr_policy.command import READS, check_commands
from otpr_policy.dead_man import DeadManSwitch, parse_dead_man
from otpr_policy.errors import ContractError, SpecError, unknown
from otpr_policy.limits import Limits
from otpr_policy.share import share_directory
from otpr_policy.spec import PolicySpec
from otpr_policy.strict_yaml import build, read_yaml


class MessageType(Enum):
    """Message types that a contract may name."""

    JOINT_STATE = "sensor_msgs/msg/JointState"
    POSE_STAMPED = "geometry_msgs/msg/PoseStamped"
    FLOAT64_MULTI_ARRAY = "std_msgs/msg/Float64MultiArray"


class Part(Enum):
    """Which part of a message becomes the field."""

    POSITION = "position"  # of a pose (3) or of the listed joints
    VELOCITY = "velocity"  # of the listed joints
    ROTATION_COLUMNS = "rotation_columns"  # a pose's orientation as the first two columns of its matrix (6)


class Reliability(Enum):
    """DDS reliability of a subscription."""

    BEST_EFFORT = "best_effort"  # takes what any publisher offers; the newest sample is all that counts
    RELIABLE = "reliable"


_TOPIC = re.compile(r"(~?/)?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*")

_READABLE = {
    MessageType.JOINT_STATE: (Part.POSITION, Part.VELOCITY),
    MessageType.POSE_STAMPED: (Part.POSITION, Part.ROTATION_COLUMNS),
}


@dataclass(frozen=True)
class ObservationSource:
    """Where one observation field comes from.

    Args:
        topic: name of the topic.
        type: its message type.
        part: what of the message is the field.
        unit: unit of the numbers, which must be the artifact's.
        max_age_s: age above which the field counts as missing.
        joints: joint names in field order, for joint states.
        frame: the frame that a pose must be given in.
        reliability: of the subscription.
    """

    topic: str
    type: MessageType
    part: Part
    unit: str
    max_age_s: float
    joints: tuple[str, ...] = ()
    frame: str = ""
    reliability: Reliability = Reliability.BEST_EFFORT


@dataclass(frozen=True)
class PoseCommand:
    """The topic that takes the hand's target pose (geometry_msgs/msg/PoseStamped), and the frame it is in."""

    topic: str
    frame: str


@dataclass(frozen=True)
class GripperCommand:
    """The topic that takes the finger target (std_msgs/msg/Float64MultiArray [m]), and the joint that it moves."""

    topic: str
    joint: str


@dataclass(frozen=True)
class Twin:
    """The simulated robot that stands in for this one: which task it plays."""

    task: str


@dataclass(frozen=True)
class Teleop:
    """What an operator may do. Optional: without it a robot is not teleoperated, and nobody takes over from its policy.

    Args:
        control_rate_hz: commands per second when no policy says.
        max_age_s: age above which the operator's command counts as missing.
        linear_speed, angular_speed: fastest that the operator moves the hand [m/s], [rad/s].
        max_position_delta, max_rotation_delta: farthest that one command leads the measured hand, per axis [m], [rad].
        gripper_closed, gripper_open: finger positions [m].
    """

    control_rate_hz: float
    max_age_s: float
    linear_speed: float
    angular_speed: float
    max_position_delta: float
    max_rotation_delta: float
    gripper_closed: float
    gripper_open: float


@dataclass(frozen=True)
class RobotContract:
    """One robot, as the policy node sees it. Where ``dead_man`` is ``not_required``, ``dead_man_switch`` is None."""

    robot: str
    observations: Mapping[str, ObservationSource]
    pose_command: PoseCommand
    gripper_command: GripperCommand
    stop_after_s: float
    dead_man: object  # a section or a word; use dead_man_switch
    limits: Limits
    twin: Twin | None = None
    teleop: Teleop | None = None

    @property
    def dead_man_switch(self) -> DeadManSwitch | None:
        """The switch that a person holds down, or None where the contract says that none is required."""
        return parse_dead_man(self.dead_man)

    @property
    def measured_finger(self) -> tuple[str, int] | None:
        """Which number of which field measures the finger joint that is commanded; None when none does."""
        for name, source in self.observations.items():
            if source.part is Part.POSITION and self.gripper_command.joint in source.joints:
                return name, source.joints.index(self.gripper_command.joint)
        return None

    def max_ages_s(self) -> dict[str, float]:
        """Age limit of every field."""
        return {name: source.max_age_s for name, source in self.observations.items()}

    def sources_by_topic(self, fields: Iterable[str]) -> dict[str, dict[str, ObservationSource]]:
        """The sources of some fields, grouped by topic. Raises ContractError where a topic is given two types or reliabilities."""
        topics: dict[str, dict[str, ObservationSource]] = {}
        for name in fields:
            topics.setdefault(self.observations[name].topic, {})[name] = self.observations[name]
        for topic, sources in topics.items():
            if len({(source.type, source.reliability) for source in sources.values()}) != 1:
                raise ContractError(f"topic {topic} is given two types or reliabilities, by {', '.join(sources)}")
        return topics

    def check_serves(self, policy: PolicySpec) -> None:
        """Raises ContractError when the robot lacks a field that the policy reads or writes, or has it in another unit, size or meaning."""
        for field in policy.observation.fields:
            source = self.observations.get(field.name)
            if source is None:
                raise ContractError(
                    f"contract {self.robot}: {unknown('observation field', field.name, self.observations)}; the artifact reads it"
                )
            if source.unit != field.unit:
                raise ContractError(
                    f"contract {self.robot}: {field.name} is in {source.unit!r}, but the artifact was trained in {field.unit!r}"
                )
            size = source_size(source)
            if size != field.size:
                raise ContractError(f"contract {self.robot}: {field.name} has {size} numbers, but the artifact reads {field.size}")
        try:
            check_commands(policy)
        except SpecError as error:
            raise ContractError(f"contract {self.robot}: {error}") from error


def source_size(source: ObservationSource) -> int:
    """How many numbers a source yields."""
    if source.type is MessageType.JOINT_STATE:
        return len(source.joints)
    return 3 if source.part is Part.POSITION else 6


def robot_names() -> list[str]:
    """Names of the contracts that are installed."""
    return sorted(path.stem for path in (share_directory() / "config" / "robots").glob("*.yaml"))


def load_contract(robot: str) -> RobotContract:
    """Reads a contract, given the name of an installed one or the path of a YAML file.

    Raises:
        ContractError: there is none, it is not YAML, or a key is missing, unknown or of the wrong kind.
    """
    path = contract_path(robot)
    try:
        return parse_contract(read_yaml(path))
    except ContractError as error:
        raise ContractError(f"{path.name}: {error}") from error


def contract_path(robot: str) -> Path:
    """The file of an installed contract, or the path itself if it is one of a YAML file. Raises ContractError for an unknown name."""
    path = Path(robot)
    if path.suffix not in (".yaml", ".yml"):
        path = share_directory() / "config" / "robots" / f"{robot}.yaml"
        if not path.is_file():
            raise ContractError(f"{unknown('robot', robot, robot_names())}; or give the path of a contract .yaml")
    return path


def contract_text(robot: str) -> str:
    """The text of a contract that :func:`load_contract` has loaded, to be kept with what is recorded."""
    return contract_path(robot).read_text(encoding="utf-8")


def parse_contract(data: Any) -> RobotContract:
    """Builds a contract from plain data; see :func:`load_contract` for what it refuses."""
    if isinstance(data, dict):
        data = {"dead_man": None, **data}  # left out, it would be taken for not needed; parse_dead_man says what to write
    contract = build(RobotContract, data, "contract")
    if not contract.observations:
        raise ContractError("observations: at least one field is needed")
    for name, source in contract.observations.items():
        _check_source(f"observations.{name}", source)
    _check_positive("stop_after_s", contract.stop_after_s)
    if contract.dead_man_switch is not None:
        _check_topic("dead_man.topic", contract.dead_man_switch.topic)
    _check_topic("pose_command.topic", contract.pose_command.topic)
    _check_topic("gripper_command.topic", contract.gripper_command.topic)
    _check_topics_differ(contract)
    if contract.teleop is not None:
        _check_teleop(contract.teleop, contract.limits)
    for name in READS:
        hand = contract.observations.get(name)
        if hand is not None and hand.frame != contract.pose_command.frame:
            raise ContractError(
                f"pose_command.frame is {contract.pose_command.frame!r}, but targets are made from {name} in {hand.frame!r}"
            )
    return contract


def _check_source(where: str, source: ObservationSource) -> None:
    _check_topic(f"{where}.topic", source.topic)
    _check_positive(f"{where}.max_age_s", source.max_age_s)
    if source.type not in _READABLE:
        raise ContractError(f"{where}.type: {unknown('readable message type', source.type.value, [t.value for t in _READABLE])}")
    if source.part not in _READABLE[source.type]:
        known = [part.value for part in _READABLE[source.type]]
        raise ContractError(f"{where}.part: {unknown(f'part of {source.type.value}', source.part.value, known)}")
    if source.type is MessageType.JOINT_STATE and (not source.joints or len(set(source.joints)) != len(source.joints)):
        raise ContractError(f"{where}.joints must name each joint once, in field order")
    if source.type is MessageType.POSE_STAMPED and not source.frame:
        raise ContractError(f"{where}.frame must name the frame that the pose is given in")
    if source.type is MessageType.POSE_STAMPED and source.joints:
        raise ContractError(f"{where}.joints has no meaning for a pose")


def _check_teleop(teleop: Teleop, limits: Limits) -> None:
    for field in fields(teleop):
        if not field.name.startswith("gripper"):
            _check_positive(f"teleop.{field.name}", getattr(teleop, field.name))
    if not 0 <= teleop.gripper_closed < teleop.gripper_open < float("inf"):
        raise ContractError(f"teleop: gripper_closed {teleop.gripper_closed} must be below gripper_open {teleop.gripper_open}, both [m]")
    if teleop.gripper_closed < limits.gripper_low_m or teleop.gripper_open > limits.gripper_high_m:
        raise ContractError(
            f"teleop: gripper_closed {teleop.gripper_closed} and gripper_open {teleop.gripper_open} must lie within the limits'"
            f" [{limits.gripper_low_m}, {limits.gripper_high_m}]"
        )


def _check_topic(where: str, name: str) -> None:
    if not _TOPIC.fullmatch(name):
        raise ContractError(f"{where}: {name!r} is not a topic name; an example is /ee_pose")


def _check_topics_differ(contract: RobotContract) -> None:
    """A command that came back as a measurement would be followed; a switch that the node itself publishes would be held for ever."""
    taken = {source.topic.lstrip("/"): f"observations.{name}" for name, source in contract.observations.items()}
    others = {"pose_command": contract.pose_command.topic, "gripper_command": contract.gripper_command.topic}
    if contract.dead_man_switch is not None:
        others["dead_man"] = contract.dead_man_switch.topic
    for where, topic in others.items():
        other = taken.setdefault(topic.lstrip("/"), where)
        if other != where:
            raise ContractError(f"{where}.topic is {topic}, which is {other}'s topic already")


def _check_positive(where: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ContractError(f"{where} is {value}, must be a finite number above 0")
