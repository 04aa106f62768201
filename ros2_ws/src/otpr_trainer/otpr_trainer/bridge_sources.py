# SPDX-License-Identifier: Apache-2.0
"""Where a bridge starts: a source's chunk for an observation, the better the fewer steps are left to go (BRIDGER, arXiv 2402.16075).

Each source lives inside the exported graph, or its sample is an input of it:

    gaussian    N(0, I), the first draw of the noise
    cvae        a conditional variational autoencoder of the demonstrations; its latent is the head of the first draw
    heuristic   the scripted expert made crude, deterministic
    previous    the chunk of the last inference, shifted by what was carried out; an input of the graph
    artifact    an earlier policy file, whose graph becomes part of ours; its noise is the first of ours
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from otpr_policy import artifact
from otpr_policy.artifact import PolicyArtifact
from otpr_policy.errors import RunError, unknown
from otpr_policy.inference import OnnxPolicy
from otpr_policy.spec import PolicySpec
from otpr_sim.rollout import signature
from otpr_trainer import heuristics
from otpr_trainer.networks.cvae import ChunkVae

if TYPE_CHECKING:
    from otpr_trainer.policy import PolicyConfig


@dataclass(frozen=True)
class SourceConfig:
    """What a source must be built from before its weights can be loaded; what a kind does without is 0 or empty.

    Args:
        kind: see the module.
        task: whose heuristic it is.
        latent_size: of the autoencoder.
        file_bytes: length of the policy file, which lies among the weights.

    Raises:
        RunError: the kind does not exist.
    """

    kind: str = "gaussian"
    task: str = ""
    latent_size: int = 0
    file_bytes: int = 0

    def __post_init__(self) -> None:
        check_kind(self.kind)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "SourceConfig":
        """Parses ``dataclasses.asdict``'s form. Raises KeyError, TypeError, ValueError or RunError."""
        return cls(str(data["kind"]), str(data["task"]), int(data["latent_size"]), int(data["file_bytes"]))


@dataclass(frozen=True, eq=False)
class Seen:
    """What a source may go by.

    Args:
        observation: (B, To, Do), in physical units.
        condition: the same as networks see it, (B, C).
        previous: what the last inference yielded, (B, Ta, Da), in physical units, NaN in rows without one; None for none in any row.
    """

    observation: Tensor
    condition: Tensor
    previous: Tensor | None = None


class Source(nn.Module, ABC):
    """Draws chunks to start from.

    Attributes:
        kind: its name.
        physical: whether its chunks are in physical units, else normalised.
    """

    kind: str
    physical = False

    def __init__(self, config: "PolicyConfig", source: SourceConfig) -> None:
        super().__init__()
        self.spec = config.spec

    @property
    def draws(self) -> int:
        """Normal draws (Ta, Da) that one chunk takes."""
        return 0

    @property
    def label(self) -> str:
        """What a manifest says of it."""
        return self.kind

    @abstractmethod
    def sample(self, seen: Seen, noise: Tensor) -> Tensor:
        """Chunks (B, Ta, Da). noise: (B, draws, Ta, Da)."""


class GaussianSource(Source):
    """N(0, I): with d = 0 and the linear form this is flow matching."""

    kind = "gaussian"

    @property
    def draws(self) -> int:
        """See Source."""
        return 1

    def sample(self, seen: Seen, noise: Tensor) -> Tensor:
        """See Source."""
        return noise[:, 0]


class CvaeSource(Source):
    """An autoencoder's chunk for a latent from its prior. Raises RunError when the latent is longer than a flat chunk."""

    kind = "cvae"

    def __init__(self, config: "PolicyConfig", source: SourceConfig) -> None:
        super().__init__(config, source)
        shape = (self.spec.chunk_length, self.spec.action.size)
        if not 1 <= source.latent_size <= shape[0] * shape[1]:
            raise RunError(f"latent_size {source.latent_size} is not in 1..{shape[0] * shape[1]}, the numbers of one chunk")
        self.vae = ChunkVae(config.condition_size, shape, config.width, config.depth, source.latent_size)

    @property
    def draws(self) -> int:
        """See Source."""
        return 1

    def sample(self, seen: Seen, noise: Tensor) -> Tensor:
        """See Source."""
        return self.vae.decode(noise[:, 0].flatten(1)[:, : self.vae.latent_size], seen.condition)


