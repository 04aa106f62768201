# SPDX-License-Identifier: Apache-2.0
"""Where the control loop's actions come from: a policy, an operator, or both with one of them in command.

Whoever acts, the loop holds the action to the same limits and makes the same target of it (control.py).
"""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np

from otpr_policy.chunk_executor import ChunkExecutor
from otpr_policy.lanes import Lanes
from otpr_policy.observation import Missing, Observation
from otpr_policy.spec import Array, VectorSpec
from otpr_policy.timeline import Gap


class Commander(Enum):
    """Who an action is from. Each command carries it, so that a recording tells the operator's steps from the policy's."""

    POLICY = "policy"
    OPERATOR = "operator"


@dataclass(frozen=True, eq=False)
class Action:
    """What a source wants at one tick.

    Args:
        vector: (Da,) in the order of the source's action fields, physical units.
        commander: who it is from.
    """

    vector: Array
    commander: Commander


class ActionSource(Protocol):
    """What the control loop asks for one action per tick. Called under the loop's lock."""

    @property
    def executor(self) -> ChunkExecutor | None:
        """What carries out a policy's chunks; None where there is no policy."""

    @property
    def observation(self) -> VectorSpec:
        """The fields without which there is no action."""

    @property
    def action(self) -> VectorSpec:
        """The fields of an action and their bounds."""

    @property
    def control_rate_hz(self) -> float:
        """Actions per second."""

    @property
    def trained_on(self) -> VectorSpec | None:
        """The ranges that an observation must be near; None while a person acts, who needs none."""

    def refusal(self, now_ns: int) -> str | None:
        """None when it can act at ``now_ns``, or why not."""

    def reset(self, rng: np.random.Generator) -> None:
        """The robot was engaged: no past."""

    def forget(self) -> None:
        """The robot held: what was planned before is no answer to the world after it."""

    def act(self, observation: Observation, tick: int, now_ns: int) -> Action | Missing | Gap:
        """The action of a control tick, which is at ``now_ns`` on the data's clock, or why there is none.

        Ticks ascend, by more than 1 after some were skipped.
        """


class PolicySource:
    """Actions of a chunk policy."""

    def __init__(self, lanes: Lanes) -> None:
        """``lanes``: where the policy turns observations into chunks."""
        self.executor: ChunkExecutor | None = ChunkExecutor(lanes)
        self._executor = self.executor

    @property
    def observation(self) -> VectorSpec:
        """See ActionSource; of the policy that acts, which may change."""
        return self._executor.lanes.spec.observation

    @property
    def action(self) -> VectorSpec:
        """See ActionSource."""
        return self._executor.lanes.spec.action

    @property
    def control_rate_hz(self) -> float:
        """See ActionSource."""
        return self._executor.lanes.spec.control_rate_hz

    @property
    def trained_on(self) -> VectorSpec | None:
        """See ActionSource."""
        return self.observation

    def refusal(self, now_ns: int) -> str | None:
        """A policy can act at any time."""
        return None

    def reset(self, rng: np.random.Generator) -> None:
        """See ActionSource; the noise is ``rng``'s from here on."""
        self._executor.reset(rng)

    def forget(self) -> None:
        """See ActionSource."""
        self._executor.forget()

    def act(self, observation: Observation, tick: int, now_ns: int) -> Action | Gap:
        """See ActionSource."""
        action = self._executor.act(tick, self.observation.flatten(observation.values), observation.stamp_ns)
        return action if isinstance(action, Gap) else Action(action.vector, Commander.POLICY)
