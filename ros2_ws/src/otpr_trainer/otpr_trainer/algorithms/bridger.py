# SPDX-License-Identifier: Apache-2.0
"""BRIDGER: imitation by a stochastic interpolant from a source policy to the demonstrations.

Chen et al. 2024, "Don't Start from Scratch: Behavioral Refinement via Interpolant-based Policy Diffusion" (arXiv 2402.16075). The
better the source, the fewer steps are needed. Where we differ from the paper and from the authors' code: docs/methods.md.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from otpr_policy import artifact
from otpr_policy.artifact import PolicyArtifact
from otpr_policy.errors import RunError
from otpr_trainer.bridge import BridgePolicy
from otpr_trainer.bridge_sources import ArtifactSource, CvaeSource, PreviousSource, SourceConfig, check_artifact
from otpr_trainer.checkpoint import Checkpoint, select
from otpr_trainer.config import not_negative, positive, setting
from otpr_trainer.data.windows import previous_chunks
from otpr_trainer.interpolant import SAMPLER as SAMPLER
from otpr_trainer.interpolant import Interpolant
from otpr_trainer.learner import Setup
from otpr_trainer.policy import BridgeConfig, PolicyConfig
from otpr_trainer.supervised import Settings, SupervisedLearner, policy_config

NAME = "bridger"
NEEDS_INIT = False
FORGOTTEN = 0.1
"""Share of windows that are shown no previous chunk: the robot has none after a hold, wherever that was."""
DIVERGENCE_RISE, DIVERGENCE_TOP, RECONSTRUCTION = 1e-4, 0.1, 10.0
"""The autoencoder's loss is 10 x squared error + beta x KL, with beta rising from 0 to 0.1 by 1e-4 a step, as in the authors' code."""


@dataclass(frozen=True)
class Config(Settings):
    """Settings of BRIDGER."""

    train_steps: int = setting(20, "scale of the time that the network is shown, K; most steps of sampling where none are asked for")
    form: str = setting("linear", "a(t), b(t): linear, power3, power4, reverse_linear, reverse_power3, reverse_power4 or encode_decode")
    gamma: str = setting("root", "noise within: root, sqrt(2t(1-t)), the paper's; parabola, sqrt2 t(1-t); early, sqrt2 (1-t)^2 sqrt t")
    epsilon: str = setting("linear", "diffusion in sampling: linear, 1-t, the paper's; parabola, t(1-t); root, 1-sqrt t; square; none")
    noise_scale: float = setting(0.03, "d, of the noise, in units of half the demonstrated range of an action; 0 for none")
    source: str = setting("gaussian", "where chains start: gaussian, cvae, heuristic, previous (the last chunk, shifted) or artifact")
    source_artifact: str = setting("", "policy file of source artifact; needed when training resumes, too")
    source_draws: int = setting(16, "chunks that a source artifact draws for each demonstrated state, once")
    source_iterations: int = setting(3000, "gradient steps on the autoencoder of source cvae, before those on the bridge")
    latent_size: int = setting(8, "of the autoencoder of source cvae")
    previous_noise: float = setting(0.2, "on the previous chunks of source previous, in noise_scale's units: one's own are never as right")

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "source_draws", "source_iterations", "latent_size")
        not_negative(self, "noise_scale", "previous_noise")
        self.interpolant()
        SourceConfig(self.source)
        if (self.source == ArtifactSource.kind) != bool(self.source_artifact):
            raise RunError(f"source {self.source!r} and source_artifact {self.source_artifact!r} do not go together; give both or neither")

    def interpolant(self) -> Interpolant:
        """Raises RunError on a name or a scale that cannot be."""
        return Interpolant(self.form, self.gamma, self.epsilon, self.noise_scale)


class Learner(SupervisedLearner[BridgePolicy]):
    """Regresses displacement and noise of the interpolant between a chunk of the source and the demonstrated one."""

    name = NAME
    config: Config

    def __init__(self, config: Config, setup: Setup) -> None:
        """Raises what SupervisedLearner does, ArtifactError or RunError when the source is not to be had."""
        file = artifact.load(Path(config.source_artifact)) if config.source_artifact else None
        super().__init__(config, setup, BridgePolicy, _bridge_config(config, setup, file))
        source = self.policy.source
        self.source_iterations = config.source_iterations if isinstance(source, CvaeSource) else 0
        self.total = self.source_iterations + config.iterations
        self._previous = self._bank = None
        for policy in (self.policy, self.ema):
            if isinstance(policy.source, PreviousSource):
                policy.source.fallback.copy_(policy.action.denormalize(self._chunk.mean(0)))
                previous = previous_chunks(setup.demos, config.chunk_length, config.executed_length)
                self._previous = torch.as_tensor(previous, dtype=torch.float32)
            if isinstance(policy.source, ArtifactSource) and file is not None:
                policy.source.content.copy_(torch.frombuffer(bytearray(file.content), dtype=torch.uint8))
        if file is not None:
            self._bank = self._sampled(config.source_draws, setup.seed)

    def loss(self, observation: Tensor, x_0: Tensor, x_1: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """E || D - D_theta ||^2 + E || z - z_theta ||^2 at (x_t, t, observation), D = x_1 - x_0; each the mean over elements.

        Where a + b = 1 the paper's 0.5 || v ||^2 - < v, dI/dt > with v = D db/dt is the first times 0.5 (db/dt)^2, up to a constant: it is
        lowest at the same D, and weighs times t otherwise. Its score is -z_theta / (gamma d^2).
        """
        interpolant = self.policy.interpolant
        x_t = interpolant.point(t, x_0, x_1, z)
        heads = self.policy.predict(x_t, t, self.policy.condition(observation))
        return (interpolant.targets(x_0, x_1, z) - heads).square().mean((0, 2, 3)).sum()

    def losses(self, rows: Tensor) -> dict[str, Tensor]:
        """The autoencoder's first, if there is one; then the bridge's, at uniform t, with a fresh chunk of the source."""
        if self.source_iterations == 0:
            return {"bridger/loss": self._bridge_loss(rows)}
        if self.step < self.source_iterations:
            return {"bridger/loss": torch.zeros(()), "bridger/source_loss": self._source_loss(rows)}
        return {"bridger/loss": self._bridge_loss(rows), "bridger/source_loss": torch.zeros(())}

    def phase(self) -> tuple[int, int]:
        """See SupervisedLearner: first the source's, then the bridge's."""
        if self.step < self.source_iterations:
            return self.step, self.source_iterations
        return self.step - self.source_iterations, self.config.iterations

    def restore(self, checkpoint: Checkpoint) -> None:
        """See Learner. Raises RunError, too, when the policy file of the source is another one by now."""
        content = select(checkpoint.tensors, "policy.source.").get("content")
        if content is not None and not torch.equal(content, dict(self.ema.source.named_buffers())["content"]):
            raise RunError(f"{self.config.source_artifact} is not the policy file that this run was begun with")
        super().restore(checkpoint)

    def _bridge_loss(self, rows: Tensor) -> Tensor:
        x_1 = self._chunk[rows]
        t = torch.rand(len(rows), generator=self._generator)
        z = self.config.noise_scale * torch.randn(x_1.shape, generator=self._generator)
        return self.loss(self._observation[rows], self._start(rows), x_1, t, z)

    def _source_loss(self, rows: Tensor) -> Tensor:
        source = self.policy.source
        assert isinstance(source, CvaeSource)
        eps = torch.randn((len(rows), source.vae.latent_size), generator=self._generator)
        error, divergence = source.vae.losses(self._chunk[rows], self.policy.condition(self._observation[rows]), eps)
        return RECONSTRUCTION * error + min(DIVERGENCE_RISE * self.step, DIVERGENCE_TOP) * divergence

    @torch.no_grad()
    def _start(self, rows: Tensor) -> Tensor:
        """Chunks of the source for windows (B,), normalised."""
        if self._bank is not None:
            return self._bank[rows, torch.randint(self._bank.shape[1], (len(rows),), generator=self._generator)]
        observation = self._observation[rows]
        noise = torch.randn((len(rows), self.ema.start_draws, *self._chunk.shape[1:]), generator=self._generator)
        previous = None
        if self._previous is not None:
            width = self.config.previous_noise * self.policy.action.half_width
            previous = self._previous[rows] + width * torch.randn(self._chunk[rows].shape, generator=self._generator)
            previous[torch.rand(len(rows), generator=self._generator) < FORGOTTEN] = torch.nan
        return self.ema.start(observation, self.ema.condition(observation), noise, previous)

    @torch.no_grad()
    def _sampled(self, draws: int, seed: int) -> Tensor:
        """Chunks of a source that is slow to ask, (N, draws, Ta, Da), normalised."""
        generator = torch.Generator().manual_seed(seed)
        chunks = []
        for _ in range(draws):
            noise = torch.randn((len(self._chunk), self.ema.start_draws, *self._chunk.shape[1:]), generator=generator)
            chunks.append(self.ema.start(self._observation, self.ema.condition(self._observation), noise, None))
        return torch.stack(chunks, dim=1)


def _bridge_config(config: Config, setup: Setup, file: PolicyArtifact | None) -> PolicyConfig:
    """What the policy is built from. Raises RunError when the source does not fit."""
    plain = policy_config(config, setup.demos)
    if file is not None:
        check_artifact(plain.spec, file.manifest.policy, config.source_artifact)
    source = SourceConfig(
        config.source,
        task=setup.task if config.source == "heuristic" else "",
        latent_size=config.latent_size if config.source == "cvae" else 0,
        file_bytes=0 if file is None else len(file.content),
    )
    spec = replace(plain.spec, reads_previous=config.source == "previous")
    return replace(plain, spec=spec, bridge=BridgeConfig(config.interpolant(), source))
