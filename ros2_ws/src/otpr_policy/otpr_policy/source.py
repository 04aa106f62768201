# SPDX-License-Identifier: Apache-2.0
"""Where the control loop's actions come from: a policy, an operator, or both with one of them in command.

Whoever acts, the loop holds the action to the same limits and makes the same target of it (control.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np

from otpr_policy.chunk import ChunkPolicy, RecedingHorizon
from otpr_policy.observation import Missing
from otpr_policy.spec import Array, VectorSpec


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
        inferred: whether a network ran for it.
    """

    vector: Array
    commander: Commander
    inferred: bool = False


class ActionSource(Protocol):
    """What the control loop asks for one action per tick. Called under the loop's lock."""

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

    def act(self, values: Mapping[str, Array], now_ns: int) -> Action | Missing:
        """The action for an observation at ``now_ns`` on the data's clock, or why there is none."""


class PolicySource:
    """Actions of a chunk policy."""

    def __init__(self, policy: ChunkPolicy) -> None:
        self._horizon = RecedingHorizon(policy)
        spec = policy.spec
        self.observation, self.action, self.control_rate_hz = spec.observation, spec.action, spec.control_rate_hz
        self.trained_on: VectorSpec | None = spec.observation

    def refusal(self, now_ns: int) -> str | None:
        """A policy can act at any time."""
        return None

    def reset(self, rng: np.random.Generator) -> None:
        """See ActionSource; the noise is ``rng``'s from here on."""
        self._horizon.reset(rng)

    def forget(self) -> None:
        """See ActionSource."""
        self._horizon.forget()

    def act(self, values: Mapping[str, Array], now_ns: int) -> Action:
        """See ActionSource."""
        inferred = self._horizon.inference_due
        return Action(self._horizon.act(self.observation.flatten(values)), Commander.POLICY, inferred)
