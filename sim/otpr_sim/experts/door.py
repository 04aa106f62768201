# SPDX-License-Identifier: Apache-2.0
"""Door, scripted: before the handle, on to it, close, along the handle's arc, along the door's; again when the hand slips off."""

from collections.abc import Iterator

import numpy as np

from otpr_policy.rotation import columns_to_matrix, rotation_vector_to_matrix
from otpr_policy.spec import Array
from otpr_sim.experts.script import CLOSING_STEPS, OPEN, UP, Move, ScriptedExpert

APPROACH_DISTANCE = (0.08, 0.12)  # m before the handle; each episode draws its own
LEVER = 0.125  # m from the handle's axis to the site that its pose is of
GRASP = (0.1, 0.004)  # m from the handle's axis along the lever, mean and standard deviation of where an episode grasps
HINGE = 0.43  # m from the handle's axis to the door's
PRESSED = 1.35  # rad; the latch is free from about 1.2 rad
RELEASED = 1.2  # rad
PRESS_AHEAD, PULL_AHEAD = 0.4, 0.12  # rad: how far along the arcs the hand's goal is
NEAR = 0.012  # m
ALIGNED = 0.08  # rad
LOST = 0.05  # m between hand and where it holds the handle
HOLDING = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]])  # the hand's axes in the handle's frame: fingers above and below


class DoorExpert(ScriptedExpert):
    """See experts.expert for the arguments."""

    def script(self) -> Iterator[Move]:
        """See ScriptedExpert."""
        self._grasp = self.rng.normal(*GRASP)
        distance = self.rng.uniform(*APPROACH_DISTANCE)
        while True:
            yield from self.reach(lambda: (self.grip - distance * self.handle[:, 1], self.holding), OPEN, NEAR, ALIGNED)
            yield from self.reach(lambda: (self.grip, self.holding), OPEN, NEAR)
            yield from self.stay(CLOSING_STEPS, self.holding, 0.0)
            released = False
            while np.linalg.norm(self.grip - self.hand) < LOST:
                released = released or self._angle() > RELEASED
                yield self._along_the_arcs(PULL_AHEAD if released else 0.0)

    @property
    def handle(self) -> Array:
        """How the handle is turned (3, 3): first axis along the lever, second into the door."""
        return columns_to_matrix(self.seen["handle_rotation"])

    @property
    def axis(self) -> Array:
        """Where the handle turns, beside the lever (3,) [m]."""
        return self.seen["handle_position"] - LEVER * self.handle[:, 0]

    @property
    def grip(self) -> Array:
        """Where the hand is to hold the lever (3,) [m]."""
        return self.axis + self._grasp * self.handle[:, 0]

    @property
    def holding(self) -> Array:
        """Rotation of the hand (3, 3) that holds the lever."""
        return self.handle @ HOLDING

    def _angle(self) -> float:
        """How far the handle is pressed [rad]."""
        return float(np.arcsin(np.clip(-self.handle[2, 0], -1.0, 1.0)))

    def _along_the_arcs(self, pull: float) -> Move:
        """Towards where the hand holds the lever once it is pressed on and the door is open by ``pull`` more [rad]."""
        into = self.handle[:, 1]
        hinge: Array = self.axis + HINGE * np.array([into[1], -into[0], 0.0])
        press = rotation_vector_to_matrix(min(max(PRESSED - self._angle(), 0.0), PRESS_AHEAD) * into)
        opened = rotation_vector_to_matrix(pull * UP)
        goal = hinge + opened @ (self.axis + press @ (self.grip - self.axis) - hinge)
        return self.move(goal, opened @ press @ self.holding, 0.0)
