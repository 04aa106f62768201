# SPDX-License-Identifier: Apache-2.0
"""The operator as a source of actions, alone or taking over from a policy.

An operator says how fast the hand shall move. The source keeps a reference pose that moves at that speed, and its action is the
way from the measured hand to the reference: a step of 10 mm is 10 mm, and a hand that nobody moves does not creep.
docs/adr/0013-takeover-inside-the-control-loop.md says why the arbiter is here and not on the command topics.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from otpr_policy.chunk_executor import ChunkExecutor
from otpr_policy.command import READS
from otpr_policy.contract import RobotContract, Teleop, source_size
from otpr_policy.errors import ContractError
from otpr_policy.observation import Missing, Observation
from otpr_policy.operator_stream import OperatorStream, Twist
from otpr_policy.rotation import columns_to_matrix, matrix_to_rotation_vector, rotation_vector_to_matrix
from otpr_policy.source import Action, ActionSource, Commander
from otpr_policy.spec import Array, Field, Semantics, VectorSpec
from otpr_policy.timeline import Gap

_FINGERS = "gripper_position"
HAS_ROBOT_ALREADY = {commander: f"the {commander.value} has the robot already" for commander in Commander}
"""Why a change is refused that changes nothing: who asks may have been started after it was made."""


@dataclass(frozen=True, eq=False)
class _Reference:
    """Where the operator has led the hand: position (3,) [m], rotation (3, 3)."""

    position: Array
    rotation: Array


class OperatorSource:
    """Actions of an operator, made from the stream of a device."""

    def __init__(
        self, stream: OperatorStream, contract: RobotContract, *, observation: VectorSpec, action: VectorSpec, rate_hz: float
    ) -> None:
        """Makes the source.

        Args:
            stream: where the device's messages arrive.
            contract: of the robot: how fast an operator may be, and the workspace that the reference stays in.
            observation: has at least ``ee_position`` and ``ee_rotation``.
            action: the fields of a Cartesian action, with their bounds.
            rate_hz: actions per second.

        Raises:
            ContractError: the contract has no section ``teleop``.
        """
        limits = contract.limits
        self.executor: ChunkExecutor | None = None
        self.observation, self.action, self.control_rate_hz = observation, action, rate_hz
        self.trained_on: VectorSpec | None = None
        self._stream = stream
        self._teleop = require_teleop(contract)
        self._measured_finger = contract.measured_finger
        self._finger_step = limits.max_gripper_velocity_m_s / rate_hz
        self._workspace = np.array(limits.workspace_low), np.array(limits.workspace_high)
        self._bounds = action.split(np.stack([action.low, action.high]))
        self._reference: _Reference | None = None
        self._fingers: float | None = None

    def refusal(self, now_ns: int) -> str | None:
        """None while the device sends, else what is wrong with it."""
        twist = self._stream.newest(now_ns)
        return twist.reason if isinstance(twist, Missing) else None

    def reset(self, rng: np.random.Generator) -> None:
        """See ActionSource."""
        self.begin(None)

    def begin(self, fingers: float | None) -> None:
        """The operator has the robot from here on: the hand stays where it is, the fingers at ``fingers`` [m] or as measured."""
        self._fingers = fingers
        self._stream.forget_gripper()
        self.forget()

    def forget(self) -> None:
        """See ActionSource: the reference starts anew at the measured hand."""
        self._reference = None

    def act(self, observation: Observation, tick: int, now_ns: int) -> Action | Missing:
        """See ActionSource."""
        values = observation.values
        twist = self._stream.newest(now_ns)
        if isinstance(twist, Missing):
            return twist
        position, rotation = values["ee_position"], columns_to_matrix(values["ee_rotation"])
        fingers = self._next_fingers(values)
        if fingers is None:  # opening or closing without being told to would drop or crush something
            return Missing("where the fingers are is not measured: the operator has to open or close the gripper first")
        led = self._led(self._reference or _Reference(position, rotation), twist)
        # Within the bounds of an action from the measured hand: a hand that is held back does not leap when it comes free.
        way = np.clip(led.position - position, *self._bounds["ee_position_delta"])
        turn = np.clip(matrix_to_rotation_vector(led.rotation @ rotation.T), *self._bounds["ee_rotation_delta"])
        self._reference = _Reference(position + way, rotation_vector_to_matrix(turn) @ rotation)
        self._fingers = fingers
        fields = {"ee_position_delta": way, "ee_rotation_delta": turn, _FINGERS: np.array([fingers])}
        return Action(self.action.flatten(fields), Commander.OPERATOR)

    def _led(self, reference: _Reference, twist: Twist) -> _Reference:
        """The reference one control step later."""
        step_s = 1.0 / self.control_rate_hz
        low, high = self._workspace
        moved = reference.position + step_s * _at_most(twist.linear, self._teleop.linear_speed)
        # A reference outside may come back in, and may not go further out.
        position = np.clip(moved, np.minimum(low, reference.position), np.maximum(high, reference.position))
        turn = step_s * _at_most(twist.angular, self._teleop.angular_speed)
        return _Reference(position, rotation_vector_to_matrix(turn) @ reference.rotation)

    def _next_fingers(self, values: Mapping[str, Array]) -> float | None:
        """On their way to where the operator wants them, as fast as they may; as they are while nothing was said."""
        now = self._fingers
        if now is None and self._measured_finger is not None and self._measured_finger[0] in values:
            name, index = self._measured_finger
            now = float(values[name][index])
        wanted = now if self._stream.gripper is None else self._stream.gripper
        if wanted is None:
            return None
        low, high = self._bounds[_FINGERS]
        step = float("inf") if now is None else self._finger_step
        start = wanted if now is None else now
        return float(np.clip(start + np.clip(wanted - start, -step, step), low[0], high[0]))


class Arbiter:
    """A policy, and an operator who may take over. Exactly one of them acts, and nobody but a person changes who.

    While the operator has the robot and the device is gone there is no action, and the robot holds: a policy that comes back
    by itself would move the arm under a person's hands.
    """

    def __init__(self, policy: ActionSource, operator: OperatorSource) -> None:
        """The policy acts at first. Both sources have the same fields and rate."""
        self._policy = policy
        self._operator = operator
        self._fingers: float | None = None
        self.commander = Commander.POLICY
        self.control_rate_hz = policy.control_rate_hz
        self.executor = policy.executor

    @property
    def observation(self) -> VectorSpec:
        """See ActionSource."""
        return self._acting.observation

    @property
    def action(self) -> VectorSpec:
        """See ActionSource."""
        return self._acting.action

    @property
    def trained_on(self) -> VectorSpec | None:
        """See ActionSource."""
        return self._acting.trained_on

    def take_over(self, now_ns: int) -> str | None:
        """Gives the robot to the operator. Returns None, or why not: the device does not send, or the operator has it already."""
        if self.commander is Commander.OPERATOR:
            return HAS_ROBOT_ALREADY[self.commander]
        refusal = self._operator.refusal(now_ns)
        if refusal is None:
            self.commander = Commander.OPERATOR
            self._policy.forget()  # nobody asks it from here on: one that waits for its turn would wait in vain
            self._operator.begin(self._fingers)
        return refusal

    def give_back(self) -> str | None:
        """Gives the robot back to the policy, which infers anew. Returns None, or why not: it has it already."""
        if self.commander is Commander.POLICY:
            return HAS_ROBOT_ALREADY[self.commander]
        self.commander = Commander.POLICY
        self._policy.forget()
        return None

    def refusal(self, now_ns: int) -> str | None:
        """See ActionSource."""
        return self._acting.refusal(now_ns)

    def reset(self, rng: np.random.Generator) -> None:
        """See ActionSource. Who has the robot does not change: an operator may take over before the robot is engaged."""
        self._fingers = None
        self._policy.reset(rng)
        self._operator.reset(rng)

    def forget(self) -> None:
        """See ActionSource."""
        self._policy.forget()
        self._operator.forget()

    def act(self, observation: Observation, tick: int, now_ns: int) -> Action | Missing | Gap:
        """See ActionSource."""
        action = self._acting.act(observation, tick, now_ns)
        if isinstance(action, Action):
            self._fingers = float(action.vector[self.action.slices[_FINGERS].start])
        return action

    @property
    def _acting(self) -> ActionSource:
        return self._policy if self.commander is Commander.POLICY else self._operator


def teleop_source(contract: RobotContract, stream: OperatorStream) -> OperatorSource:
    """The source of an operator who has the robot without any policy.

    Raises:
        ContractError: the contract has no section ``teleop``, or not the fields of the hand.
    """
    teleop = require_teleop(contract)
    return OperatorSource(stream, contract, observation=_hand(contract), action=_action(teleop), rate_hz=teleop.control_rate_hz)


def require_teleop(contract: RobotContract) -> Teleop:
    """The contract's section. Raises ContractError when it has none."""
    if contract.teleop is None:
        raise ContractError(f"contract {contract.robot} has no section 'teleop', which says how fast an operator may move the robot")
    return contract.teleop


