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

    Attributes:
        network: of V's logit.
    """

    def __init__(self, network: EnsembleCritic, *, learning_rate: float, weight_decay: float = 0.0, name: str = "value") -> None:
        """``network``: of conditions alone, one head. ``name``: in checkpoints."""
        self.network = network
        self._name = name
        self._optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=weight_decay, fused=True)

    @classmethod
    def new(cls, condition_size: int, width: int, depth: int, *, learning_rate: float, seed: int) -> "StateCritic":
        """With random weights. It starts near 0, as critics of chunks do: a high value of states that lead nowhere would take long to sink.

        ``condition_size``: of the policy's condition. ``seed``: of the weights.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = EnsembleCritic(condition_size, 0, width, depth, 1)
        with torch.no_grad():
            network.head_bias.fill_(INITIAL_LOGIT)
        return cls(network, learning_rate=learning_rate)

    @torch.no_grad()
    def value(self, condition: Tensor) -> Tensor:
        """V(s), (B,), in (0, 1). condition: (B, condition_size)."""
        return torch.sigmoid(self.logit(condition))

    def loss(self, condition: Tensor, target: Tensor) -> Tensor:
        """Cross entropy of V(s) with returns (B,) in [0, 1], whose gradient by the logit is V - R, as that of (V - R)^2 / 2 by V."""
        return functional.binary_cross_entropy_with_logits(self.logit(condition), target)

    def step(self, loss: Tensor) -> None:
        """One gradient step on ``loss``."""
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """State by name."""
        tensors = {f"{self._name}.{name}": tensor for name, tensor in self.network.state_dict().items()}
        return tensors | optimizer_state(self._optimizer, f"{self._name}_optimizer.")

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of :meth:`tensors`. Raises RuntimeError on another network's."""
        self.network.load_state_dict(select(tensors, f"{self._name}."))
        restore_optimizer(self._optimizer, tensors, f"{self._name}_optimizer.")

    def logit(self, condition: Tensor) -> Tensor:
        """Of V(s), (B,), with its gradient. condition: (B, condition_size)."""
        logit: Tensor = self.network(condition, condition.new_empty((len(condition), 0)))[0]
        return logit
