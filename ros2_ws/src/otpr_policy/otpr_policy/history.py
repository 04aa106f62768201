# SPDX-License-Identifier: Apache-2.0
"""The last observations of an episode, as a policy is shown them."""

from collections import deque

import numpy as np

from otpr_policy.spec import Array

_MEMORY = 16  # observations kept beyond what is shown, for a policy with a longer horizon that takes over


class ObservationHistory:
    """The last To observations of an episode. Where there is no past yet, the first is repeated, as in training."""

    def __init__(self, horizon: int) -> None:
        """An empty history of ``horizon`` = To steps."""
        self._horizon = horizon
        self._steps: deque[Array] = deque(maxlen=max(horizon, _MEMORY))

    def clear(self) -> None:
        """Drops everything: the next observation is a first one."""
        self._steps.clear()

    def append(self, observation: Array) -> None:
        """Adds an observation (Do,); the caller may use its array again."""
        self._steps.append(observation.copy())

    def stack(self) -> Array:
        """(To, Do), oldest first."""
        shown = list(self._steps)[-self._horizon :]
        return np.stack([shown[0]] * (self._horizon - len(shown)) + shown)

    def resized(self, horizon: int) -> "ObservationHistory":
        """The same past, for a policy that is shown another number of steps."""
        other = ObservationHistory(horizon)
        other._steps.extend(self._steps)
        return other
