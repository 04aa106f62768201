# SPDX-License-Identifier: Apache-2.0
"""A diffusion policy while it is fine-tuned: the network that learns, and its running average, which acts and is kept."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from otpr_trainer.checkpoint import optimizer_state, restore_optimizer, select
from otpr_trainer.policy import DiffusionPolicy
from otpr_trainer.sampler import ChunkSampler


@dataclass(frozen=True, eq=False)
class Targets:
    """Rows to imitate: ``condition`` (R, To * Do), clean normalised chunks ``x_0`` (R, Ta, Da), ``weight`` (R,)."""

    condition: Tensor
    x_0: Tensor
    weight: Tensor

    def rows(self, index: Tensor) -> "Targets":
        """The rows at ``index``."""
        return Targets(self.condition[index], self.x_0[index], self.weight[index])

    @classmethod
    def joined(cls, parts: "list[Targets]") -> "Targets":
        """All rows of all parts."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("condition", "x_0", "weight")))


class DiffusionActor(ChunkSampler):
    """Learns by denoising score matching; samples chunks of its average with eta 1, as the exported policy does.

    Attributes:
        learner: the network that gradient steps change.
        average: its exponential moving average.
    """

    def __init__(
        self, start: DiffusionPolicy, *, sampling_steps: int, learning_rate: float, ema_decay: float, generator: torch.Generator
    ) -> None:
        """Starts at ``start``, which is left alone. All randomness comes from ``generator``."""
        self.learner = copy.deepcopy(start).train().requires_grad_(True)
        self.average = copy.deepcopy(start).eval().requires_grad_(False)
        super().__init__(self.average, sampling_steps=sampling_steps, generator=generator)
        self._ema_decay = ema_decay
        self._optimizer = torch.optim.AdamW(self.learner.parameters(), learning_rate, weight_decay=1e-6, fused=True)

    def denoising_loss(self, condition: Tensor, x_0: Tensor) -> Tensor:
        """|| eps - eps_theta(x_k, k, s) ||^2 of each row, mean over elements, (B,); k uniform (DDPM eq. 14).

        condition: (B, To * Do); x_0: normalised chunks (B, Ta, Da).
        """
        x_k, k, eps = self.noised(x_0)
        return ((eps - self.predicted_noise(x_k, k, condition)) ** 2).flatten(1).mean(1)

    def noised(self, x_0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_k (B, Ta, Da) of clean chunks x_0, the k (B,) that were drawn uniformly, and the noise eps (B, Ta, Da) in it."""
        k = torch.randint(self.learner.schedule.steps, (len(x_0),), generator=self._generator)
        eps = torch.randn(x_0.shape, generator=self._generator)
        return self.learner.schedule.add_noise(x_0, k, eps), k, eps

    def predicted_noise(self, x_k: Tensor, k: Tensor, condition: Tensor) -> Tensor:
        """eps_theta(x_k, k, s), (B, Ta, Da), of the network that learns. x_k: (B, Ta, Da); k: (B,); condition: (B, To * Do)."""
        eps_theta: Tensor = self.learner.network(x_k, k, condition)
        return eps_theta

    def cloning_loss(self, targets: Targets) -> Tensor:
        """E w || eps - eps_theta(x_k, k, s) ||^2: weighted cloning of some rows."""
        return (targets.weight * self.denoising_loss(targets.condition, targets.x_0)).mean()

    def step(self, loss: Tensor) -> Tensor:
        """One gradient step on ``loss``, and the average follows; returns the gradient's norm."""
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.learner.parameters() if p.grad is not None])
        self._optimizer.step()
        with torch.no_grad():  # or autograd would remember every step
            torch._foreach_lerp_(list(self.average.parameters()), list(self.learner.parameters()), 1.0 - self._ema_decay)
        return norm

    def learner_sample(self, condition: Tensor) -> Tensor:
        """A fresh normalised chunk of the network that learns in each state, (B, Ta, Da), with its gradient through all steps."""
        noise = torch.randn((len(condition), 1, *self.noise_shape), generator=self._generator)
        return self.chunks(self.learner.network, condition, noise)[:, 0]

    def tensors(self) -> dict[str, Tensor]:
        """State by name; the average as ``policy.*``, which is what evaluation and export read."""
        tensors = {f"policy.{name}": tensor for name, tensor in self.average.state_dict().items()}
        tensors |= {f"learner.{name}": tensor for name, tensor in self.learner.state_dict().items()}
        return tensors | optimizer_state(self._optimizer, "actor_optimizer.")

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of :meth:`tensors`. Raises RuntimeError on another network's."""
        self.average.load_state_dict(select(tensors, "policy."))
        self.learner.load_state_dict(select(tensors, "learner."))
        restore_optimizer(self._optimizer, tensors, "actor_optimizer.")
