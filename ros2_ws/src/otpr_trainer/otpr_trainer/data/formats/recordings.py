# SPDX-License-Identifier: Apache-2.0
"""Recorded episodes (MCAP) as demonstrations: what the policy node would have seen, and what the robot was told.

The messages go through the node's own decoding and its own :class:`otpr_policy.observation.ObservationBuffer`, in the order in which
they arrived. Each command for the hand is one control step: the observation is what the buffer has when the command arrives, the
action is the difference of the two, and the node's own bounds are applied to it. Nothing is filled in: where the node would have held,
the recording is refused by field and time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from otpr_policy.contract import RobotContract, source_size
from otpr_policy.errors import DemonstrationError, RecordingError
from otpr_policy.observation import Missing, ObservationBuffer
from otpr_policy.recording import Recording, Stamps, TargetLog, Verdict, mcap_file, read_recording
from otpr_policy.rotation import columns_to_matrix, matrix_to_rotation_vector, quaternion_to_matrix
from otpr_policy.safety import Band, filter_action
from otpr_policy.source import Commander
from otpr_policy.spec import Array
from otpr_sim import registry
from otpr_sim.env import TaskSpec
from otpr_trainer.data.archives import check_size
from otpr_trainer.data.demonstrations import Demonstrations, Episode, Header
from otpr_trainer.data.formats.osc_actions import check_fields

_RATE_TOLERANCE = 0.1  # of the median time between commands
_LONGEST_STEP = 1.5  # control periods between two commands; what is longer is a hold, unless the commands after it are in time
_SETTLING_NS = 500_000_000  # a recording begins at any moment, and commands from before all fields have come are left out
_NEIGHBOURS = 10  # commands before and after that say what in time is


@dataclass(frozen=True, eq=False)
class Sample:
    """One message as one field: when it arrived and what it is stamped [ns], and its place among its topic's messages."""

    received_ns: int
    stamp_ns: int
    field: str
    number: int
    values: Array


def read_recordings(path: Path, task: str | None = None, skipped: Callable[[str], None] | None = None) -> Demonstrations:
    """Reads one recording, or every recording in a folder. Those that the operator judged a success become demonstrations.

    Args:
        path: a recording's directory or .mcap file, or a folder of recordings.
        task: name of our task; by default the one that the robot's contract says its twin plays.
        skipped: told why a recording cannot be used, which is then left out; None makes the first such an error.

    Raises:
        RecordingError: a file is no recording of ours.
        DemonstrationError: none is a success; or one has another rate, robot, unit or field than the task, a hold, a gap, or a number
            that is not finite or beyond its bounds; names recording, field and time.
    """
    paths = recording_paths(path)
    for found in paths:
        check_size(mcap_file(found))
    recordings = [read_recording(found) for found in paths]
    spec = registry.spec(task or _task(recordings[0]))
    kept = [(number, recording) for number, recording in enumerate(recordings) if recording.verdict is Verdict.SUCCESS]
    if not kept:
        verdicts = ", ".join(sorted({recording.verdict.value for recording in recordings}))
        raise DemonstrationError(f"none of the {len(recordings)} recordings in {path} was judged a success; they are {verdicts}")
    episodes = []
    for number, recording in kept:
        try:
            episodes.append(read_episode(recording, number, spec))
        except DemonstrationError as error:
            if skipped is None:
                raise
            skipped(str(error))
    if not episodes:
        raise DemonstrationError(f"none of the {len(kept)} successes in {path} can be used")
    robots = ", ".join(sorted({recording.contract.robot for _, recording in kept}))
    source: dict[str, float | str] = {"kind": "mcap", "robot": robots, "folder": Path(path).resolve().name}
    count = len(episodes)
    header = Header(spec.name, spec.observation, spec.action, spec.control_rate_hz, source, 0, count, len(recordings), count)
    return Demonstrations(header, tuple(episodes))


def recording_paths(path: Path) -> list[Path]:
    """Recordings at or in a path, by name. Raises DemonstrationError when there is none."""
    path = Path(path)
    if path.is_file() or any(path.glob("*.mcap")):
        return [path]
    found = sorted(folder for folder in path.iterdir() if any(folder.glob("*.mcap"))) if path.is_dir() else []
    if not found:
        raise DemonstrationError(f"{path} holds no recording: neither a .mcap file nor folders with one")
    return found


