# SPDX-License-Identifier: Apache-2.0
"""A policy file made ready to run on a robot, and what one must be to take another's place while the robot moves."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from otpr_policy.artifact import PolicyArtifact, load
from otpr_policy.contract import RobotContract
from otpr_policy.control import ControlLoop
from otpr_policy.errors import ArtifactError, ContractError
from otpr_policy.inference import OnnxPolicy
from otpr_policy.inference_worker import InferenceWorker, Waiting
from otpr_policy.limits import Limits
from otpr_policy.observation import Missing, ObservationBuffer
from otpr_policy.safety import Band, check_observation, filter_action
from otpr_policy.spec import Array, PolicySpec, VectorSpec
from otpr_policy.timeline import ChunkRequest

_PROBE_TIMEOUT_S = 5.0
_SWAP_TIMEOUT_S = 10.0  # for the chunk that runs to come to its end


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy file that serves the robot, warmed up, with the threads that run it."""

    path: Path
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

    def describe(self, robot: str) -> str:
        """One line for a log."""
        manifest, delay = self.artifact.manifest, self.worker.delay_ticks
        late = f", chunks {delay} tick(s) late, {len(self.worker.policies)} lanes" if delay else ""
        return (
            f"{manifest.provenance.algorithm} policy for {manifest.provenance.task} ({self.artifact.sha256[:12]}) on {robot} at "
            f"{manifest.policy.control_rate_hz:g} Hz, {self.providers[0]}{late}"
        )


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
    worker.label = artifact.sha256
    return LoadedPolicy(path, artifact, worker, policies[0].providers)


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


class PolicySlot:
    """The policy that runs on a robot, and those on their way into its place. The threads of all of them are its own."""

    def __init__(
        self,
        path: Path,
        contract: RobotContract,
        waiting: Callable[[float], Waiting],
        open_session: Callable[[PolicyArtifact], OnnxPolicy] = OnnxPolicy.from_artifact,
        on_thread_start: Callable[[], None] = lambda: None,
    ) -> None:
        """Opens the first policy; see :func:`open_policy`."""
        self._contract = contract
        self._waiting = waiting
        self._open_session = open_session
        self._on_thread_start = on_thread_start
        self._workers: list[InferenceWorker] = []
        self.running = self._open(path)

    def swap(
        self,
        path: Path,
        control: ControlLoop,
        buffer: ObservationBuffer,
        lock: threading.Lock,
        now_ns: Callable[[], int],
        announce: Callable[[LoadedPolicy], None] = lambda policy: None,
    ) -> None:
        """Makes another file take over from the next chunk on. It is verified, warmed up and tried apart; ticks go on meanwhile.

        The calling thread keeps its priority. It should be an ordinary one: loading takes a core for seconds, which on a small computer
        is a driver's. Only the threads that will infer call ``on_thread_start``.

        Args:
            path: policy file.
            control: the loop that runs the old one.
            buffer: the observation that the new one is tried on, if there is one at present.
            lock: guards the loop.
            now_ns: the data's clock.
            announce: told of the new policy before it is asked for a chunk; it may be refused after that.

        Raises:
            OtprError: with the reason why the old policy was kept.
        """
        old, new = self.running, self._open(path)
        try:
            check_replaces(old.spec, new.spec)
            observation = buffer.observe(now_ns())
            if not isinstance(observation, Missing):
                probe(new, new.spec.observation.flatten(observation.values), self._contract.limits)
            announce(new)
            _change(control, new, lock, now_ns)
        except Exception:
            self._close(new.worker)
            raise
        self.running = new
        self._close(old.worker)

    def interrupt(self) -> None:
        """Keeps the control thread from waiting for any inference."""
        for worker in list(self._workers):  # a policy that is on its way in changes them
            worker.interrupt()

    def resume(self) -> None:
        """Undoes :meth:`interrupt`."""
        for worker in list(self._workers):
            worker.resume()

    def close(self, complain: Callable[[str], object] = lambda text: None) -> None:
        """Ends all threads, and complains of those that hang in an inference."""
        hung = sum(self._close(worker) for worker in list(self._workers))
        if hung:
            complain(f"{hung} inference(s) hang and were left to themselves; restart the process to be rid of them")

    def _open(self, path: Path) -> LoadedPolicy:
        loaded = open_policy(path, self._contract, self._waiting, self._open_session, self._on_thread_start)
        self._workers.append(loaded.worker)
        return loaded

    def _close(self, worker: InferenceWorker) -> int:
        self._workers.remove(worker)
        return worker.close()


def _change(control: ControlLoop, new: LoadedPolicy, lock: threading.Lock, now_ns: Callable[[], int]) -> None:
    """Hands a policy to the loop and waits until it has taken over. Raises ContractError when the loop keeps the old one."""
    done = threading.Event()
    reasons: list[str | None] = []

    def outcome(reason: str | None) -> None:
        reasons.append(reason)
        done.set()

    with lock:
        control.change_policy(new.worker, outcome, now_ns())
    if not done.wait(_SWAP_TIMEOUT_S):
        with lock:
            assert control.executor is not None
            control.executor.give_up_change(f"no chunk of it was joined within {_SWAP_TIMEOUT_S:g} s")
        done.wait()
    if reasons[0] is not None:
        raise ContractError(reasons[0])
