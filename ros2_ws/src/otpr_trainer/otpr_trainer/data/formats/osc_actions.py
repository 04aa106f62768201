# SPDX-License-Identifier: Apache-2.0
"""Between our actions in physical units and robosuite's normalised ones.

Robosuite's OSC_POSE takes seven numbers in [-1, 1]: a step and a turn of the hand as fractions of the controller's largest, and
whether to close (> 0), to open (< 0) or to leave the fingers (0), by one slew step of 4 mm per command. Ours names the position
that the fingers shall go to at the same speed. Reading is exact; writing comes within half a slew step of any target in between.
"""

import numpy as np

from otpr_policy.command import WRITES
from otpr_policy.errors import DemonstrationError
from otpr_policy.spec import Array, VectorSpec
from otpr_sim.tasks.panda import ACTION, FINGER_RANGE, FINGER_SLEW, FINGER_START

SIZE = 7
SCALE = np.concatenate([ACTION["ee_position_delta"].high, ACTION["ee_rotation_delta"].high])
"""The largest step [m] and turn [rad] of robosuite's default controller, (6,)."""


def check_fields(action: VectorSpec) -> None:
    """Raises DemonstrationError naming the field that robosuite's OSC_POSE has no command for, or lacks."""
    found = {field.name: (field.size, field.unit, field.semantics) for field in action.fields}
    for name in sorted(found.keys() | WRITES.keys()):
        if found.get(name) != WRITES.get(name):
            raise DemonstrationError(
                f"robosuite's OSC_POSE takes {', '.join(WRITES)}; action field {name!r} is missing, unknown or differs"
            )


def normalized(action: Array, spec: VectorSpec) -> Array:
    """Physical actions of one whole episode (T, Da) as robosuite's (T, 7). Raises DemonstrationError, see :func:`check_fields`."""
    check_fields(spec)
    fields = spec.split(action)
    steps = np.concatenate([fields["ee_position_delta"], fields["ee_rotation_delta"]], axis=1) / SCALE
    return np.concatenate([steps, _grasps(fields["gripper_position"][:, 0])[:, None]], axis=1)


def physical(action: Array, spec: VectorSpec, scale: Array = SCALE) -> Array:
    """Robosuite's actions of one whole episode (T, 7) in physical units (T, Da), fields in the order of ``spec``.

    Args:
        action: in [-1, 1].
        spec: our action fields.
        scale: the controller's largest step [m] and turn [rad], (6,).

    Raises:
        DemonstrationError: a number outside [-1, 1] (names its place), a wrong width, or see :func:`check_fields`.
    """
    check_fields(spec)
    if action.ndim != 2 or action.shape[1] != SIZE:
        raise DemonstrationError(f"actions have shape {action.shape}; OSC_POSE of one arm with its gripper takes (T, {SIZE})")
    outside = np.argwhere(~(np.abs(action) <= 1.0))
    if len(outside):
        step, column = map(int, outside[0])
        raise DemonstrationError(f"actions[{step}, {column}] is {action[step, column]}; normalised actions lie in [-1, 1]")
    values = {
        "ee_position_delta": action[:, :3] * scale[:3],
        "ee_rotation_delta": action[:, 3:6] * scale[3:],
        "gripper_position": _targets(action[:, 6])[:, None],
    }
    return np.concatenate([values[name] for name in spec.names], axis=1)


def _targets(grasps: Array) -> Array:
    """Finger targets [m] (T,): the end that they move towards, or where the set-point stands."""
    setpoint, targets = FINGER_START, np.empty_like(grasps)
    for step, grasp in enumerate(grasps):
        targets[step] = setpoint if grasp == 0 else 0.0 if grasp > 0 else FINGER_RANGE
        setpoint = _slew(setpoint, targets[step])
    return targets


def _grasps(targets: Array) -> Array:
    """Commands (T,) in {-1, 0, 1} that keep robosuite's set-point as near to ours as it can be."""
    ours = theirs = FINGER_START
    grasps = np.empty_like(targets)
    for step, target in enumerate(targets):
        ours = _slew(ours, target)
        if target <= 0.0 or target >= FINGER_RANGE:
            grasps[step] = 1.0 if target <= 0.0 else -1.0
        else:
            grasps[step] = np.sign(theirs - ours) if abs(theirs - ours) > FINGER_SLEW / 2 else 0.0
        theirs = min(max(theirs - grasps[step] * FINGER_SLEW, 0.0), FINGER_RANGE)
    return grasps


def _slew(setpoint: float, target: float) -> float:
    target = min(max(float(target), 0.0), FINGER_RANGE)
    return setpoint + min(max(target - setpoint, -FINGER_SLEW), FINGER_SLEW)