def read_episode(recording: Recording, number: int, task: TaskSpec) -> Episode:
    """One recording as an episode. ``number``: of the attempt. Raises DemonstrationError, see :func:`read_recordings`."""
    name, contract = recording.path.name, recording.contract
    _check_contract(name, contract, task)
    check_fields(task.action)
    targets = _targets(recording, task)
    ticks = _ticks(name, targets, task)
    period_ns = round(1e9 / task.control_rate_hz)
    observed = observe(recording, task, [*ticks, int(ticks[-1]) + period_ns])
    actions = _actions(recording, task, targets, observed)
    steps = len(observed) - 1  # one fewer than commands where the recording ends before the last command shows an effect
    if steps < 1:
        raise DemonstrationError(f"{name}: there is no step: the recording ends with its first command")
    reward = np.zeros(steps)
    reward[-1] = 1.0
    return Episode(number, observed, actions[:steps], np.empty((steps + 1, 0)), reward, _operator(recording, targets, steps))


def observe(recording: Recording, task: TaskSpec, ticks_ns: Sequence[int]) -> Array:
    """Observations (T + 1, Do) at times of arrival, as the node's buffer gives them; without the last where nothing new came for it.

    Raises DemonstrationError naming the field and the time where the node would have held.
    """
    name, begin = recording.path.name, int(ticks_ns[0])
    buffer = ObservationBuffer(task.observation, recording.contract.max_ages_s())
    waiting = samples(recording, task)
    upcoming = next(waiting, None)
    rows: list[Array] = []
    stamps: list[int] = []
    for index, tick_ns in enumerate(ticks_ns):
        while upcoming is not None and upcoming.received_ns <= tick_ns:
            reason = buffer.push(upcoming.field, upcoming.stamp_ns, upcoming.values, upcoming.received_ns)
            if reason is not None:
                raise DemonstrationError(
                    f"{name}: message {upcoming.number} of {recording.contract.observations[upcoming.field].topic}: {reason}"
                )
            upcoming = next(waiting, None)
        found = buffer.observe(int(tick_ns))
        last = index == len(ticks_ns) - 1
        if last and (isinstance(found, Missing) or found.stamp_ns <= stamps[-1]):
            break
        if isinstance(found, Missing):
            raise DemonstrationError(f"{name}: {(tick_ns - begin) / 1e9:.3f} s after the first command: {found.reason}")
        rows.append(task.observation.flatten(found.values))
        stamps.append(found.stamp_ns)
    return np.stack(rows)


def samples(recording: Recording, task: TaskSpec) -> Iterator[Sample]:
    """Every sample of the task's fields in order of arrival. Raises DemonstrationError naming the message that the contract cannot read."""
    found = []
    for field in task.observation.names:
        log = recording.topics.get(recording.contract.observations[field].topic)
        if log is None:
            raise DemonstrationError(f"{recording.path.name}: topic {recording.contract.observations[field].topic} was not recorded")
        try:
            data = recording.field(field)
        except RecordingError as error:
            raise DemonstrationError(str(error)) from error
        found += [
            Sample(int(received), int(stamp), field, number, values)
            for number, (received, stamp, values) in enumerate(zip(log.received_ns, data.stamps_ns, data.values, strict=True))
        ]
    return iter(sorted(found, key=lambda sample: sample.received_ns))


def _task(recording: Recording) -> str:
    if recording.contract.twin is None:
        raise DemonstrationError(f"the contract of {recording.contract.robot} does not say which task of ours it plays; pass --task")
    return recording.contract.twin.task


def _check_contract(name: str, contract: RobotContract, task: TaskSpec) -> None:
    for field in task.observation.fields:
        source = contract.observations.get(field.name)
        if source is None:
            known = ", ".join(contract.observations)
            raise DemonstrationError(
                f"{name}: the contract of {contract.robot} has no field {field.name!r}, which {task.name!r} needs; it has {known}"
            )
        if (source.unit, source_size(source)) != (field.unit, field.size):
            raise DemonstrationError(
                f"{name}: {field.name} is {source_size(source)} numbers in {source.unit!r} by the contract of {contract.robot}; "
                f"{task.name!r} has {field.size} in {field.unit!r}"
            )


def _targets(recording: Recording, task: TaskSpec) -> TargetLog:
    """What the hand was told, from when every field has come at least once. Raises DemonstrationError when it was told less than twice."""
    topic = recording.contract.pose_command.topic
    targets = recording.targets() if topic in recording.topics else None
    if targets is None or len(targets.received_ns) < 2:
        raise DemonstrationError(f"{recording.path.name}: fewer than two commands came on {topic}")
    logs = (recording.topics.get(recording.contract.observations[field].topic) for field in task.observation.names)
    complete_ns = max((int(log.received_ns[0]) for log in logs if log is not None and len(log.received_ns)), default=0)
    first = int(np.searchsorted(targets.received_ns, min(complete_ns, int(targets.received_ns[0]) + _SETTLING_NS)))
    first = min(first, len(targets.received_ns) - 2)
    return TargetLog(targets.stamps_ns[first:], targets.received_ns[first:], targets.positions[first:], targets.quaternions[first:])


