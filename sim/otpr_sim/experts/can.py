# SPDX-License-Identifier: Apache-2.0
"""Can, scripted: over the can, down, close, up, over the compartment, down, open, away; from the start again when the can is lost."""

from collections.abc import Callable, Iterator

import numpy as np

from otpr_policy.spec import Array
from otpr_sim.experts.script import CLOSING_STEPS, OPEN, POINTING_DOWN, UP, Move, ScriptedExpert
from otpr_sim.tasks.can import COMPARTMENT, COMPARTMENT_SIZE

APPROACH_HEIGHT = (0.12, 0.18)  # m above the can's centre, which is 12 cm high; each episode draws its own
GRASP_HEIGHT = 0.01  # m, grip site relative to the can's centre
CENTRING = 0.004  # m, standard deviation of where along the can an episode grasps
CARRY_HEIGHT = 0.17  # m, base frame: the can clears the walls
PLACE = (-0.2, -0.12)  # of the compartment's size, from its middle: its far half is out of reach with the hand pointing down
PLACE_SPREAD = 0.05  # likewise, at most: where around there an episode puts the can
PLACE_HEIGHT = 0.075  # m, the can's centre above the floor, on which it stands at 0.06 m
LOST = 0.06  # m between hand and can
NEAR = 0.015  # m
NEAR_IN_TRANSIT = 0.03  # m


class CanExpert(ScriptedExpert):
    """See experts.expert for the arguments."""

    def script(self) -> Iterator[Move]:
        """See ScriptedExpert."""
        offset = np.append(self.rng.normal(0.0, CENTRING, 2), 0.0)
        height = self.rng.uniform(*APPROACH_HEIGHT)
        part = np.array(PLACE) + self.rng.uniform(-PLACE_SPREAD, PLACE_SPREAD, 2)
        place = np.array(COMPARTMENT) + np.append(part * COMPARTMENT_SIZE, 0.0)
        while True:
            yield from self._to(lambda: self.can + offset + height * UP, OPEN)
            yield from self._to(lambda: self.can + offset + GRASP_HEIGHT * UP, OPEN)
            yield from self.stay(CLOSING_STEPS, POINTING_DOWN, 0.0)
            yield from self._carry(lambda: np.append(self.hand[:2], CARRY_HEIGHT))
            yield from self._carry(lambda: np.append(place[:2], CARRY_HEIGHT))
            yield from self._carry(lambda: self.hand + place + PLACE_HEIGHT * UP - self.can, NEAR)
            yield from self.stay(CLOSING_STEPS, POINTING_DOWN, OPEN)
            yield from self._to(lambda: np.append(self.hand[:2], CARRY_HEIGHT), OPEN)

    @property
    def can(self) -> Array:
        """Where the can is (3,) [m]."""
        return self.seen["can_position"]

    def _to(self, goal: Callable[[], Array], finger: float, near: float = NEAR) -> Iterator[Move]:
        return self.reach(lambda: (goal(), POINTING_DOWN), finger, near)

    def _carry(self, goal: Callable[[], Array], near: float = NEAR_IN_TRANSIT) -> Iterator[Move]:
        """Goes there with a closed hand, or not at all or not on when the can is not in it."""
        for move in self._to(goal, 0.0, near):
            if np.linalg.norm(self.can - self.hand) > LOST:
                return
            yield move
