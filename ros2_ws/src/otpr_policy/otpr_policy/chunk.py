# SPDX-License-Identifier: Apache-2.0
"""Receding-horizon execution of action chunks: infer Ta actions, carry out the first few, infer again.

Evaluation in simulation and the control loop on the robot both use this class; a policy that is judged with one
timing and deployed with another is judged wrongly.
"""

from collections import deque
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from otpr_policy.spec import Array, PolicySpec


class ChunkPolicy(Protocol):
    """Anything that turns observations and noise into a chunk of actions: a network in training, an artifact on the robot."""

    @property
    def spec(self) -> PolicySpec:
        """What it reads and writes."""

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the standard normal numbers that one inference consumes."""

    def infer(self, observation: NDArray[Any], noise: NDArray[Any], previous: NDArray[Any] | None = None) -> Array:
        """Observations (To, Do) and noise (noise_shape) to actions (Ta, Da), in physical units.

        ``previous``: what the last inference yielded (Ta, Da), None at a start; given only if ``spec.reads_previous``.
        """


def episode_rng(seed: int, episode: int) -> np.random.Generator:
    """The noise of one episode. Evaluation and node draw from the same stream, so that they can be compared step by step."""
    return np.random.default_rng(np.random.SeedSequence((seed, episode), spawn_key=(1,)))


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


class RecedingHorizon:
    """Stacks the last To observations, infers when a chunk is used up, and hands out one action per control step."""

    def __init__(self, policy: ChunkPolicy) -> None:
        self._policy = policy
        self._history = ObservationHistory(policy.spec.observation_horizon)
        self._chunk: Array = np.empty((0, policy.spec.action.size))
        self._next = 0
        self._rng: np.random.Generator | None = None

    def reset(self, rng: np.random.Generator) -> None:
        """Starts an episode: no past, and noise from ``rng`` from here on."""
        self._rng = rng
        self.forget()

    def forget(self) -> None:
        """Drops history and chunk, for instance after a hold: what was seen and planned before it is no answer to the world after it."""
        self._history.clear()
        self._chunk = self._chunk[:0]
        self._next = 0

    @property
    def inference_due(self) -> bool:
        """Whether the next call of :meth:`act` runs the network."""
        return self._next >= min(len(self._chunk), self._policy.spec.executed_length)

    def act(self, observation: Array) -> Array:
        """The action (Da,) for this control step, given its observation (Do,)."""
        if self._rng is None:
            raise RuntimeError("reset() comes before act()")
        self._history.append(observation)
        if self.inference_due:
            noise = self._rng.standard_normal(self._policy.noise_shape)
            known = (self._chunk,) if self._policy.spec.reads_previous and len(self._chunk) else ()
            chunk = self._policy.infer(self._history.stack(), noise, *known)
            if len(chunk) != self._policy.spec.chunk_length:
                raise ValueError(f"the policy yields {len(chunk)} actions, its spec says {self._policy.spec.chunk_length}")
            self._chunk = chunk
            self._next = 0
        action: Array = self._chunk[self._next].copy()
        self._next += 1
        return action