def _ticks(name: str, targets: TargetLog, task: TaskSpec) -> list[int]:
    """When each command for the hand arrived [ns]. Raises DemonstrationError on another rate, or a hold in between."""
    arrivals_ns = targets.received_ns
    seconds = np.diff(arrivals_ns) / 1e9
    period_s = 1.0 / task.control_rate_hz
    usual_s = float(np.median(seconds))
    if abs(usual_s - period_s) > _RATE_TOLERANCE * period_s:
        rate = f"{1 / usual_s:.1f} Hz" if usual_s > 0 else "no rate"
        raise DemonstrationError(f"{name}: commands came at {rate}; {task.name!r} is controlled at {task.control_rate_hz:g} Hz")
    times_s = (arrivals_ns - arrivals_ns[0]) / 1e9
    for gap in np.flatnonzero(seconds > _LONGEST_STEP * period_s):
        if _late_s(times_s, int(gap), period_s) > (_LONGEST_STEP - 1) * period_s:
            raise DemonstrationError(f"{name}: no command for {seconds[gap]:.3f} s after {times_s[gap]:.3f} s: the robot held")
    return [int(stamp) for stamp in arrivals_ns]


def _late_s(times_s: Array, gap: int, period_s: float) -> float:
    """How much later the commands after a gap come than those before it let expect [s].

    A command can be late by itself, on a machine that is busy; then those after it are in time. After a hold all of them are late. So
    of the ten on either side of the gap the earliest counts, each against one command per period.
    """
    phase_s = times_s - period_s * np.arange(len(times_s))
    before, after = phase_s[max(0, gap + 1 - _NEIGHBOURS) : gap + 1], phase_s[gap + 1 : gap + 1 + _NEIGHBOURS]
    return float(after.min() - before.min())


def _operator(recording: Recording, targets: TargetLog, steps: int) -> Array | None:
    """Which steps an operator commanded, (T,), in an episode in which a policy acted too; None in one that is an operator's alone.

    A command whose label was lost counts as the policy's: it is not imitated.
    """
    labels = recording.commanders()
    if Commander.POLICY.value not in labels.values():
        return None
    return np.array([float(labels.get(int(stamp)) == Commander.OPERATOR.value) for stamp in targets.stamps_ns[:steps]])


def _actions(recording: Recording, task: TaskSpec, targets: TargetLog, observed: Array) -> Array:
    """The delta of each command to what was observed when it came, (T, Da), within the bounds that the node enforces."""
    name, fields = recording.path.name, task.observation.split(observed)
    fingers = _finger_targets(recording, targets.received_ns, round(0.5e9 / task.control_rate_hz))
    rows = []
    for step in range(min(len(targets.received_ns), len(observed))):
        turn = quaternion_to_matrix(targets.quaternions[step]) @ columns_to_matrix(fields["ee_rotation"][step]).T
        values = {
            "ee_position_delta": targets.positions[step] - fields["ee_position"][step],
            "ee_rotation_delta": matrix_to_rotation_vector(turn),
            "gripper_position": fingers[step : step + 1],
        }
        bounded = filter_action(task.action, task.action.flatten(values), recording.contract.limits)
        if bounded.band is Band.REJECT:
            raise DemonstrationError(f"{name}, step {step}: {bounded.reason}")
        rows.append(bounded.vector)
    return np.stack(rows)


def _finger_targets(recording: Recording, ticks: Stamps, slack_ns: int) -> Array:
    """What the fingers were told last at each tick [m] (T,); hand and fingers are told at once, in either order of arrival."""
    topic = recording.contract.gripper_command.topic
    if topic not in recording.topics or not recording.topics[topic].messages:
        raise DemonstrationError(f"{recording.path.name}: the fingers were told nothing on {topic}")
    log = recording.gripper_targets()
    place = np.searchsorted(log.stamps_ns, ticks + slack_ns, side="right") - 1
    if place[0] < 0:
        raise DemonstrationError(f"{recording.path.name}: the fingers were told nothing until {topic}'s first message, after the hand's")
    if not np.isfinite(log.values).all():
        raise DemonstrationError(f"{recording.path.name}: message {int(np.argmin(np.isfinite(log.values[:, 0])))} of {topic} is not finite")
    return log.values[place, 0]
