# SPDX-License-Identifier: Apache-2.0
"""The last observations of an episode, as a policy is shown them."""

from collections import deque

import numpy as np

from otpr_policy.spec import Array


class ObservationHistory:
    """The last To observations of an episode. Where there is no past yet, the first is repeated, as in training."""

    def __init__(self, horizon: int) -> None:
        """An empty history of ``horizon`` = To steps."""
        self._steps: deque[Array] = deque(maxlen=horizon)

    def clear(self) -> None:
        """Drops everything: the next observation is a first one."""
        self._steps.clear()

    def append(self, observation: Array) -> None:
        """Adds an observation (Do,); the caller may use its array again."""
        observation = observation.copy()
        if not self._steps:
            assert self._steps.maxlen is not None
            self._steps.extend([observation] * (self._steps.maxlen - 1))
        self._steps.append(observation)

    def stack(self) -> Array:
        """(To, Do), oldest first."""
        return np.stack(self._steps)

    def resized(self, horizon: int) -> "ObservationHistory":
        """The same past seen by a policy of another horizon; steps that were not kept are the oldest one repeated."""
        other = ObservationHistory(horizon)
        for observation in list(self._steps)[-horizon:]:
            other.append(observation)
        return other
