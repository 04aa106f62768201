# SPDX-License-Identifier: Apache-2.0
"""A policy file made ready to run on a robot, and what one must be to take another's place while the robot moves."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from otpr_policy.artifact import PolicyArtifact, load
from otpr_policy.contract import RobotContract
from otpr_policy.errors import ArtifactError, ContractError
from otpr_policy.inference import OnnxPolicy
from otpr_policy.inference_worker import InferenceWorker, Waiting
from otpr_policy.safety import Band, Limits, check_observation, filter_action
from otpr_policy.spec import Array, PolicySpec, VectorSpec
from otpr_policy.timeline import ChunkRequest

_PROBE_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy file that serves the robot, warmed up, with the threads that run it."""

    artifact: PolicyArtifact
    worker: InferenceWorker
    providers: tuple[str, ...]

    @property
    def spec(self) -> PolicySpec:
        """What the policy reads and writes."""
        return self.artifact.manifest.policy

    def identity(self) -> dict[str, str]:
        """What is told to everybody who asks which policy runs."""
        provenance = self.artifact.manifest.provenance
        return {"sha256": self.artifact.sha256, "task": provenance.task, "algorithm": provenance.algorithm}


def open_policy(
    path: Path,
    contract: RobotContract,
    waiting: Callable[[float], Waiting],
    open_session: Callable[[PolicyArtifact], OnnxPolicy] = OnnxPolicy.from_artifact,
    on_thread_start: Callable[[], None] = lambda: None,
) -> LoadedPolicy:
    """Loads, verifies and warms up.

    Args:
        path: policy file.
        contract: of the robot.
        waiting: how the control thread waits, given its period [s].
        open_session: makes a session of a checked file, once per lane.
        on_thread_start: called in each inference thread first.

    Raises:
        ArtifactError: no such file, or it is damaged, or cannot be run.
        ContractError: the robot lacks what it reads or writes.
    """
    artifact = load(path)
    contract.check_serves(artifact.manifest.policy)
    policies: list[OnnxPolicy] = []

    def make_policy() -> OnnxPolicy:
        policies.append(open_session(artifact))
        return policies[-1]

    worker = InferenceWorker.open(make_policy, waiting(artifact.manifest.policy.period_s), on_thread_start=on_thread_start)
    return LoadedPolicy(artifact, worker, policies[0].providers)


def check_replaces(old: PolicySpec, new: PolicySpec) -> None:
    """Raises ContractError when a policy cannot take over from another without stopping the node: other fields, or another rate.

    Lengths of chunks and histories may differ, and so may the ranges, which are checked against what is measured.
    """
    for side, ours, theirs in (("observation", old.observation, new.observation), ("action", old.action, new.action)):
        if _signature(ours) != _signature(theirs):
            raise ContractError(f"its {side} is {_signature(theirs)}, the running policy has {_signature(ours)}; configure the node anew")
    if old.control_rate_hz != new.control_rate_hz:
        raise ContractError(
            f"it runs at {new.control_rate_hz:g} Hz, the running policy at {old.control_rate_hz:g} Hz; configure the node anew"
        )


def _signature(vector: VectorSpec) -> str:
    return ", ".join(f"{field.name} ({field.size} x {field.unit}, {field.semantics.value})" for field in vector.fields)


def probe(policy: LoadedPolicy, observation: Array, limits: Limits) -> None:
    """Lets a policy answer one observation (Do,) without carrying the answer out.

    Raises:
        ArtifactError: it is asked for something far from its training, does not answer, or with what would be rejected.
    """
    spec, worker = policy.spec, policy.worker
    problem = check_observation(spec.observation, observation, limits)
    if problem is not None:
        raise ArtifactError(f"for it, {problem}")
    noise = np.random.default_rng(0).standard_normal(worker.noise_shape)
    history = np.tile(observation, (spec.observation_horizon, 1))
    worker.submit(ChunkRequest(0, 0, 0, 0, 0, history, noise, None, None, True))
    result = worker.wait(_PROBE_TIMEOUT_S)
    if result is None:
        raise ArtifactError(f"it gave no answer within {_PROBE_TIMEOUT_S:g} s")
    if result.chunk is None:
        raise ArtifactError(f"it failed on the present observation: {result.error!r}")
    for vector in result.chunk:
        filtered = filter_action(spec.action, vector, limits)
        if filtered.band is Band.REJECT:
            raise ArtifactError(f"its answer to the present observation would be rejected: {filtered.reason}")
