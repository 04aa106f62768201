# SPDX-License-Identifier: Apache-2.0
"""Square, scripted: over the handle, down, close, up, over the peg, down, open, away; from the start again when the nut is lost."""

from collections.abc import Callable, Iterator

import numpy as np

from otpr_policy.rotation import columns_to_matrix, rotation_vector_to_matrix
from otpr_policy.spec import Array
from otpr_sim.experts.script import CLOSING_STEPS, OPEN, POINTING_DOWN, UP, Move, ScriptedExpert
from otpr_sim.tasks.square import HANDLE, PEG, PEG_TOP

APPROACH_HEIGHT = (0.06, 0.12)  # m above the nut; each episode draws its own
GRASP_HEIGHT = -0.004  # m, grip site relative to the nut's centre
GRASP = (0.006, 0.003)  # m, mean and standard deviation of how much farther out than the handle's middle an episode grasps
CARRY_HEIGHT = PEG_TOP + 0.07  # m, base frame, of the nut
OVER_HEIGHT = PEG_TOP + 0.025  # m: the nut, 2 cm high, is just above the peg
PLACE_HEIGHT = PEG_TOP - 0.06  # m: the peg holds the nut, which falls the rest
LOST = 0.1  # m between hand and nut
NEAR, NEAR_IN_TRANSIT, NEAR_PEG = 0.01, 0.03, 0.006  # m; the hole has 6.7 mm of play
ALIGNED = 0.06  # rad


class SquareExpert(ScriptedExpert):
    """See experts.expert for the arguments."""

    def script(self) -> Iterator[Move]:
        """See ScriptedExpert."""
        self._handle = np.array(HANDLE) + np.array([self.rng.normal(*GRASP), 0.0, 0.0])
        height = self.rng.uniform(*APPROACH_HEIGHT)
        while True:
            yield from self.reach(lambda: (self.handle + height * UP, self._grasp()), OPEN, NEAR, ALIGNED)
            yield from self.reach(lambda: (self.handle + GRASP_HEIGHT * UP, self._grasp()), OPEN, NEAR, ALIGNED)
            yield from self.stay(CLOSING_STEPS, self._grasp(), 0.0)
            yield from self._carry(lambda: np.append(self.nut[:2], CARRY_HEIGHT), NEAR_IN_TRANSIT)
            yield from self._carry(lambda: np.append(PEG, CARRY_HEIGHT), NEAR_IN_TRANSIT, ALIGNED)
            yield from self._carry(lambda: np.append(PEG, OVER_HEIGHT), NEAR_PEG, ALIGNED)
            yield from self._carry(lambda: np.append(PEG, PLACE_HEIGHT), NEAR)
            yield from self.stay(CLOSING_STEPS, self._hand_for(self._wanted()), OPEN)
            yield from self.reach(lambda: (np.append(self.hand[:2], CARRY_HEIGHT), POINTING_DOWN), OPEN, NEAR_IN_TRANSIT)

    @property
    def nut(self) -> Array:
        """Where the nut's centre is (3,) [m]."""
        return self.seen["nut_position"]

    @property
    def nut_rotation(self) -> Array:
        """How the nut is turned (3, 3)."""
        return columns_to_matrix(self.seen["nut_rotation"])

    @property
    def handle(self) -> Array:
        """Where the hand is to grasp (3,) [m]."""
        return self.nut + self.nut_rotation @ self._handle

    def _yaw(self) -> float:
        x, y, _ = self.nut_rotation[:, 0]
        return float(np.arctan2(y, x))

    def _grasp(self) -> Array:
        """Rotation of a hand that points down with its fingers on both sides of the handle: the nearer of two."""
        return _down((self._yaw() + np.pi / 2) % np.pi - np.pi / 2)

    def _wanted(self) -> float:
        """Yaw of the nut for which the square hole fits the peg: the nearest of three. With the handle away from the base it is too far."""
        return float(min((np.pi / 2, np.pi, -np.pi / 2), key=lambda yaw: 1.0 - np.cos(yaw - self._yaw())))

    def _hand_for(self, yaw: float) -> Array:
        """Rotation of the hand that turns the nut, as it lies in the hand, level and to a yaw."""
        hand = columns_to_matrix(self.seen["ee_rotation"])
        return rotation_vector_to_matrix(yaw * UP) @ self.nut_rotation.T @ hand

    def _carry(self, goal: Callable[[], Array], near: float, turned: float = np.inf) -> Iterator[Move]:
        """Brings the nut to a position with a closed hand, or not at all or not on when the nut is not in it."""
        for move in self.reach(lambda: (self.hand + goal() - self.nut, self._hand_for(self._wanted())), 0.0, near, turned):
            if np.linalg.norm(self.nut - self.hand) > LOST:
                return
            yield move


def _down(yaw: float) -> Array:
    return rotation_vector_to_matrix(yaw * UP) @ POINTING_DOWN
