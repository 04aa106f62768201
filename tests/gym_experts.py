# SPDX-License-Identifier: Apache-2.0
"""Experts for Gymnasium tasks, as a user would bring them: made from a generator, acting on named fields."""

import numpy as np

from otpr_policy.spec import Array

OPEN, CLOSED = 1.0, -1.0
ABOVE = np.array([0.0, 0.0, 0.05])  # m


class PickAndPlace:
    """Fetch: over the block, down, close, to the goal. An action of 1 moves the hand by about 0.03 m."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._closing = 0

    def act(self, observation: dict[str, Array]) -> Array:
        hand, block = observation["observation"][:3], observation["observation"][3:6]
        way, fingers = block - hand, OPEN
        if self._closing > 4:
            way, fingers = observation["desired_goal"] - block, CLOSED
        elif np.linalg.norm(way) < 0.02 or self._closing:
            self._closing += 1
            way, fingers = np.zeros(3), CLOSED
        elif np.linalg.norm(way[:2]) > 0.01:
            way = block + ABOVE - hand
        return np.append(np.clip(way / 0.05 * 2.0 + 0.02 * self._rng.standard_normal(3), -1.0, 1.0), fingers)


class Constant:
    """The same action in every step, beyond the bounds."""

    def __init__(self, rng: np.random.Generator) -> None:
        pass

    def act(self, observation: dict[str, Array]) -> Array:
        return np.full(28, 5.0, dtype=np.float32)


class Silent:
    """Not an expert."""

    def __init__(self, rng: np.random.Generator) -> None:
        pass
