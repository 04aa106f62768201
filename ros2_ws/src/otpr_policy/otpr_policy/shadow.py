# SPDX-License-Identifier: Apache-2.0
"""How far a policy's proposals lie from what the operator commands, field by field.

Proposal and command answer observations of about the same instant; those whose stamps are nearest, within one control
period, are compared. Both are targets made from the measured hand, so the error of a target is that of the action.
"""

import json
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np

from otpr_policy.command import CartesianTarget
from otpr_policy.files import write_text
from otpr_policy.rotation import matrix_to_rotation_vector, quaternion_to_matrix
from otpr_policy.spec import Array
from otpr_policy.table import format_table

FIELDS = {"ee_position_delta": "m", "ee_rotation_delta": "rad", "gripper_position": "m"}
_PENDING = 64  # proposals that wait for their command: some seconds at any control rate
_KEPT = 200_000  # pairs, some hours


@dataclass(frozen=True)
class FieldError:
    """The distribution of one field's error, in the field's unit. ``mean`` is of the vectors: how far it is biased to one side."""

    unit: str
    pairs: int
    mean: tuple[float, ...]
    rms: float
    p50: float
    p95: float
    max: float


class ShadowComparison:
    """Pairs proposals with commands and keeps their errors. Thread-safe: proposals come from the control thread, commands do not."""

    def __init__(self, period_s: float) -> None:
        """``period_s``: of control; what lies further apart is not compared."""
        self._period_ns = round(period_s * 1e9)
        self._lock = Lock()
        self._proposals: deque[tuple[int, CartesianTarget]] = deque(maxlen=_PENDING)
        self._poses: deque[tuple[int, Array, Array, float]] = deque(maxlen=_PENDING)
        self._fingers: float | None = None
        self._errors: dict[str, deque[Array]] = {name: deque(maxlen=_KEPT) for name in FIELDS}
        self.proposals = 0
        self.commands = 0

    def propose(self, stamp_ns: int, target: CartesianTarget) -> None:
        """The policy would have sent this."""
        with self._lock:
            self.proposals += 1
            self._proposals.append((stamp_ns, target))
            self._pair()

    def gripper_commanded(self, position: float) -> None:
        """The operator sent a finger target [m]; it belongs to the pose that follows."""
        with self._lock:
            self._fingers = float(position)

    def pose_commanded(self, stamp_ns: int, position: Array, quaternion: Array) -> None:
        """The operator sent a target pose: (3,) [m] and (4,)."""
        with self._lock:
            self.commands += 1
            finite = np.isfinite(position).all() and np.isfinite(quaternion).all() and float(quaternion @ quaternion) > 0
            if finite and self._fingers is not None:
                self._poses.append((stamp_ns, position, quaternion, self._fingers))
                self._pair()

    def errors(self) -> dict[str, FieldError]:
        """Proposal minus command, by field; empty while there is no pair."""
        with self._lock:
            found = {name: np.array(values) for name, values in self._errors.items() if values}
        return {name: _field_error(FIELDS[name], values) for name, values in found.items()}

    def facts(self) -> dict[str, str]:
        """For diagnostics: how many were compared, and each field's root mean square."""
        errors = self.errors()
        pairs = max((error.pairs for error in errors.values()), default=0)
        facts = {"shadow_proposals": str(self.proposals), "shadow_commands": str(self.commands), "shadow_pairs": str(pairs)}
        return facts | {f"shadow_rms_{name}_{error.unit}": f"{error.rms:.6f}" for name, error in errors.items()}

    def to_json(self) -> dict[str, object]:
        """Plain data for a report."""
        fields = {name: {**error.__dict__, "mean": list(error.mean)} for name, error in self.errors().items()}
        return {"proposals": self.proposals, "commands": self.commands, "fields": fields}

    def _pair(self) -> None:
        """Compares each command with the proposal nearest to it, once a later proposal shows that none can be nearer."""
        while self._poses and self._proposals:
            stamp_ns, position, quaternion, fingers = self._poses[0]
            if self._proposals[-1][0] < stamp_ns:
                return  # the right one may still come
            self._poses.popleft()
            nearest_ns, target = min(self._proposals, key=lambda proposal: abs(proposal[0] - stamp_ns))
            if abs(nearest_ns - stamp_ns) > self._period_ns:
                continue
            relative = quaternion_to_matrix(target.quaternion) @ quaternion_to_matrix(quaternion).T
            self._errors["ee_position_delta"].append(target.position - position)
            self._errors["ee_rotation_delta"].append(matrix_to_rotation_vector(relative))
            self._errors["gripper_position"].append(np.array([target.gripper_position - fingers]))


def report_markdown(comparison: ShadowComparison, identity: dict[str, str]) -> str:
    """The comparison for a person."""
    rows = [
        [
            name,
            error.unit,
            *(f"{value:.4f}" for value in (error.rms, error.p50, error.p95, error.max)),
            " ".join(f"{v:+.4f}" for v in error.mean),
        ]
        for name, error in comparison.errors().items()
    ]
    lines = ["# Shadow report", "", *(f"- {key}: {value}" for key, value in identity.items())]
    lines += [f"- proposals: {comparison.proposals}, commands: {comparison.commands}", ""]
    lines += ["Proposal minus command. Norms of each step's error; the mean is by axis.", ""]
    table = format_table(["field", "unit", "rms", "p50", "p95", "max", "mean"], rows)
    return "\n".join([*lines, *(["```", table, "```"] if rows else ["No command came while the policy ran."]), ""])


def write_report(path: Path, comparison: ShadowComparison, identity: dict[str, str]) -> None:
    """Writes ``path`` (JSON) and the same for people beside it (.md), atomically. Raises OutputError."""
    write_text(path, json.dumps({**identity, **comparison.to_json()}, indent=2) + "\n")
    write_text(path.with_suffix(".md"), report_markdown(comparison, identity))


def _field_error(unit: str, values: Array) -> FieldError:
    norms = np.linalg.norm(values, axis=1)
    p50, p95 = np.percentile(norms, [50, 95])
    mean = tuple(map(float, values.mean(0)))
    return FieldError(unit, len(values), mean, float(np.sqrt(np.mean(norms**2))), float(p50), float(p95), float(norms.max()))