def _hand(contract: RobotContract) -> VectorSpec:
    """What an operator's action is made from. The ranges are not checked: a person acts."""
    names = [*READS, *([contract.measured_finger[0]] if contract.measured_finger else [])]
    for name in names:
        if name not in contract.observations:
            raise ContractError(f"contract {contract.robot} has no observation {name!r}, which teleoperation needs")
    fields = []
    for name in names:
        size = source_size(contract.observations[name])
        fields.append(Field(name, contract.observations[name].unit, (-1.0,) * size, (1.0,) * size))
    return VectorSpec(tuple(fields))


def _action(teleop: Teleop) -> VectorSpec:
    position, rotation = teleop.max_position_delta, teleop.max_rotation_delta
    return VectorSpec(
        (
            Field("ee_position_delta", "m", (-position,) * 3, (position,) * 3, Semantics.DELTA),
            Field("ee_rotation_delta", "rad", (-rotation,) * 3, (rotation,) * 3, Semantics.DELTA),
            Field(_FINGERS, "m", (teleop.gripper_closed,), (teleop.gripper_open,), Semantics.ABSOLUTE),
        )
    )


def _at_most(vector: Array, length: float) -> Array:
    """The vector, shortened where it is longer."""
    norm = float(np.linalg.norm(vector))
    return vector if norm <= length else vector * (length / norm)