class HeuristicSource(Source):
    """A crude script. Raises RunError when there is none for the task."""

    kind = "heuristic"
    physical = True

    def __init__(self, config: "PolicyConfig", source: SourceConfig) -> None:
        super().__init__(config, source)
        heuristics.check(source.task)
        self._task = source.task

    def sample(self, seen: Seen, noise: Tensor) -> Tensor:
        """See Source."""
        return heuristics.crude_chunk(self._task, self.spec, seen.observation[:, -1])


class PreviousSource(Source):
    """What the last inference planned beyond what was carried out; its last action is held for the rest.

    At the start of an episode, and after a hold, there is no last inference: then it is ``fallback``, the mean demonstrated chunk.
    """

    kind = "previous"
    physical = True
    fallback: Tensor

    def __init__(self, config: "PolicyConfig", source: SourceConfig) -> None:
        super().__init__(config, source)
        self.register_buffer("fallback", torch.zeros(self.spec.chunk_length, self.spec.action.size))

    def sample(self, seen: Seen, noise: Tensor) -> Tensor:
        """See Source."""
        if seen.previous is None:
            return self.fallback.expand(len(seen.observation), -1, -1)
        later = (torch.arange(self.spec.chunk_length) + self.spec.executed_length).clamp(max=self.spec.chunk_length - 1)
        shifted = seen.previous[:, later]
        return torch.where(shifted.isnan(), self.fallback, shifted)


class ArtifactSource(Source):
    """An earlier policy. Its file is a buffer of bytes, so it is wherever the weights are, and what it is shows once they are loaded."""

    kind = "artifact"
    physical = True
    content: Tensor

    def __init__(self, config: "PolicyConfig", source: SourceConfig) -> None:
        super().__init__(config, source)
        self.register_buffer("content", torch.zeros(source.file_bytes, dtype=torch.uint8))

    def __getstate__(self) -> dict[str, Any]:  # a session cannot be copied
        return {name: value for name, value in self.__dict__.items() if name != "policy"}

    @cached_property
    def file(self) -> PolicyArtifact:
        """The policy file. Raises ArtifactError."""
        return artifact.parse(self.content.numpy().tobytes())

    @cached_property
    def policy(self) -> OnnxPolicy:
        """Ready to infer, on the CPU."""
        return OnnxPolicy.from_artifact(self.file, ("CPUExecutionProvider",))

    @property
    def draws(self) -> int:
        """See Source."""
        return self.file.manifest.noise_shape[0]

    @property
    def label(self) -> str:
        """See Source."""
        return f"{self.kind} {self.file.sha256}"

    def sample(self, seen: Seen, noise: Tensor) -> Tensor:
        """See Source. Row by row, as its graph is made."""
        horizon = self.file.manifest.policy.observation_horizon
        rows = zip(seen.observation[:, -horizon:].numpy(), noise.numpy(), strict=True)
        return torch.as_tensor(np.stack([self.policy.infer(*row) for row in rows]), dtype=torch.float32)


_KINDS: dict[str, type[Source]] = {
    kind.kind: kind for kind in (ArtifactSource, CvaeSource, GaussianSource, HeuristicSource, PreviousSource)
}
KINDS = tuple(_KINDS)


def check_kind(kind: str) -> None:
    """Raises RunError when there is no such source."""
    if kind not in _KINDS:
        raise RunError(unknown("source", kind, _KINDS))


def build_source(config: "PolicyConfig", source: SourceConfig) -> Source:
    """A source with random weights. Raises RunError when its numbers do not go together."""
    return _KINDS[source.kind](config, source)


def check_artifact(policy: PolicySpec, source: PolicySpec, name: str) -> None:
    """Raises RunError when the policy file ``name`` does not read and write what a bridge needs of its source."""
    for side, ours, theirs in (("observation", policy.observation, source.observation), ("action", policy.action, source.action)):
        if signature(ours) != signature(theirs):
            raise RunError(f"source {name} has the {side} {signature(theirs)}; the demonstrations have {signature(ours)}")
    if source.control_rate_hz != policy.control_rate_hz:
        raise RunError(f"source {name} runs at {source.control_rate_hz:g} Hz, the demonstrations at {policy.control_rate_hz:g} Hz")
    if source.chunk_length != policy.chunk_length:
        raise RunError(f"source {name} has chunk_length {source.chunk_length}; give --chunk-length {source.chunk_length}")
    if source.observation_horizon > policy.observation_horizon:
        wanted = source.observation_horizon
        raise RunError(f"source {name} reads {wanted} observations; give --observation-horizon {wanted} or more")
    if source.reads_previous:
        raise RunError(f"source {name} itself starts from its previous chunk; give a policy file that does not")
