# SPDX-License-Identifier: Apache-2.0
"""Which keys of ``otpr teleop`` a person would hold to lift the cube: what they see is where hand and cube are."""

from enum import Enum, auto

import numpy as np

from otpr_operator.teleop.session import SPEEDS, START
from otpr_policy.spec import Array

LOOK_S = 0.05  # between two looks; a key that is held repeats about as often
RELEASE = "."  # no key of teleoperation: nothing is held any more
_KEYS = ("ws", "ad", "rf")  # forward and back along x, y, z
_OPEN, _CLOSE, _FASTER, _SLOWER = "v", "c", "+", "-"
_NEAR = 0.006  # m; the fingers have 18 mm on each side of the cube
_GRASP_HEIGHT = -0.002  # m, grip site relative to the cube's centre
_CLEARANCE = 0.05  # m above the cube's centre, until the hand is over it
_REACTION_S = 0.2  # from a look to the hand's obeying: a speed that covers the way within it is too fast
_CLOSING_S = 0.6
_LIFT_SPEED = 3  # index in SPEEDS


class Stage(Enum):
    """What the hand is doing."""

    REACH = auto()
    CLOSE = auto()
    LIFT = auto()


class LiftKeys:
    """One attempt. Speeds and distances are a person's: fast while the cube is far, tapping when it is near."""

    def __init__(self, fastest_m_s: float, level: int = START) -> None:
        """Begins an attempt.

        Args:
            fastest_m_s: what the contract allows an operator.
            level: of the speed that teleoperation has now, an index in SPEEDS.
        """
        self._speeds = fastest_m_s * np.array(SPEEDS)
        self.level = level
        self.stage = Stage.REACH
        self._begun = False
        self._closing_s = 0.0

    def look(self, hand: Array, cube: Array) -> str:
        """The keys to press now, in order, at one look of LOOK_S. ``hand`` and ``cube``: where they are (3,) [m]."""
        keys = "" if self._begun else _OPEN
        self._begun = True
        if self.stage is Stage.REACH:
            way = way_to_grasp(hand, cube)
            if np.abs(way).max() > _NEAR:
                return keys + self._towards(way)
            self.stage = Stage.CLOSE
            return keys + RELEASE + _CLOSE
        if self.stage is Stage.CLOSE:
            self._closing_s += LOOK_S
            if self._closing_s < _CLOSING_S:
                return ""
            self.stage = Stage.LIFT
        return self._at(_LIFT_SPEED) + _KEYS[2][0]

    def _towards(self, way: Array) -> str:
        """Lets go of everything, and holds one key for each axis that has farther to go than the hand moves until the next look counts."""
        farthest = float(np.abs(way).max())
        allowed = np.flatnonzero(self._speeds * _REACTION_S <= farthest)
        keys = self._at(int(allowed[-1]) if len(allowed) else 0)
        reach = self._speeds[self.level] * _REACTION_S / 2
        return (
            keys + RELEASE + "".join(_KEYS[axis][0 if way[axis] > 0 else 1] for axis in range(3) if abs(way[axis]) > max(reach, _NEAR / 2))
        )

    def _at(self, level: int) -> str:
        steps = level - self.level
        self.level = level
        return (_FASTER if steps > 0 else _SLOWER) * abs(steps)


def way_to_grasp(hand: Array, cube: Array) -> Array:
    """(3,) how far the hand still has to go [m]: first beside, above the cube, then down."""
    way = cube + np.array([0.0, 0.0, _GRASP_HEIGHT]) - hand
    if np.abs(way[:2]).max() > _NEAR:
        way[2] = max(way[2], min(0.0, cube[2] + _CLEARANCE - hand[2]))
    return way
