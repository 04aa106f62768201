# SPDX-License-Identifier: Apache-2.0
"""Any sequence of targets at all, past an independent check: nothing that leaves is out of any limit."""

import copy
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from otpr_policy.command import CartesianTarget
from otpr_policy.limits import Limits
from otpr_policy.rate import TargetLimiter
from otpr_policy.rotation import matrix_to_columns
from otpr_policy.safety import Band
from otpr_policy.spec import Array

PERIOD_S = 0.1
LIMITS = Limits((0.25, -0.45, -0.12), (0.85, 0.45, 0.50), 0.05, 0.30, 0.90, 0.1, 0.5, 0.05, 0.5, 2.0, 1.0, 4.0, 0.2, 1.0, 0.0, 0.0, 0.04)
DOWN = np.diag([1.0, -1.0, -1.0])
HOME = np.array([0.5, 0.0, 0.1])
X = np.array([1.0, 0.0, 0.0])
pytestmark = pytest.mark.faults


def _walk(
    rng: np.random.Generator, steps: int
) -> "tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]":
    """Targets (n, 3), rotations (n, 4), fingers (n,) and hands (n, 3): smooth, noisy and absurd by turns, at the box's faces too."""
    scale = rng.choice([1e-6, 1e-3, 0.01, 0.02, 0.1, 10.0], size=(steps, 1), p=[0.1, 0.3, 0.35, 0.21, 0.03, 0.01])
    hands = np.clip(HOME + np.cumsum(rng.normal(size=(steps, 3)) * 0.004, axis=0), [0.2, -0.5, -0.17], [0.9, 0.5, 0.55])
    targets = hands + rng.normal(size=(steps, 3)) * scale
    turns = rng.normal(size=(steps, 3)) * rng.choice([1e-8, 0.005, 0.02, 0.2], size=(steps, 1), p=[0.3, 0.4, 0.27, 0.03])
    quaternions = (Rotation.from_rotvec(turns) * Rotation.from_matrix(DOWN)).as_quat()
    fingers = 0.02 + 0.023 * np.sin(np.cumsum(rng.normal(size=steps) * 0.5))  # a little outside their range at times
    absurd = rng.random(steps) < 0.01
    targets[absurd, rng.integers(0, 3)] = rng.choice([np.nan, np.inf, -np.inf, 1e30], size=absurd.sum())
    quaternions[rng.random(steps) < 0.005] *= rng.choice([np.nan, 2.0, 0.0])
    return targets, quaternions, fingers, hands


Sent = tuple[int, CartesianTarget, Array, float]


def _violations(sent: list[Sent], limits: Limits, period_s: float) -> list[str]:
    """An independent look at what was sent: (run, target, hand, time) in order; targets of one run follow each other step by step.

    Limits are by the clock, except that more than a period between two targets counts as one.
    """
    runs = np.array([run for run, _, _, _ in sent])
    positions = np.array([target.position for _, target, _, _ in sent])
    quaternions = np.array([target.quaternion for _, target, _, _ in sent])
    fingers = np.array([target.gripper_position for _, target, _, _ in sent])
    hands = np.array([hand for _, _, hand, _ in sent])
    seconds = np.minimum(np.diff([now_s for _, _, _, now_s in sent]), period_s)
    rotations = Rotation.from_quat(quaternions)
    found = []

    def expect(name: str, fine: NDArray[np.bool_]) -> None:
        if not fine.all():
            found.append(f"{name}: {np.count_nonzero(~fine)}")

    expect("finite", np.isfinite(np.column_stack([positions, quaternions, fingers])).all(axis=1))
    expect("workspace", ((positions >= limits.workspace_low) & (positions <= limits.workspace_high)).all(axis=1))
    expect("distance", np.linalg.norm(positions - hands, axis=1) <= limits.max_distance_m)
    expect("angle", (rotations * Rotation.from_matrix(DOWN).inv()).magnitude() <= limits.max_rotation_rad + 1e-7)
    follows = runs[1:] == runs[:-1]
    for name, steps, velocity, acceleration in (
        ("step", np.diff(positions, axis=0), limits.max_velocity_m_s, limits.max_acceleration_m_s2),
        (
            "turn",
            (rotations[1:] * rotations[:-1].inv()).as_rotvec(),
            limits.max_angular_velocity_rad_s,
            limits.max_angular_acceleration_rad_s2,
        ),
    ):
        expect(f"{name} velocity", (np.linalg.norm(steps, axis=1) <= velocity * seconds + 1e-9)[follows])
        velocities = steps / seconds[:, None]
        before, after = velocities[:-1], velocities[1:]
        share = np.clip(np.sum(before * after, axis=1) / np.maximum(np.sum(before * before, axis=1), 1e-300), 0, 1)
        change = np.linalg.norm(after - share[:, None] * before, axis=1)
        expect(f"{name} acceleration", (change <= acceleration * seconds[1:] + 1e-7)[follows[1:] & follows[:-1]])
    expect("finger", (np.abs(np.diff(fingers)) <= limits.max_gripper_velocity_m_s * seconds + 1e-12)[follows])
    expect("finger range", (fingers >= limits.gripper_low_m) & (fingers <= limits.gripper_high_m))
    return found


