# SPDX-License-Identifier: Apache-2.0
"""The robot contract: which topic carries which field, and what the robot may be told. A robot is a file, not code.

docs/deploy.md explains every key by example. Parsing refuses unknown keys and lists the ones that exist: a misspelt
limit must not be a limit that silently does not hold.
"""

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml

from otpr_policy.errors import ContractError, unknown
from otpr_policy.safety import Limits
from otpr_policy.share import share_directory
from otpr_policy.spec import PolicySpec, Semantics, VectorSpec

_T = TypeVar("_T")


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


_HAND_FIELDS = ("ee_position", "ee_rotation")  # what a delta action is relative to

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
    """The topic that takes the hand's target pose (geometry_msgs/msg/PoseStamped), and the action fields behind it."""

    topic: str
    frame: str
    position: str
    rotation: str


@dataclass(frozen=True)
class GripperCommand:
    """The topic that takes the finger target (std_msgs/msg/Float64MultiArray [m]), and the action field behind it."""

    topic: str
    joints: tuple[str, ...]
    position: str


@dataclass(frozen=True)
class Twin:
    """The simulated robot that stands in for this one: which task it plays."""

    task: str


@dataclass(frozen=True)
class RobotContract:
    """One robot, as the policy node sees it."""

    robot: str
    observations: Mapping[str, ObservationSource]
    pose_command: PoseCommand
    gripper_command: GripperCommand
    stop_after_s: float
    limits: Limits
    twin: Twin | None = None

    def max_ages_s(self) -> dict[str, float]:
        """Age limit of every field."""
        return {name: source.max_age_s for name, source in self.observations.items()}

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
        for required in _HAND_FIELDS:
            if required not in policy.observation.names:
                raise ContractError(f"contract {self.robot}: Cartesian commands need the observation field {required!r}")
        self._check_actions(policy.action)

    def _check_actions(self, action: VectorSpec) -> None:
        served = {
            self.pose_command.position: (3, "m", Semantics.DELTA),
            self.pose_command.rotation: (3, "rad", Semantics.DELTA),
            self.gripper_command.position: (1, "m", Semantics.ABSOLUTE),
        }
        if set(served) != set(action.names):
            raise ContractError(
                f"contract {self.robot}: commands carry {', '.join(sorted(served))}; the artifact writes {', '.join(action.names)}"
            )
        for field in action.fields:
            if (field.size, field.unit, field.semantics) != served[field.name]:
                size, unit, semantics = served[field.name]
                raise ContractError(
                    f"contract {self.robot}: {field.name} must be {size} {semantics.value} numbers in {unit!r}; "
                    f"the artifact writes {field.size} {field.semantics.value} in {field.unit!r}"
                )


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
    path = Path(robot)
    if path.suffix not in (".yaml", ".yml"):
        path = share_directory() / "config" / "robots" / f"{robot}.yaml"
        if not path.is_file():
            raise ContractError(f"{unknown('robot', robot, robot_names())}; or give the path of a contract .yaml")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ContractError(f"cannot read contract {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: bytes that are no text, dates that are none
        raise ContractError(f"contract {path} is not YAML: {error}") from error
    try:
        return parse_contract(data)
    except ContractError as error:
        raise ContractError(f"{path.name}: {error}") from error


def parse_contract(data: Any) -> RobotContract:
    """Builds a contract from plain data; see :func:`load_contract` for what it refuses."""
    contract = _build(RobotContract, data, "contract")
    if not contract.observations:
        raise ContractError("observations: at least one field is needed")
    for name, source in contract.observations.items():
        _check_source(f"observations.{name}", source)
    _check_positive("stop_after_s", contract.stop_after_s)
    if len(contract.gripper_command.joints) != 1:
        raise ContractError(f"gripper_command.joints must name one joint, got {len(contract.gripper_command.joints)}")
    for name in _HAND_FIELDS:
        hand = contract.observations.get(name)
        if hand is not None and hand.frame != contract.pose_command.frame:
            raise ContractError(
                f"pose_command.frame is {contract.pose_command.frame!r}, but targets are made from {name} in {hand.frame!r}"
            )
    return contract


def _check_source(where: str, source: ObservationSource) -> None:
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


def _check_positive(where: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ContractError(f"{where} is {value}, must be a finite number above 0")


def _build(kind: type[_T], data: Any, where: str) -> _T:
    """Builds a dataclass from a mapping, refusing unknown and missing keys and converting each value to its field's type."""
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(data, dict):
        raise ContractError(f"{where} must be a mapping with the keys {', '.join(known)}")
    for key in data:
        if key not in known:
            raise ContractError(f"{where}: {unknown('key', str(key), known)}")
    values = {}
    for name, field in known.items():
        if name in data:
            values[name] = _convert(field.type, data[name], f"{where}.{name}")
        elif field.default is MISSING:
            raise ContractError(f"{where}: key {name!r} is missing; required: {_required(kind)}")
    return kind(**values)


def _required(kind: type[Any]) -> str:
    return ", ".join(field.name for field in fields(kind) if field.default is MISSING)


def _convert(expected: Any, value: Any, where: str) -> Any:
    if isinstance(expected, types.UnionType):  # the optional twin
        (expected,) = (option for option in get_args(expected) if option is not type(None))
    origin = get_origin(expected)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise ContractError(f"{where} must be a mapping")
        return {str(key): _convert(get_args(expected)[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is tuple:
        return _convert_tuple(get_args(expected), value, where)
    if issubclass(expected, Enum):
        return _convert_enum(expected, value, where)
    if expected in _SCALARS:
        return _SCALARS[expected](value, where)
    return _build(expected, value, where)


def _convert_tuple(items: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list) or (items[-1] is not Ellipsis and len(value) != len(items)):
        count = "" if items[-1] is Ellipsis else f" of {len(items)}"
        raise ContractError(f"{where} must be a list{count}, got {value!r}")
    return tuple(_convert(items[0], item, f"{where}[{index}]") for index, item in enumerate(value))


def _convert_enum(expected: type[Enum], value: Any, where: str) -> Enum:
    try:
        return expected(value)
    except ValueError as error:
        raise ContractError(f"{where}: {unknown('value', str(value), [member.value for member in expected])}") from error


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ContractError(f"{where} must be text, got {value!r}")
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ContractError(f"{where} must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError as error:
        raise ContractError(f"{where} is too large for a number") from error


_SCALARS: dict[Any, Callable[[Any, str], Any]] = {str: _text, float: _number}
