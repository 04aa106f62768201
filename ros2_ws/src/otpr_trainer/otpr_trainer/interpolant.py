# SPDX-License-Identifier: Apache-2.0
"""Stochastic interpolants: how a sample of a source becomes one of the data, and the chain that carries it there in few steps.

BRIDGER (Chen et al. 2024, arXiv 2402.16075), after Albergo et al. 2023 (arXiv 2303.08797). x_0 is a sample of the source, x_1 of the
data, t in [0, 1]:

    x_t = a(t) x_0 + b(t) x_1 + gamma(t) z,      z = d eps,  eps ~ N(0, I)

The paper regresses the time derivative of the interpolant and integrates it with Euler steps. With a form that starts fast (power3) one
such step overshoots fivefold. We regress what does not depend on t, the displacement x_1 - x_0 and the noise z, and a step from t to t'
takes the exact differences of the coefficients:

    x_t' = x_t + (b(t') - b(t)) E[x_1 - x_0 | x_t] + (g - gamma(t)) E[z | x_t] + s eps',
    s^2 = d^2 min(2 eta eps(t) |t' - t|, gamma(t')^2),      g^2 = gamma(t')^2 - s^2 / d^2

With eta = 0 and ever smaller steps that is the probability-flow ODE of the paper, with eta = 1 its SDE of diffusion eps(t), since
E[z | x_t] = -gamma d^2 score. One step from t = 0 is E[x_1 | x_0], for every form: the mean has no bias at any number of steps.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otpr_policy.errors import RunError, unknown
from otpr_policy.spec import Array
from otpr_trainer.diffusion import Chain, Known

SAMPLER = "bridge"

Schedule = Callable[[Tensor], Tensor]
"""A coefficient at times t in [0, 1]."""

ENCODE_DECODE = "encode_decode"
_FORMS: dict[str, tuple[Schedule, Schedule]] = {
    "linear": (lambda t: 1 - t, lambda t: t),
    "power3": (lambda t: (1 - t) ** 3, lambda t: 1 - (1 - t) ** 3),
    "power4": (lambda t: (1 - t) ** 4, lambda t: 1 - (1 - t) ** 4),
    "reverse_power3": (lambda t: 1 - t**3, lambda t: t**3),
    "reverse_power4": (lambda t: 1 - t**4, lambda t: t**4),
    "reverse_linear": (lambda t: (1 - 2 * t).clamp(min=0), lambda t: (2 * t).clamp(max=1)),
    ENCODE_DECODE: (lambda t: torch.cos(math.pi * t) ** 2 * (t <= 0.5), lambda t: torch.cos(math.pi * t) ** 2 * (t > 0.5)),
}
_GAMMAS: dict[str, Schedule] = {
    "root": lambda t: (2 * t * (1 - t)).sqrt(),
    "parabola": lambda t: math.sqrt(2) * t * (1 - t),
    "early": lambda t: math.sqrt(2) * (1 - t) ** 2 * t.sqrt(),
}
_EPSILONS: dict[str, Schedule] = {
    "linear": lambda t: 1 - t,
    "parabola": lambda t: t * (1 - t),
    "root": lambda t: 1 - t.sqrt(),
    "square": lambda t: 1 - t**2,
    "none": torch.zeros_like,
}
FORMS, GAMMAS, EPSILONS = tuple(_FORMS), tuple(_GAMMAS), tuple(_EPSILONS)


@dataclass(frozen=True)
class Interpolant:
    """A form a, b, a schedule gamma of the noise within, a schedule eps of the diffusion in sampling, and the noise's scale d.

    Raises:
        RunError: a name that does not exist, or a scale that is negative or not finite.
    """

    form: str = "linear"
    gamma: str = "root"
    epsilon: str = "linear"
    noise_scale: float = 0.03

    def __post_init__(self) -> None:
        for what, name, known in (("form", self.form, FORMS), ("gamma", self.gamma, GAMMAS), ("epsilon", self.epsilon, EPSILONS)):
            if name not in known:
                raise RunError(unknown(what, name, known))
        if not 0.0 <= self.noise_scale < math.inf:
            raise RunError(f"noise_scale must be a number of at least 0, got {self.noise_scale}")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Interpolant":
        """Parses ``dataclasses.asdict``'s form. Raises KeyError, TypeError, ValueError or RunError."""
        return cls(str(data["form"]), str(data["gamma"]), str(data["epsilon"]), float(data["noise_scale"]))

    @property
    def conserving(self) -> bool:
        """Whether a + b = 1 at all times, so that the displacement alone says where x_t goes."""
        return self.form != ENCODE_DECODE

    @property
    def heads(self) -> int:
        """H, how many chunks the network predicts; see :meth:`targets`."""
        return (1 if self.conserving else 2) + (self.noise_scale > 0.0)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a, b and gamma at times t, each of t's shape."""
        a, b = _FORMS[self.form]
        return a(t), b(t), _GAMMAS[self.gamma](t)

    def point(self, t: Tensor, x_0: Tensor, x_1: Tensor, z: Tensor) -> Tensor:
        """x_t. t: (B,); x_0, x_1, z: (B, ...)."""
        a, b, gamma = (coefficient.reshape(-1, *[1] * (x_0.ndim - 1)) for coefficient in self.coefficients(t))
        return a * x_0 + b * x_1 + gamma * z

    def targets(self, x_0: Tensor, x_1: Tensor, z: Tensor) -> Tensor:
        """What the network regresses, (B, H, ...): the displacement, or both ends where a + b is not 1; then z, if there is noise.

        All are in units of x, so that equal errors move a sample alike. x_0, x_1, z: (B, ...).
        """
        ends = [x_1 - x_0] if self.conserving else [x_0, x_1]
        return torch.stack([*ends, *([z] if self.noise_scale > 0.0 else [])], dim=1)

    def forward(self, steps: int, eta: float, train_steps: int, clip: float = 1.0) -> "InterpolantChain":
        """From source to data in ``steps`` equal steps of t; with none a sample stays where it starts.

        Args:
            steps: n, 0 or more.
            eta: share of the diffusion eps(t), 0 (ODE) to 1.
            train_steps: K; t is shown to the network as K t.
            clip: the sample is cut to [-clip, clip]; infinity for unbounded data.

        Raises:
            RunError: steps or eta out of range.
        """
        return self._chain(np.linspace(0.0, 1.0, steps + 1) if steps >= 0 else (), steps, eta, train_steps, clip)

    def backward(self, steps: int, eta: float, train_steps: int) -> "InterpolantChain":
        """From data to source; see :meth:`forward`."""
        return self._chain(np.linspace(1.0, 0.0, steps + 1) if steps >= 0 else (), steps, eta, train_steps, math.inf)

    def _chain(self, times: Iterable[float], steps: int, eta: float, train_steps: int, clip: float) -> "InterpolantChain":
        if steps < 0:
            raise RunError(f"{steps} steps of an interpolant cannot be; give 0 (the source alone) or more")
        if not 0.0 <= eta <= 1.0:
            raise RunError(f"eta {eta} is not in [0, 1]")
        t = torch.as_tensor(np.asarray(times), dtype=torch.float64)
        a, b, gamma = self.coefficients(t)
        fresh = torch.minimum(2.0 * eta * _EPSILONS[self.epsilon](t[:-1]) * t.diff().abs(), gamma[1:] ** 2)
        ends = [b.diff()] if self.conserving else [a.diff(), b.diff()]
        noise = [(gamma[1:] ** 2 - fresh).sqrt() - gamma[:-1]] if self.noise_scale > 0.0 else []
        return InterpolantChain(
            sampler=SAMPLER,
            eta=eta,
            train_steps=train_steps,
            timesteps=tuple(float(train_steps * time) for time in t[:-1]),
            std=self.noise_scale * fresh.sqrt().numpy(),
            weights=torch.stack([*ends, *noise], dim=1).numpy(),
            clip=clip,
        )


@dataclass(frozen=True, eq=False)
class InterpolantChain(Chain):
    """Steps along an interpolant.

    Args:
        weights: of each head's prediction at each step, (n, H): the exact differences of a, b and gamma.
        clip: the last result is cut to [-clip, clip].
    """

    weights: Array
    clip: float

    def mean(self, step: int, x: Tensor, prediction: Tensor, known: Known | None = None) -> Tensor:
        """x_t plus the weighted heads. x: (B, ...); prediction: (B, H, ...)."""
        assert known is None, "a bridge's heads predict no clean sample to paint"
        for head, weight in enumerate(self.weights[step]):
            x = x + float(weight) * prediction[:, head]
        return x.clamp(-self.clip, self.clip) if step == self.steps - 1 else x
