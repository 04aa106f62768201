# SPDX-License-Identifier: Apache-2.0
"""What a policy node is for, and who acts in it: a policy, an operator, or the one with the other beside it."""

from collections.abc import Callable
from enum import Enum

from otpr_policy.contract import RobotContract
from otpr_policy.errors import ContractError, unknown
from otpr_policy.health import Percentiles
from otpr_policy.loading import PolicySlot
from otpr_policy.operator_stream import OperatorStream
from otpr_policy.source import ActionSource, PolicySource
from otpr_policy.takeover import Arbiter, OperatorSource, require_teleop, teleop_source
from otpr_policy.timeline import TimelineCounters


class Mode(Enum):
    """What a policy node is for."""

    COMMAND = "command"  # a policy commands the robot; an operator may take over
    SHADOW = "shadow"  # a policy proposes, and somebody else commands
    TELEOP = "teleop"  # an operator commands the robot; there is no policy


def parse_mode(text: str, policy: str) -> Mode:
    """The mode of that name, for a node that was given this policy file or none. Raises ContractError when they do not fit."""
    try:
        mode = Mode(text)
    except ValueError as error:
        raise ContractError(unknown("mode", text, [member.value for member in Mode])) from error
    if bool(policy) is (mode is Mode.TELEOP):
        problem = "is for teleoperation without a policy" if policy else "needs the parameter 'policy'"
        raise ContractError(f"mode {mode.value!r} {problem}")
    return mode


class Actors:
    """Who acts in one mode.

    Attributes:
        mode: what the node is for.
        slot: the policy that runs, if there is one.
        stream: where an operator's messages go, if an operator may act.
        arbiter: who changes between policy and operator, if there are both.
        source: what the control loop asks.
    """

    def __init__(self, mode: Mode, contract: RobotContract, open_slot: Callable[[], PolicySlot]) -> None:
        """Makes them; ``open_slot`` loads and verifies the policy.

        Raises:
            ContractError: the contract does not serve.
            ArtifactError: the policy file must not be run.
        """
        self.mode = mode
        self.slot: PolicySlot | None = None
        self.stream: OperatorStream | None = None
        self.arbiter: Arbiter | None = None
        if mode is Mode.TELEOP:
            self.stream = OperatorStream(require_teleop(contract).max_age_s)
            self.source: ActionSource = teleop_source(contract, self.stream)
            return
        self.slot = open_slot()
        policy = PolicySource(self.slot.running.worker)
        self.source = policy
        if mode is Mode.COMMAND and contract.teleop is not None:
            self.stream = OperatorStream(contract.teleop.max_age_s)
            rate_hz, fields = policy.control_rate_hz, {"observation": policy.observation, "action": policy.action}
            self.arbiter = Arbiter(policy, OperatorSource(self.stream, contract, **fields, rate_hz=rate_hz))
            self.source = self.arbiter

    @property
    def period_s(self) -> float:
        """Seconds between two actions."""
        return 1.0 / self.source.control_rate_hz

    def identity(self) -> dict[str, str]:
        """What is told to everybody who asks which policy runs."""
        return {"sha256": "", "task": "", "algorithm": "teleop"} if self.slot is None else self.slot.running.identity()

    def describe(self, robot: str) -> str:
        """One line for a log."""
        if self.slot is None:
            return f"teleoperation of {robot} at {self.source.control_rate_hz:g} Hz"
        return self.slot.running.describe(robot) + (", proposing only" if self.mode is Mode.SHADOW else "")

    def facts(self) -> dict[str, str]:
        """What diagnostics tell of them."""
        facts = {"mode": self.mode.value, **self.identity()}
        if self.slot is not None:
            facts["providers"] = ", ".join(self.slot.running.providers)
        if self.arbiter is not None:
            facts["commander"] = self.arbiter.commander.value
        return facts

    def inference(self) -> Percentiles | None:
        """How long inference takes [ms]; None where nothing was inferred."""
        return None if self.slot is None else Percentiles.of(list(self.slot.running.worker.durations_s))

    def chunks(self) -> TimelineCounters:
        """What became of the policy's chunks."""
        return TimelineCounters() if self.source.executor is None else self.source.executor.counters
