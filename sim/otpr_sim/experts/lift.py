# SPDX-License-Identifier: Apache-2.0
"""Lift, scripted: over the cube, down, close, up."""

from collections.abc import Mapping
from enum import Enum, auto

import numpy as np

from otpr_policy.spec import Array
from otpr_sim.experts.script import CLOSING_STEPS, OPEN, UP, ArmCommands, Move

APPROACH_HEIGHT = (0.06, 0.12)  # m above the cube's centre; each episode draws its own
GRASP_HEIGHT = -0.002  # m, grip site relative to the cube's centre
CENTRING = 0.004  # m, standard deviation of where along the cube an episode grasps
REACHED = 0.012  # m
LIFT_DELTA = 0.1  # m


class Phase(Enum):
    """What the hand is doing."""

    APPROACH = auto()
    DESCEND = auto()
    CLOSE = auto()
    LIFT = auto()


class LiftExpert:
    """A waypoint controller with a style (height, grasp point, speed) drawn per episode. See experts.expert for the arguments."""

    def __init__(self, rng: np.random.Generator, noise: float, speed: float) -> None:
        self._offset = np.append(rng.normal(0.0, CENTRING, 2), 0.0)
        self._height = rng.uniform(*APPROACH_HEIGHT)
        self._commands = ArmCommands(rng, noise, speed)
        self._phase = Phase.APPROACH
        self._closing = 0

    def act(self, observation: Mapping[str, Array]) -> Array:
        """Action (7,) within bounds for a named observation of the task."""
        hand = observation["ee_position"]
        grasp = observation["cube_position"] + self._offset
        self._advance_phase(hand, grasp)
        way = {
            Phase.APPROACH: grasp + self._height * UP - hand,
            Phase.DESCEND: grasp + GRASP_HEIGHT * UP - hand,
            Phase.CLOSE: np.zeros(3),
            Phase.LIFT: LIFT_DELTA * UP,
        }[self._phase]
        closed = self._phase in (Phase.CLOSE, Phase.LIFT)
        return self._commands.action(Move(way, np.zeros(3), 0.0 if closed else OPEN))

    def _advance_phase(self, hand: Array, grasp: Array) -> None:
        if self._phase is Phase.APPROACH and np.hypot(*(grasp - hand)[:2]) < REACHED:
            self._phase = Phase.DESCEND
        if self._phase is Phase.DESCEND and abs(grasp[2] + GRASP_HEIGHT - hand[2]) < REACHED:
            self._phase = Phase.CLOSE
        if self._phase is Phase.CLOSE:
            if self._closing == CLOSING_STEPS:
                self._phase = Phase.LIFT
            self._closing += 1
