# SPDX-License-Identifier: Apache-2.0
"""What a policy node is for, and who acts in it: a policy, an operator, or the one with the other beside it."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from otpr_policy.contract import RobotContract
from otpr_policy.errors import ContractError
from otpr_policy.health import Percentiles
from otpr_policy.loading import PolicySlot
from otpr_policy.operator_stream import OperatorStream
from otpr_policy.source import ActionSource, PolicySource
from otpr_policy.takeover import Arbiter, OperatorSource, require_teleop, teleop_source


class Mode(Enum):
    """What a policy node is for."""

    COMMAND = "command"  # a policy commands the robot; an operator may take over
    SHADOW = "shadow"  # a policy proposes, and somebody else commands
    TELEOP = "teleop"  # an operator commands the robot; there is no policy


@dataclass(frozen=True, eq=False)
class Role:
    """One mode, ready to run.

    Args:
        mode: what the node is for.
        source: who acts.
        robot: name of the contract.
        slot: the policy that runs, if there is one.
        stream: where an operator's messages go, if an operator may act.
        arbiter: who changes between policy and operator, if there are both.
    """

    mode: Mode
    source: ActionSource
    robot: str
    slot: PolicySlot | None = None
    stream: OperatorStream | None = None
    arbiter: Arbiter | None = None

    @property
    def period_s(self) -> float:
        """Of the control loop."""
        return 1.0 / self.source.control_rate_hz

    @property
    def identity(self) -> dict[str, str]:
        """Of the artifact that runs, for recordings and diagnostics."""
        return {"sha256": "", "task": "", "algorithm": "teleop"} if self.slot is None else self.slot.running.identity()

    def describe(self) -> str:
        """One line for a log."""
        if self.slot is None:
            return f"teleoperation on {self.robot} at {self.source.control_rate_hz:g} Hz"
        return self.slot.running.describe(self.robot) + (", proposing only" if self.mode is Mode.SHADOW else "")

    def inference(self) -> Percentiles | None:
        """How long inference takes [ms]; None where nothing was inferred."""
        return None if self.slot is None else Percentiles.of(list(self.slot.running.worker.durations_s))

    def facts(self) -> dict[str, str]:
        """What diagnostics tell of it."""
        facts = {"mode": self.mode.value, **self.identity}
        if self.slot is not None:
            facts["providers"] = ", ".join(self.slot.running.providers)
        if self.arbiter is not None:
            facts["commander"] = self.arbiter.commander.value
        return facts


def make_role(mode: Mode, policy: str, contract: RobotContract, open_slot: Callable[[Path], PolicySlot]) -> Role:
    """Loads and verifies the artifact, if the mode has one.

    Args:
        mode: what the node is for.
        policy: path of the artifact; empty in mode teleop.
        contract: of the robot.
        open_slot: makes the artifact ready to run on this robot.

    Raises:
        ContractError: the mode lacks the policy or has one too many, or the contract does not serve.
        ArtifactError: the file must not be run.
    """
    if bool(policy) is (mode is Mode.TELEOP):
        problem = "is for teleoperation without a policy" if policy else "needs the parameter 'policy'"
        raise ContractError(f"mode {mode.value!r} {problem}")
    if mode is Mode.TELEOP:
        stream = OperatorStream(require_teleop(contract).max_age_s)
        return Role(mode, teleop_source(contract, stream), contract.robot, stream=stream)
    slot = open_slot(Path(policy))
    acting = PolicySource(slot.running.worker)
    if mode is Mode.SHADOW or contract.teleop is None:
        return Role(mode, acting, contract.robot, slot)
    stream = OperatorStream(contract.teleop.max_age_s)
    fields = {"observation": acting.observation, "action": acting.action}
    arbiter = Arbiter(acting, OperatorSource(stream, contract, **fields, rate_hz=acting.control_rate_hz))
    return Role(mode, arbiter, contract.robot, slot, stream, arbiter)
