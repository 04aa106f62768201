# SPDX-License-Identifier: Apache-2.0
"""What a policy of action chunks is, and the noise that it is given."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from otpr_policy.spec import Array, PolicySpec
from otpr_policy.timeline import Committed


class ChunkPolicy(Protocol):
    """Anything that turns observations and noise into a chunk of actions: a network in training, an artifact on the robot."""

    @property
    def spec(self) -> PolicySpec:
        """What it reads and writes."""

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the standard normal numbers that one inference consumes."""

    def infer(
        self,
        observation: NDArray[Any],
        noise: NDArray[Any],
        previous: NDArray[Any] | None = None,
        committed: Committed | None = None,
    ) -> Array:
        """Observations (To, Do) and noise (noise_shape) to actions (Ta, Da), in physical units.

        ``previous``: what the last inference yielded (Ta, Da), None at a start; given only if ``spec.reads_previous``.
        ``committed``: what is decided already, None where nothing is; given only if ``spec.reads_committed``.
        """


def episode_rng(seed: int, episode: int) -> np.random.Generator:
    """The noise of one episode. Evaluation and node draw from the same stream, so that they can be compared step by step."""
    return np.random.default_rng(np.random.SeedSequence((seed, episode), spawn_key=(1,)))