def _play(rng: np.random.Generator, steps: int, limits: Limits) -> tuple[list[Sent], dict[Band, int]]:
    limiter = TargetLimiter(limits, PERIOD_S)
    columns = matrix_to_columns(DOWN)
    sent, run, bands = [], 0, dict.fromkeys(Band, 0)
    times = np.cumsum(PERIOD_S * rng.choice([1.0, 0.3, 0.05, 2.5], size=steps, p=[0.85, 0.05, 0.05, 0.05]))  # late ticks, and close ones
    for position, quaternion, finger, hand, now_s in zip(*_walk(rng, steps), times.tolist(), strict=True):
        filtered = limiter.filter(CartesianTarget(position, quaternion, float(finger)), hand, columns, 0.02, now_s)
        bands[filtered.band] += 1
        if filtered.band is Band.REJECT:
            if rng.random() < 0.8:  # as the control loop does; without it the next target still counts from the one sent last
                limiter.rest()
                run += 1
        else:
            sent.append((run, filtered.target, hand, now_s))
    return sent, bands


def _fuzz(targets: int, seed: int) -> dict[Band, int]:
    rng = np.random.default_rng(seed)
    total = dict.fromkeys(Band, 0)
    for index in range(targets // 2000):
        limits = replace(LIMITS, ramp_in_s=(0.0, 0.5)[index % 2], rate_margin=(1.0, 0.1, 20.0)[index % 3], workspace_margin_m=0.05)
        sent, bands = _play(rng, 2000, limits)
        assert _violations(sent, limits, PERIOD_S) == []
        total = {band: total[band] + count for band, count in bands.items()}
    return total


def test_in_6000_fuzzed_targets_not_one_command_is_out_of_any_limit() -> None:
    total = _fuzz(6000, seed=1)
    assert sum(total.values()) == 6000
    assert min(total.values()) > 500  # a test that only ever passes, clamps or rejects proves nothing


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_in_a_million_fuzzed_targets_not_one_command_is_out_of_any_limit() -> None:
    total = _fuzz(1_000_000, seed=2)
    assert sum(total.values()) == 1_000_000
    assert min(total.values()) > 50_000


def test_the_checker_of_the_fuzz_test_sees_each_violation() -> None:
    still = CartesianTarget(HOME, np.array([1.0, 0, 0, 0]), 0.02)

    def found(*targets: CartesianTarget, apart_s: float = PERIOD_S) -> list[str]:
        sent = [(0, target, HOME, apart_s * index) for index, target in enumerate(targets)]
        return [line.split(":")[0] for line in _violations(sent, LIMITS, PERIOD_S)]

    assert found(still, still, still) == []
    assert "workspace" in found(replace(still, position=np.array([0.5, 0.0, 0.6])))
    assert "distance" in found(replace(still, position=HOME + 0.31 * X))
    assert found(still, replace(still, position=HOME + 0.051 * X)) == ["step velocity"]
    assert found(still, replace(still, position=HOME + 0.026 * X), apart_s=PERIOD_S / 2) == ["step velocity"]
    assert found(still, still, replace(still, position=HOME + 0.021 * X)) == ["step acceleration"]
    assert found(still, still, replace(still, position=HOME + 0.006 * X), apart_s=PERIOD_S / 2) == ["step acceleration"]
    turned = replace(still, quaternion=(Rotation.from_rotvec([0, 0, 0.05]) * Rotation.from_quat(still.quaternion)).as_quat())
    assert found(still, still, turned) == ["turn acceleration"]
    assert found(replace(still, gripper_position=0.0), replace(still, gripper_position=0.021)) == ["finger"]
    assert found(replace(still, gripper_position=0.041)) == ["finger range"]
    assert found(replace(still, gripper_position=np.nan)) == ["finite", "finger range"]


def test_filtering_again_changes_nothing_and_no_target_is_moved_past_where_it_was_asked_to_go() -> None:
    """Idempotent and monotone: of any clamped target, the same limiter passes its own answer bit for bit."""
    rng = np.random.default_rng(3)
    limiter = TargetLimiter(LIMITS, PERIOD_S)
    columns = matrix_to_columns(DOWN)
    clamped = 0
    for position, quaternion, finger, hand in zip(*_walk(rng, 1500), strict=True):
        before = copy.copy(limiter)  # its attributes are replaced, never changed
        target = CartesianTarget(position, quaternion, float(finger))
        once = limiter.filter(target, hand, columns, 0.02)
        if once.band is Band.REJECT:
            limiter.rest()
            continue
        start = before._motion
        twice = before.filter(once.target, hand, columns, 0.02)
        assert twice.band is Band.PASS
        assert twice.target is once.target
        if start is not None and once.band is Band.CLAMP:
            clamped += 1
            inside = np.clip(position, LIMITS.workspace_low, LIMITS.workspace_high)
            asked, went = inside - start.position, once.target.position - start.position
            assert np.linalg.norm(went) <= np.linalg.norm(asked) + 1e-12
            assert np.linalg.norm(np.cross(went, asked)) <= 1e-12  # in the direction that was asked for
            assert went @ asked >= -1e-12
    assert clamped > 100
