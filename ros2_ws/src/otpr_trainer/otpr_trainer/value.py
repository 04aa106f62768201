# SPDX-License-Identifier: Apache-2.0
"""The critic of states while it learns: V(s), the probability of success from here, discounted; it sees no action."""

import torch
from torch import Tensor
from torch.nn import functional

from otpr_trainer.checkpoint import optimizer_state, restore_optimizer, select
from otpr_trainer.critic import INITIAL_LOGIT
from otpr_trainer.networks.critic import EnsembleCritic


class StateCritic:
    """One network that regresses to returns. The reward is 1 for success and nothing else, so V is a sigmoid, trained by cross entropy.

    It starts near 0, as the critics of chunks do: a high value of states that lead nowhere would take long to sink.
    """

    def __init__(self, condition_size: int, width: int, depth: int, *, learning_rate: float, seed: int) -> None:
        """``condition_size``: of the policy's condition. ``seed``: of the random weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = EnsembleCritic(condition_size, 0, width, depth, 1)
        with torch.no_grad():
            self.network.head_bias.fill_(INITIAL_LOGIT)
        self._optimizer = torch.optim.AdamW(self.network.parameters(), learning_rate, weight_decay=0.0, fused=True)

    @torch.no_grad()
    def value(self, condition: Tensor) -> Tensor:
        """V(s), (B,), in (0, 1). condition: (B, condition_size)."""
        return torch.sigmoid(self._logit(condition))

    def loss(self, condition: Tensor, target: Tensor) -> Tensor:
        """Cross entropy of V(s) with returns (B,) in [0, 1], whose gradient by the logit is V - R, as that of (V - R)^2 / 2 by V."""
        return functional.binary_cross_entropy_with_logits(self._logit(condition), target)

    def step(self, loss: Tensor) -> None:
        """One gradient step on ``loss``."""
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """State by name."""
        tensors = {f"value.{name}": tensor for name, tensor in self.network.state_dict().items()}
        return tensors | optimizer_state(self._optimizer, "value_optimizer.")

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of :meth:`tensors`. Raises RuntimeError on another network's."""
        self.network.load_state_dict(select(tensors, "value."))
        restore_optimizer(self._optimizer, tensors, "value_optimizer.")

    def _logit(self, condition: Tensor) -> Tensor:
        logit: Tensor = self.network(condition, condition.new_empty((len(condition), 0)))[0]
        return logit
