# SPDX-License-Identifier: Apache-2.0
"""Experts written as scripts: a generator yields one move of the hand per control step and reads what is seen meanwhile."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from otpr_policy.rotation import columns_to_matrix, matrix_to_rotation_vector
from otpr_policy.spec import Array
from otpr_sim.tasks.panda import ACTION

UP = np.array([0.0, 0.0, 1.0])
GAIN = 2.0  # commanded delta per metre of remaining way; the controller covers about half of a delta in one step
TURN_GAIN = 1.0
TURN_LIMIT = 0.25  # rad per step
ROTATION_NOISE = 0.3  # of the noise on positions; objects slip from a hand that tilts more
OPEN = ACTION["gripper_position"].high[0]  # m
CLOSING_STEPS = 9
POINTING_DOWN = np.array(
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]]
)  # the hand's axes, in the base frame; the first joins the fingers


@dataclass(frozen=True)
class Move:
    """What the hand is to do in one control step.

    Args:
        way: where it shall still go (3,) [m].
        turn: how it shall still turn, rotation vector in the base frame (3,) [rad].
        finger: where each finger shall be [m].
    """

    way: Array
    turn: Array
    finger: float


class ArmCommands:
    """Turns moves into actions: proportional, limited, noisy. The limit differs from episode to episode."""

    def __init__(self, rng: np.random.Generator, noise: float, speed: float) -> None:
        self._rng = rng
        self._noise = noise
        self._style = speed * rng.uniform(0.8, 1.0)

    def action(self, move: Move) -> Array:
        """Action (7,) within bounds."""
        limit = self._style * ACTION["ee_position_delta"].high[0]
        turn_limit = self._style * TURN_LIMIT
        clean = ACTION.flatten(
            {
                "ee_position_delta": np.clip(GAIN * move.way, -limit, limit),
                "ee_rotation_delta": np.clip(TURN_GAIN * move.turn, -turn_limit, turn_limit),
                "gripper_position": np.array([move.finger]),
            }
        )
        return np.clip(clean + self._draw_noise(), ACTION.low, ACTION.high)

    def _draw_noise(self) -> Array:
        """Noise on position and rotation deltas (7,); none on the gripper, which is either open or closed."""
        scale = self._noise * ACTION.high * np.repeat([1.0, ROTATION_NOISE, 0.0], [3, 3, 1])
        return scale * self._rng.standard_normal(len(scale))


class ScriptedExpert(ABC):
    """Base of experts whose play is one generator.

    Attributes:
        seen: the newest observation; changes while the script waits for its next turn.
        rng: source of the episode's style.
    """

    seen: Mapping[str, Array]

    def __init__(self, rng: np.random.Generator, noise: float, speed: float) -> None:
        self.rng = rng
        self._commands = ArmCommands(rng, noise, speed)
        self._moves = self.script()

    @abstractmethod
    def script(self) -> Iterator[Move]:
        """All moves of an episode, without end."""

    def act(self, observation: Mapping[str, Array]) -> Array:
        """Action (7,) within bounds for a named observation of the task."""
        self.seen = observation
        return self._commands.action(next(self._moves))

    @property
    def hand(self) -> Array:
        """Where the hand is (3,) [m]."""
        return self.seen["ee_position"]

    def move(self, goal: Array, rotation: Array, finger: float) -> Move:
        """The move towards a position (3,) and a rotation (3, 3) of the hand."""
        turn = matrix_to_rotation_vector(rotation @ columns_to_matrix(self.seen["ee_rotation"]).T)
        return Move(goal - self.hand, turn, finger)

    def reach(self, goal: Callable[[], tuple[Array, Array]], finger: float, near: float, turned: float = np.inf) -> Iterator[Move]:
        """Moves until the hand is ``near`` [m] the goal, a position and a rotation that may move, and ``turned`` [rad] like it."""
        while True:
            position, rotation = goal()
            move = self.move(position, rotation, finger)
            if np.linalg.norm(move.way) < near and np.linalg.norm(move.turn) < turned:
                return
            yield move

    def stay(self, steps: int, rotation: Array, finger: float) -> Iterator[Move]:
        """Stays in place for a number of control steps, for the fingers to get where they shall be."""
        for _ in range(steps):
            yield self.move(self.hand, rotation, finger)
