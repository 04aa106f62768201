# SPDX-License-Identifier: Apache-2.0
"""A policy on its way to a worker process: bytes and plain data, pinned when it is read, so that all workers run the same."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from otpr_policy import artifact
from otpr_policy.artifact import PolicyArtifact
from otpr_policy.chunk import ChunkPolicy
from otpr_policy.inference import OnnxPolicy
from otpr_policy.spec import PolicySpec

if TYPE_CHECKING:
    from otpr_trainer.policy import PolicyConfig
    from otpr_trainer.run import Run
    from otpr_trainer.selection import CriticConfig

CANDIDATES_HELP = "chains per inference, of which the run's critic chooses one; above 1 only for runs that train a critic"


class PolicySource(Protocol):
    """What a worker makes its policy from."""

    @property
    def spec(self) -> PolicySpec:
        """What the policy reads and writes."""

    def open(self) -> ChunkPolicy:
        """Makes the policy ready to infer."""


@dataclass(frozen=True)
class GraphSource:
    """An ONNX graph, with or without a manifest."""

    content: bytes
    spec: PolicySpec
    noise_shape: tuple[int, ...]

    @classmethod
    def of_artifact(cls, policy: PolicyArtifact) -> "GraphSource":
        """The graph of a loaded policy file."""
        return cls(policy.content, policy.manifest.policy, policy.manifest.noise_shape)

    def open(self) -> ChunkPolicy:
        """Runs on ONNX Runtime's CPU provider: evaluation must not depend on which GPU is at hand."""
        return OnnxPolicy.from_graph(self.content, self.spec, self.noise_shape)


@dataclass(frozen=True)
class CriticWeights:
    """A critic's weights with their architecture."""

    config: "CriticConfig"
    weights: bytes  # safetensors


@dataclass(frozen=True)
class WeightsSource:
    """Torch weights with their architecture and sampler, and for several candidates the critic that chooses one."""

    config: "PolicyConfig"
    weights: bytes  # safetensors
    sampler: str | None  # None for the policy's own, see PolicyConfig.chain
    steps: int | None
    eta: float = 0.0
    candidates: int = 1
    critic: CriticWeights | None = None
    committed_prefix: bool = False

    def __post_init__(self) -> None:
        assert self.candidates == 1 or self.critic is not None

    @property
    def spec(self) -> PolicySpec:
        """What the policy reads and writes."""
        return replace(self.config.spec, reads_committed=self.committed_prefix)

    @classmethod
    def of_run(
        cls,
        run: "Run",
        sampler: str | None,
        steps: int | None,
        eta: float = 0.0,
        candidates: int = 1,
        committed_prefix: bool = False,
    ) -> "WeightsSource":
        """The newest checkpoint of a run.

        Raises:
            RunError: no checkpoint, unknown sampler, steps out of range, candidates below 1, or above 1 where the run has no critic; a
                committed prefix for a policy that is no plain diffusion.
        """
        import safetensors.torch

        from otpr_trainer.policy import check_committed_prefix
        from otpr_trainer.selection import check_candidates

        chain = run.base_config.chain(sampler, steps, eta)  # its refusals, before any worker starts
        if committed_prefix:
            check_committed_prefix(run.base_config, chain)
        critic_config = run.critic_config() if check_candidates(candidates) > 1 else None
        checkpoint = run.newest_checkpoint()  # once: training may be writing the next
        config = run.policy_config(checkpoint)
        critic = CriticWeights(critic_config, safetensors.torch.save(checkpoint.critic_tensors())) if critic_config else None
        return cls(config, safetensors.torch.save(checkpoint.policy_tensors()), sampler, steps, eta, candidates, critic, committed_prefix)

    def open(self) -> ChunkPolicy:
        """Runs on one torch thread: a network this small is slower on two, and each worker has a core of its own."""
        import safetensors.torch
        import torch

        from otpr_trainer.policy import TorchPolicy
        from otpr_trainer.run import build_critic, build_policy
        from otpr_trainer.selection import SelectingPolicy

        torch.set_num_threads(1)
        policy = build_policy(self.config, safetensors.torch.load(self.weights))
        reverse = policy.config.chain(self.sampler, self.steps, self.eta)
        if self.critic is None:
            return TorchPolicy(policy, reverse, self.committed_prefix)
        critic = build_critic(self.critic.config, self.config, safetensors.torch.load(self.critic.weights))
        return SelectingPolicy(policy, critic, reverse, self.candidates, self.critic.config.pessimism, self.committed_prefix)


def load_artifact(path: Path) -> tuple[PolicyArtifact, GraphSource]:
    """A policy file and its source. Raises ArtifactError."""
    policy = artifact.load(path)
    return policy, GraphSource.of_artifact(policy)
