# SPDX-License-Identifier: Apache-2.0
"""Shadow mode after the event: what a policy would have proposed on a recording, compared with what was commanded then.

The messages go through the node's own decoding, buffer and control loop in the order in which they arrived, and the loop ticks at its
own rate, as a node in shadow mode does. Inference takes no time here. The robot obeyed whoever commanded it: each proposal answers what
was observed, never what an earlier proposal would have led to.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from otpr_policy.chunk import ChunkPolicy, episode_rng
from otpr_policy.control import ControlLoop
from otpr_policy.errors import RecordingError
from otpr_policy.health import Counters
from otpr_policy.lanes import SimulatedLanes
from otpr_policy.observation import ObservationBuffer
from otpr_policy.recording import Recording
from otpr_policy.shadow import ShadowComparison
from otpr_policy.source import PolicySource
from otpr_policy.spec import Array


@dataclass(frozen=True)
class _Sample:
    """A field's value that arrived."""

    field: str
    stamp_ns: int
    values: Array


@dataclass(frozen=True)
class _Pose:
    """A target for the hand that arrived."""

    stamp_ns: int
    position: Array
    quaternion: Array


@dataclass(frozen=True)
class _Fingers:
    """A target for the fingers that arrived [m]."""

    position: float


_Event = _Sample | _Pose | _Fingers


def replay_shadow(recording: Recording, policy: ChunkPolicy, comparison: ShadowComparison, seed: int = 0) -> Counters:
    """Adds a recording to a comparison.

    Args:
        recording: of a robot that the policy fits.
        policy: that proposes.
        comparison: takes proposals and commands.
        seed: of the policy's noise.

    Returns:
        How often the loop ticked, proposed and held.

    Raises:
        ContractError: the recorded robot does not serve the policy.
        RecordingError: a message does not fit the contract, or a topic that the policy needs was not recorded.
    """
    contract = recording.contract
    contract.check_serves(policy.spec)
    buffer = ObservationBuffer(policy.spec.observation, contract.max_ages_s())
    source = PolicySource(SimulatedLanes(policy))
    loop = ControlLoop(source, buffer, contract.limits, contract.stop_after_s, measured_finger=contract.measured_finger)
    period_ns = round(1e9 / policy.spec.control_rate_hz)
    next_tick_ns: int | None = None
    engagements = 0
    for now_ns, event in _events(recording, policy):
        next_tick_ns = now_ns + period_ns if next_tick_ns is None else next_tick_ns
        while next_tick_ns <= now_ns:
            engagements += loop.go_on(next_tick_ns, episode_rng(seed, engagements))
            command = loop.tick(next_tick_ns)
            if command is not None:
                comparison.propose(command.stamp_ns, command.target)
            next_tick_ns += period_ns
        if isinstance(event, _Sample):
            buffer.push(event.field, event.stamp_ns, event.values, now_ns)
        elif isinstance(event, _Fingers):
            comparison.gripper_commanded(event.position)
        else:
            comparison.pose_commanded(event.stamp_ns, event.position, event.quaternion)
    return loop.counters


def _events(recording: Recording, policy: ChunkPolicy) -> Iterator[tuple[int, _Event]]:
    """Everything that a node in shadow mode hears, in order of arrival [ns]."""
    contract, found = recording.contract, list[tuple[int, _Event]]()
    for name in policy.spec.observation.names:
        topic = contract.observations[name].topic
        if topic not in recording.topics:
            raise RecordingError(f"{recording.path}: topic {topic} was not recorded, and the policy reads {name}")
        log, arrivals = recording.field(name), recording.topics[topic].received_ns
        found += [
            (int(arrived), _Sample(name, int(stamp), values))
            for arrived, stamp, values in zip(arrivals, log.stamps_ns, log.values, strict=True)
        ]
    if contract.pose_command.topic in recording.topics:
        hand = recording.targets()
        rows = zip(hand.received_ns, hand.stamps_ns, hand.positions, hand.quaternions, strict=True)
        found += [(int(arrived), _Pose(int(stamp), position, quaternion)) for arrived, stamp, position, quaternion in rows]
    if contract.gripper_command.topic in recording.topics:
        fingers = recording.gripper_targets()
        found += [(int(arrived), _Fingers(float(value[0]))) for arrived, value in zip(fingers.stamps_ns, fingers.values, strict=True)]
    return iter(sorted(found, key=lambda entry: entry[0]))
