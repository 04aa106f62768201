# SPDX-License-Identifier: Apache-2.0
"""What a squashed Gaussian is to a policy: the policy itself, or an actor beside a diffusion that is left as it is."""

from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Any

import numpy as np
from torch import Tensor

from otpr_policy.errors import RunError
from otpr_trainer.diffusion import Chain, Known

SAMPLER = "gaussian"


class Role(str, Enum):
    """What the Gaussian is for."""

    POLICY = "policy"  # its chunk is the action; there is no diffusion
    NOISE = "noise"  # its chunk is where the diffusion's chain starts
    RESIDUAL = "residual"  # its chunk is added to the one that the diffusion's chain ends with


@dataclass(frozen=True)
class GaussianConfig:
    """What a Gaussian is built from.

    Args:
        role: what it is for.
        width: units per hidden layer.
        depth: hidden layers.
        scale: its chunk is in (-scale, scale), normalised.
        steps: of the deterministic DDIM chain whose start it chooses, for the role NOISE alone; else None.

    Raises:
        RunError: a number is out of range.
    """

    role: Role
    width: int
    depth: int
    scale: float = 1.0
    steps: int | None = None

    def __post_init__(self) -> None:
        if min(self.width, self.depth) < 1 or not 0 <= self.scale < inf or (self.steps is None) == (self.role is Role.NOISE):
            raise RunError(f"a Gaussian's numbers do not go together: {self}")

    def to_json(self) -> dict[str, Any]:
        """Plain data for a run's config.json."""
        return {"role": self.role.value, "width": self.width, "depth": self.depth, "scale": self.scale, "steps": self.steps}

    @classmethod
    def from_json(cls, data: Any) -> "GaussianConfig":
        """Parses :meth:`to_json`'s form. Raises KeyError, TypeError, ValueError or RunError."""
        steps = None if data["steps"] is None else int(data["steps"])
        return cls(Role(data["role"]), int(data["width"]), int(data["depth"]), float(data["scale"]), steps)


@dataclass(frozen=True, eq=False)
class OnePass(Chain):
    """The chain of a policy that has none: one step, whose result is what the network says."""

    def mean(self, step: int, x: Tensor, prediction: Tensor, known: Known | None = None) -> Tensor:
        """The prediction."""
        assert known is None, "there is no chain to paint into"
        return prediction


def one_pass() -> OnePass:
    """One step without noise."""
    return OnePass(sampler=SAMPLER, eta=0.0, train_steps=1, timesteps=(0,), std=np.zeros(1))
