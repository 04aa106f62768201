# SPDX-License-Identifier: Apache-2.0
"""What a policy node is for, and who acts in it: a policy, an operator, or the one with the other beside it."""

import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from otpr_policy.artifact import load
from otpr_policy.contract import RobotContract
from otpr_policy.errors import ContractError
from otpr_policy.health import Percentiles, TimedPolicy
from otpr_policy.inference import OnnxPolicy
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
        identity: of the artifact, for recordings and diagnostics.
        description: one line for a log.
        policy: the artifact, if there is one, with the time that each inference took.
        providers: what it really runs on.
        stream: where an operator's messages go, if an operator may act.
        arbiter: who changes between policy and operator, if there are both.
    """

    mode: Mode
    source: ActionSource
    identity: dict[str, str]
    description: str
    policy: TimedPolicy | None = None
    providers: tuple[str, ...] = ()
    stream: OperatorStream | None = None
    arbiter: Arbiter | None = None

    def inference(self) -> Percentiles | None:
        """How long inference takes [ms]; None where nothing was inferred."""
        return None if self.policy is None else Percentiles.of(list(self.policy.durations_s))

    def facts(self) -> dict[str, str]:
        """What diagnostics tell of it."""
        facts = {"mode": self.mode.value, **self.identity}
        if self.providers:
            facts["providers"] = ", ".join(self.providers)
        if self.arbiter is not None:
            facts["commander"] = self.arbiter.commander.value
        return facts


def make_role(mode: Mode, policy: str, contract: RobotContract) -> Role:
    """Loads and verifies the artifact, if the mode has one.

    Args:
        mode: what the node is for.
        policy: path of the artifact; empty in mode teleop.
        contract: of the robot.

    Raises:
        ContractError: the mode lacks the policy or has one too many, or the contract does not serve.
        ArtifactError: the file must not be run.
    """
    if bool(policy) is (mode is Mode.TELEOP):
        problem = "is for teleoperation without a policy" if policy else "needs the parameter 'policy'"
        raise ContractError(f"mode {mode.value!r} {problem}")
    where = f"on {contract.robot} at"
    if mode is Mode.TELEOP:
        stream = OperatorStream(require_teleop(contract).max_age_s)
        source = teleop_source(contract, stream)
        identity = {"sha256": "", "task": "", "algorithm": "teleop"}
        return Role(mode, source, identity, f"teleoperation {where} {source.control_rate_hz:g} Hz", stream=stream)
    return _with_policy(mode, Path(policy), contract, where)


def _with_policy(mode: Mode, path: Path, contract: RobotContract, where: str) -> Role:
    artifact = load(path)
    spec, provenance = artifact.manifest.policy, artifact.manifest.provenance
    contract.check_serves(spec)
    onnx = OnnxPolicy.from_artifact(artifact)
    policy = TimedPolicy(onnx, time.perf_counter)
    acting = PolicySource(policy)
    stream = arbiter = None
    if mode is Mode.COMMAND and contract.teleop is not None:
        stream = OperatorStream(contract.teleop.max_age_s)
        fields = {"observation": spec.observation, "action": spec.action}
        operator = OperatorSource(stream, contract, **fields, rate_hz=spec.control_rate_hz)
        arbiter = Arbiter(acting, operator)
    who = f"{provenance.algorithm} policy for {provenance.task} ({artifact.sha256[:12]})"
    proposing = ", proposing only" if mode is Mode.SHADOW else ""
    return Role(
        mode,
        arbiter or acting,
        {"sha256": artifact.sha256, "task": provenance.task, "algorithm": provenance.algorithm},
        f"{who} {where} {spec.control_rate_hz:g} Hz, {onnx.providers[0]}{proposing}",
        policy,
        tuple(onnx.providers),
        stream,
        arbiter,
    )
