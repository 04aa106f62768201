# SPDX-License-Identifier: Apache-2.0
"""From the observation that robosuite gives, by its own names, to our fields in the robot's base frame."""

from collections.abc import Mapping

import numpy as np

from otpr_policy.errors import DemonstrationError, unknown
from otpr_policy.rotation import matrix_to_columns, quaternion_to_matrix
from otpr_policy.spec import Array, VectorSpec
from otpr_sim import registry
from otpr_sim.env import TaskSpec
from otpr_trainer.data.formats.model_geometry import ModelGeometry

SIZES = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
"""What a dataset must hold besides ``object``, with its width."""
_FINGER_SIGNS = np.array([1.0, -1.0])  # robosuite's second finger runs from -0.04 to 0 m
_OBJECTS = {"lift": "cube", "can": "can", "square": "nut"}  # our task, and the object whose pose begins or ends robosuite's vector
_SIZES_OF_OBJECT = {"lift": 10, "can": 14, "square": 14}
_SAME_PLACE = 1e-4  # m; datasets are stored in single precision at worst


def task_of(env_name: str) -> TaskSpec:
    """Our task on a robosuite environment. Raises DemonstrationError listing those that there are."""
    tasks = {registry.spec(name).source.removeprefix("robosuite "): registry.spec(name) for name in registry.names()}
    if env_name not in tasks:
        raise DemonstrationError(unknown("robosuite environment", env_name, tasks))
    return tasks[env_name]


def our_fields(task: str, spec: VectorSpec, observation: Mapping[str, Array], geometry: ModelGeometry) -> Array:
    """Observations (T, Do) in the order of ``spec``.

    Args:
        task: name of our task.
        spec: our observation fields.
        observation: robosuite's arrays (T, n) by name, positions in the world, quaternions x, y, z, w.
        geometry: where the robot stands.

    Raises:
        DemonstrationError: an array is missing or of another width, no quaternion at some step, or an object vector that does not
            say where the object is in either of the two orders that robosuite has used.
    """
    if task not in _OBJECTS:
        raise DemonstrationError(f"robosuite's object vector of task {task!r} lacks fields of ours; known: {', '.join(sorted(_OBJECTS))}")
    for name, size in {**SIZES, "object": _SIZES_OF_OBJECT[task]}.items():
        if name not in observation:
            raise DemonstrationError(f"observation {name!r} is missing; there are {', '.join(sorted(observation)) or 'none'}")
        if observation[name].ndim != 2 or observation[name].shape[1] != size:
            raise DemonstrationError(f"observation {name!r} has shape {observation[name].shape}, expected (T, {size})")
    hand = observation["robot0_eef_pos"]
    place, quaternion = _object_pose(observation["object"], hand)
    thing = _OBJECTS[task]
    fields = {
        "ee_position": geometry.in_base(hand),
        "ee_rotation": _columns("robot0_eef_quat", observation["robot0_eef_quat"], geometry.base_rotation, geometry.site_in_hand),
        "gripper_position": observation["robot0_gripper_qpos"] * _FINGER_SIGNS,
        f"{thing}_position": geometry.in_base(place),
    }
    if f"{thing}_rotation" in spec.names:
        fields[f"{thing}_rotation"] = _columns("object", quaternion, geometry.base_rotation, np.eye(3))
    return np.concatenate([fields[name] for name in spec.names], axis=1)


def _object_pose(vector: Array, hand: Array) -> tuple[Array, Array]:
    """Position (T, 3) and quaternion (T, 4) of the object, in the world; the vector also has its way to the hand, of the same length.

    Robosuite 1.5 begins the vectors of two tasks with the way, earlier versions with the pose. At reset it may leave the way 0.
    """
    for pose, way in ((0, 7), (7, 0)):
        if vector.shape[1] < pose + 7:
            continue
        place = vector[:, pose : pose + 3]
        difference = np.linalg.norm(place - hand, axis=1) - np.linalg.norm(vector[:, way : way + 3], axis=1)
        if np.median(np.abs(difference)) < _SAME_PLACE:
            return place, vector[:, pose + 3 : pose + 7]
    raise DemonstrationError("observation 'object' does not hold a pose and the way from it to the hand in an order that is known")


def _columns(name: str, quaternions: Array, base: Array, last: Array) -> Array:
    rows = np.empty((len(quaternions), 6))
    for step, quaternion in enumerate(quaternions):
        try:
            rows[step] = matrix_to_columns(base.T @ quaternion_to_matrix(quaternion) @ last)
        except ValueError as error:
            raise DemonstrationError(f"observation {name!r} at step {step}: {error}") from error
    return rows
