# SPDX-License-Identifier: Apache-2.0
"""From a policy's action to what a Cartesian controller is told.

Policies act relative to where the hand is (delta actions); controllers want an absolute pose. The conversion uses the
newest measurement at the tick, so that the twin and a real controller see the same message. Training rollouts and the
node call this one function, which is what makes them agree to the last bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from otpr_policy.errors import SpecError
from otpr_policy.rotation import columns_to_matrix, matrix_to_quaternion, quaternion_to_matrix, rotation_vector_to_matrix
from otpr_policy.spec import Array, PolicySpec, Semantics

READS = {"ee_position": (3, "m"), "ee_rotation": (6, "1")}  # observation fields that a target is made from: size, unit
WRITES = {  # action fields that make a target: size, unit, meaning
    "ee_position_delta": (3, "m", Semantics.DELTA),
    "ee_rotation_delta": (3, "rad", Semantics.DELTA),
    "gripper_position": (1, "m", Semantics.ABSOLUTE),
}


@dataclass(frozen=True, eq=False)
class CartesianTarget:
    """Where hand and fingers shall go, in the frame of the measurement it was made from.

    Args:
        position: (3,) [m].
        quaternion: (4,) x, y, z, w.
        gripper_position: finger joint position [m].
    """

    position: Array
    quaternion: Array
    gripper_position: float

    @cached_property
    def rotation(self) -> Array:
        """The orientation as a matrix (3, 3). Raises ValueError for a zero or non-finite quaternion."""
        return quaternion_to_matrix(self.quaternion)


def delta_to_target(observation: Mapping[str, Array], action: Mapping[str, Array]) -> CartesianTarget:
    """The absolute target of a delta action.

    Args:
        observation: has ``ee_position`` (3,) [m] and ``ee_rotation`` (6,), the first two columns of the hand's rotation.
        action: has ``ee_position_delta`` (3,) [m], ``ee_rotation_delta`` (3,) [rad], a rotation vector applied in the
            fixed frame after the present rotation, and ``gripper_position`` (1,) [m].
    """
    rotation = rotation_vector_to_matrix(action["ee_rotation_delta"]) @ columns_to_matrix(observation["ee_rotation"])
    return CartesianTarget(
        position=np.asarray(observation["ee_position"] + action["ee_position_delta"]),
        quaternion=matrix_to_quaternion(rotation),
        gripper_position=float(action["gripper_position"][0]),
    )


def check_commands(policy: PolicySpec) -> None:
    """Raises SpecError when a policy does not read or write what :func:`delta_to_target` needs, or writes something else besides."""
    for name, needed in READS.items():
        if name not in policy.observation.names:
            raise SpecError(
                f"Cartesian commands are made from the observation field {name!r}; the policy reads {', '.join(policy.observation.names)}"
            )
        field = policy.observation[name]
        if (field.size, field.unit) != needed:
            raise SpecError(f"{name} must be {needed[0]} numbers in {needed[1]!r}; the policy reads {field.size} in {field.unit!r}")
    if set(policy.action.names) != set(WRITES):
        raise SpecError(f"Cartesian commands carry {', '.join(WRITES)}; the policy writes {', '.join(policy.action.names)}")
    for field in policy.action.fields:
        size, unit, semantics = WRITES[field.name]
        if (field.size, field.unit, field.semantics) != (size, unit, semantics):
            raise SpecError(
                f"{field.name} must be {size} {semantics.value} numbers in {unit!r}; "
                f"the policy writes {field.size} {field.semantics.value} in {field.unit!r}"
            )
