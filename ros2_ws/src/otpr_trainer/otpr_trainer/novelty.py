# SPDX-License-Identifier: Apache-2.0
"""Novelty of states, as a reward for going where one has not been.

A network learns to predict what another one, random and fixed, says of the states that were seen; where it is wrong, a state is new
(Burda et al. 2018, arXiv 1810.12894). A step earns what it leads to beyond half of where it began (NovelD, Zhang et al. 2021).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from otpr_trainer.checkpoint import optimizer_state, restore_optimizer, select

FEATURES = 32
LEFT_BEHIND = 0.5  # share of the first state's novelty that is subtracted; DDiffPG's released code
LEARNING_RATE = 1e-4  # as there


class Novelty:
    """A random network, and the one that learns to predict it."""

    def __init__(self, condition_size: int, width: int, seed: int) -> None:
        """``condition_size``: of the policy's condition. ``width``: units of the hidden layer. ``seed``: of both networks' weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._random, self._predictor = (
                nn.Sequential(nn.Linear(condition_size, width), nn.ReLU(), nn.Linear(width, FEATURES)) for _ in range(2)
            )
        self._random.requires_grad_(False)
        self._optimizer = torch.optim.AdamW(self._predictor.parameters(), LEARNING_RATE, fused=True)

    @torch.no_grad()
    def novelty(self, condition: Tensor) -> Tensor:
        """How far off the prediction is, (B,). condition: (B, condition_size)."""
        distance: Tensor = (self._predictor(condition) - self._random(condition)).norm(dim=1)
        return distance

    def reward(self, condition: Tensor, following: Tensor) -> Tensor:
        """max(nov(s') - nov(s) / 2, 0), (B,). following: conditions of s'; both (B, condition_size)."""
        return (self.novelty(following) - LEFT_BEHIND * self.novelty(condition)).clamp(min=0.0)

    def step(self, condition: Tensor) -> Tensor:
        """One gradient step: these states are less new from now on. Returns the loss."""
        loss = functional.mse_loss(self._predictor(condition), self._random(condition))
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return loss.detach()

    def tensors(self) -> dict[str, Tensor]:
        """State by name; the random network follows from the seed."""
        tensors = {f"novelty.{name}": tensor for name, tensor in self._predictor.state_dict().items()}
        return tensors | optimizer_state(self._optimizer, "novelty_optimizer.")

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of :meth:`tensors`. Raises RuntimeError on another network's."""
        self._predictor.load_state_dict(select(tensors, "novelty."))
        restore_optimizer(self._optimizer, tensors, "novelty_optimizer.")
