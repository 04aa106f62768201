# SPDX-License-Identifier: Apache-2.0
"""The policy of an interpolant: its chain starts from a source's chunk instead of noise (BRIDGER, arXiv 2402.16075)."""

from torch import Tensor

from otpr_trainer.bridge_sources import Seen, build_source
from otpr_trainer.normalization import AffineMap
from otpr_trainer.policy import ChainPolicy, PolicyConfig


class BridgePolicy(ChainPolicy):
    """A source, and the network that carries its chunks to the demonstrator's. Its input is x_t, so it knows where it started."""

    def __init__(self, config: PolicyConfig, observation: AffineMap | None = None, action: AffineMap | None = None) -> None:
        """See ChainPolicy. Raises RunError when the source's numbers do not go together."""
        assert config.bridge is not None
        super().__init__(config, observation, action, config.bridge.interpolant.heads)
        self.interpolant = config.bridge.interpolant
        self.source = build_source(config, config.bridge.source)

    @property
    def source_label(self) -> str:
        """See ChainPolicy."""
        return self.source.label

    @property
    def start_draws(self) -> int:
        """See ChainPolicy."""
        return self.source.draws

    def start(self, observation: Tensor, condition: Tensor, noise: Tensor, previous: Tensor | None) -> Tensor:
        """The source's chunk."""
        chunk = self.source.sample(Seen(observation, condition, previous), noise)
        return self.action.normalize(chunk) if self.source.physical else chunk

    def predict(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The heads, (B, H, Ta, Da). x_t: (B, Ta, Da); t: (B,) in [0, 1]; condition: (B, condition_size)."""
        heads: Tensor = self.network(x_t, self.config.train_steps * t, condition)
        return heads
