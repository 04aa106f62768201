# SPDX-License-Identifier: Apache-2.0
"""A training run's directory.

``config.json`` has all that defines the run, ``start.safetensors`` the policy that it started from, if any; ``metrics.csv``,
``evaluations.csv`` and ``tensorboard/`` what was measured; ``checkpoints/`` what training goes on from.
"""

import json
import shutil
from dataclasses import MISSING, asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from otpr_policy.errors import OutputError, RunError, SpecError
from otpr_policy.files import write_text
from otpr_policy.git import git_commit as git_commit
from otpr_trainer import checkpoint
from otpr_trainer.bridge import BridgePolicy
from otpr_trainer.checkpoint import Checkpoint
from otpr_trainer.gaussian_policy import build_gaussian_policy
from otpr_trainer.networks.critic import EnsembleCritic
from otpr_trainer.policy import ChainPolicy, DiffusionPolicy, PolicyConfig
from otpr_trainer.selection import CriticConfig

KIND = "otpr training run"
SCHEMA_VERSION = 1
SEEN = "seen"  # key of a checkpoint's values: least and greatest observation, where training has seen more than demonstrations


@dataclass(frozen=True)
class RunConfig:
    """``config.json``: everything that the run follows from, written before the first iteration and never changed.

    Keys with a default came later than version 1 of the schema; a run without them is one that does not need them.
    """

    algorithm: str
    task: str
    seed: int
    settings: dict[str, Any]  # the algorithm's configuration, resolved
    demos: str  # directory, as given
    demos_sha256: str
    policy: dict[str, Any]  # PolicyConfig.to_json()
    git_commit: str
    otpr_version: str
    created: str  # ISO 8601, UTC
    critic: dict[str, Any] | None = None  # CriticConfig.to_json() of a run whose checkpoints hold a critic to act with
    init: str | None = None  # directory of the run whose policy this one started from, as given; None when from nothing
    init_sha256: str | None = None  # of that policy's weights, otpr_trainer.start.weights_sha256
    corrections: str | None = None  # directory, as given
    corrections_sha256: str | None = None
    acting: dict[str, Any] | None = None  # sampler, steps and eta of the run's own evaluations; None of one that has none


@dataclass(frozen=True)
class Run:
    """A run on disk."""

    directory: Path
    config: RunConfig

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.directory / "checkpoints"

    @property
    def base_config(self) -> PolicyConfig:
        """What the run's policies are built from; its observation ranges are the demonstrations'. Raises RunError."""
        return PolicyConfig.from_json(self.config.policy)

    @property
    def has_checkpoint(self) -> bool:
        """False when training was stopped before its first checkpoint."""
        return checkpoint.exists(self.checkpoints)

    def newest_checkpoint(self) -> Checkpoint:
        """Raises RunError when there is none yet or it is damaged."""
        return checkpoint.load(checkpoint.newest(self.checkpoints))

    def policy_config(self, saved: Checkpoint) -> PolicyConfig:
        """What the policy of a checkpoint is built from. Its observation ranges are those that training had seen by then.

        A policy that has fine-tuned itself knows more states than its demonstrations; the robot refuses what lies outside. Raises RunError.
        """
        config = self.base_config
        seen = saved.values.get(SEEN)
        if seen is None:
            return config
        try:
            observation = config.spec.observation.with_range(np.array(seen["low"]), np.array(seen["high"]))
        except (KeyError, TypeError, SpecError) as error:
            raise RunError(f"the checkpoint's observation ranges are not readable: {error}") from error
        return replace(config, spec=replace(config.spec, observation=observation))

    def policy(self) -> ChainPolicy:
        """The policy to evaluate and export, of the newest checkpoint. Raises RunError."""
        saved = self.newest_checkpoint()
        return build_policy(self.policy_config(saved), saved.policy_tensors())

    def critic_config(self) -> CriticConfig:
        """Sizes of the critic to act with. Raises RunError when the run has none."""
        if self.config.critic is None:
            raise RunError(f"{self.directory} has no critic: {self.config.algorithm} trains none, so it acts with 1 candidate only")
        return CriticConfig.from_json(self.config.critic)

    def critic(self) -> EnsembleCritic:
        """The critic to act with, of the newest checkpoint. Raises RunError."""
        return build_critic(self.critic_config(), self.base_config, self.newest_checkpoint().critic_tensors())


def build_policy(config: PolicyConfig, tensors: dict[str, Any]) -> ChainPolicy:
    """A policy of any kind with its weights. Raises RunError when they are of another network."""
    policy = _random_policy(config)
    try:
        policy.load_state_dict(tensors)
    except RuntimeError as error:
        raise RunError(f"the weights do not fit the policy that config.json describes: {error}") from error
    return policy.eval()


def _random_policy(config: PolicyConfig) -> ChainPolicy:
    if config.gaussian is not None:
        return build_gaussian_policy(config)
    return DiffusionPolicy(config) if config.bridge is None else BridgePolicy(config)


def build_critic(config: CriticConfig, policy: PolicyConfig, tensors: dict[str, Any]) -> EnsembleCritic:
    """The critic of a policy's chunks, with its weights. Raises RunError when they are of another network."""
    critic = config.network(policy)
    try:
        critic.load_state_dict(tensors)
    except RuntimeError as error:
        raise RunError(f"the weights do not fit the critic that config.json describes: {error}") from error
    return critic.eval()


def create(directory: Path, config: RunConfig, overwrite: bool) -> Run:
    """Starts a run directory.

    Raises:
        OutputError: it exists and ``overwrite`` is false, it is not a run (never deleted then), or it cannot be written.
    """
    directory = Path(directory).resolve()  # a link to a run stands for the run
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        if not overwrite:
            raise OutputError(f"{directory} exists; choose another path, or pass --overwrite or --resume")
        try:
            load(directory)
        except RunError as error:
            raise OutputError(f"not overwritten: {error}") from error
        shutil.rmtree(directory)
    data = {"kind": KIND, "schema_version": SCHEMA_VERSION, **asdict(config)}
    write_text(directory / "config.json", json.dumps(data, indent=2) + "\n")
    return Run(directory, config)


def load(directory: Path) -> Run:
    """Opens a run directory. Raises RunError when it is none of ours, or of another version."""
    path = Path(directory) / "config.json"
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise RunError(f"{directory} is not a training run: cannot read config.json ({error.strerror})") from error
    except ValueError as error:
        raise RunError(f"{directory} is not a training run: config.json is not JSON ({error})") from error
    if not isinstance(data, dict) or data.pop("kind", None) != KIND:
        raise RunError(f"{directory} is not a training run of otpr: config.json is something else's")
    version = data.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise RunError(f"{path} has schema version {version!r}; this program reads version {SCHEMA_VERSION}")
    kinds = {field.name: field.type for field in fields(RunConfig)}
    needed = {field.name for field in fields(RunConfig) if field.default is MISSING}
    if not needed <= set(data) <= set(kinds):
        raise RunError(f"{path} needs the keys {', '.join(sorted(kinds))}; got {', '.join(sorted(data))}")
    for name, value in data.items():
        absent = value is None and name not in needed
        if not absent and not isinstance(value, dict if "dict" in str(kinds[name]) else kinds[name]):  # type: ignore[arg-type]
            raise RunError(f"{path}: {name} {value!r} is not of the expected type")
    return Run(Path(directory), RunConfig(**data))


def utc_now() -> str:
    """The present as ISO 8601 in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
