# SPDX-License-Identifier: Apache-2.0
"""Computing a flight again: the same policy, on the same observations and noise, has to yield the same chunks and actions, bit for bit.

Each request of a flight holds all that goes into one inference, so that none depends on another. An action is an entry of
one chunk, less a correction after a seam, computed by the timeline's own function.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

import numpy as np

from otpr_policy.chunk import ChunkPolicy
from otpr_policy.errors import RecordingError
from otpr_policy.flight import FlightLog
from otpr_policy.lanes import infer
from otpr_policy.spec import Array
from otpr_policy.timeline import SEAM_TICKS, ChunkRequest, TimedAction, seam_correction


class Verdict(Enum):
    """What a replay has shown."""

    EXACT = "exact"  # every chunk and every action is equal bit for bit
    DIFFERENT = "different"  # one is not
    INCOMPLETE = "incomplete"  # what was computed again is equal, but that is not all of it


@dataclass(frozen=True)
class ReplayReport:
    """What came of computing a flight again.

    Args:
        chunks, actions: computed again.
        different_chunks, different_actions: of those, not equal bit for bit.
        largest_chunk_difference, largest_action_difference: in physical units, infinite where one is not finite and the other is.
        first_different_tick: where the first different action was carried out, None if none is.
        missing_chunks: requests without an answer in the flight: inference failed, hung, or was under way at its end.
        uncovered_actions: actions that were not computed again, since the flight does not have what their chunk was computed from.
    """

    chunks: int
    different_chunks: int
    largest_chunk_difference: float
    actions: int
    different_actions: int
    largest_action_difference: float
    first_different_tick: int | None
    missing_chunks: int
    uncovered_actions: int

    @property
    def verdict(self) -> Verdict:
        """Of the whole flight: what was not computed again is not said to be exact."""
        if self.different_chunks or self.different_actions:
            return Verdict.DIFFERENT
        return Verdict.EXACT if self.chunks > 0 and self.uncovered_actions == 0 else Verdict.INCOMPLETE

    @property
    def exact(self) -> bool:
        """Whether every action came out as recorded, and there was something."""
        return self.verdict is Verdict.EXACT

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the verdict."""
        return {"exact": self.exact, "verdict": self.verdict.value, **asdict(self)}


def replay(log: FlightLog, policies: Mapping[str, ChunkPolicy], seam_ticks: int = SEAM_TICKS) -> ReplayReport:
    """Computes again what the given policies, by the sha256 of their files, were asked for; ``seam_ticks`` as it was in the flight.

    Raises:
        RecordingError: a policy reads inputs of other shapes.
    """
    chunks: dict[int, Array] = {}
    recorded = {record.result.request.number: record.result.chunk for record in log.results}
    chunk_differences, missing = [], 0
    for record in log.requests:
        request = record.request
        chunk = recorded.get(request.number)
        if chunk is None:
            missing += 1
        elif record.policy in policies:
            _check_shapes(policies[record.policy], request)
            chunks[request.number] = infer(policies[record.policy], request)
            chunk_differences.append(_difference(chunk, chunks[request.number]))
    action_differences: list[float | None] = []
    first, uncovered = None, 0
    for tick in log.ticks:
        if not isinstance(tick.action, TimedAction):
            continue
        again = _action(tick.action, chunks, seam_ticks)
        if again is None:
            uncovered += 1
            continue
        action_differences.append(_difference(tick.action.vector, again))
        if action_differences[-1] is not None and first is None:
            first = tick.number
    return ReplayReport(
        len(chunk_differences),
        *_worst(chunk_differences),
        len(action_differences),
        *_worst(action_differences),
        first,
        missing,
        uncovered,
    )


def _check_shapes(policy: ChunkPolicy, request: ChunkRequest) -> None:
    reads = (policy.spec.observation_horizon, policy.spec.observation.size), policy.noise_shape
    given = request.observation.shape, request.noise.shape
    if reads != given:
        raise RecordingError(
            f"the policy reads observations and noise of {reads[0]} and {reads[1]}, the flight has {given[0]} and {given[1]}"
        )


def _action(action: TimedAction, chunks: Mapping[int, Array], seam_ticks: int) -> Array | None:
    """The action computed again, None when one of its chunks was not."""
    chunk, seam = chunks.get(action.source.request), action.seam
    if chunk is None:
        return None
    vector = np.asarray(chunk[action.source.index])
    if seam is None:
        return vector
    old, new = chunks.get(seam.old.request), chunks.get(seam.new.request)
    if old is None or new is None:
        return None
    return np.asarray(vector - seam_correction(old, new, seam.old.index, seam.new.index, seam.since, seam_ticks))


def _difference(recorded: Array, again: Array) -> float | None:
    """None when equal bit for bit, where any NaN equals any other; else the largest difference."""
    if recorded.shape != again.shape:
        return float("inf")
    equal = (recorded == again) & (np.signbit(recorded) == np.signbit(again)) | np.isnan(recorded) & np.isnan(again)
    if equal.all():
        return None
    with np.errstate(invalid="ignore"):
        differences = np.abs(recorded - again)[~equal]
    return float(np.nan_to_num(differences, nan=np.inf).max())


def _worst(differences: list[float | None]) -> tuple[int, float]:
    found = [difference for difference in differences if difference is not None]
    return len(found), max(found, default=0.0)
