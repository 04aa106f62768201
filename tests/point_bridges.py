# SPDX-License-Identifier: Apache-2.0
"""Small bridges on the point task, one for each source, shared by the tests of BRIDGER."""

from functools import cache
from pathlib import Path
from typing import Any

import point_task
import pytest
import torch
from torch import Tensor

from otpr_policy.artifact import Denoising as Denoised
from otpr_policy.artifact import Evaluation, Manifest, Parity, Provenance, embed
from otpr_sim import registry
from otpr_trainer import heuristics
from otpr_trainer.algorithms import bc
from otpr_trainer.algorithms.bridger import Config, Learner
from otpr_trainer.graph import to_onnx
from otpr_trainer.heuristics import Intent
from otpr_trainer.policy import TorchPolicy
from otpr_trainer.run import Run, RunConfig, create, utc_now
from otpr_trainer.train import train

SIZES: dict[str, Any] = {
    "chunk_length": 3,
    "executed_length": 2,
    "observation_horizon": 2,
    "train_steps": 6,
    "width": 16,
    "depth": 2,
    "time_size": 8,
    "iterations": 30,
    "batch_size": 32,
    "warmup": 5,
}
SOURCES: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "cvae": {"latent_size": 3, "source_iterations": 20},
    "heuristic": {},
    "previous": {},
    "artifact": {"source_draws": 2},
}


def register(patch: pytest.MonkeyPatch) -> None:
    """The point task, and a crude script for it."""
    patch.setitem(registry._TASKS, "point", (point_task.SPEC, lambda _stepping: point_task.PointEnv()))
    patch.setattr(heuristics, "crude_chunk", crude_chunk)
    patch.setitem(heuristics.HEURISTICS, "point", lambda seen: Intent(seen["position"], seen["position"]))


def crude_chunk(task: str, spec: Any, observation: Tensor) -> Tensor:
    """Half of the way to the origin in each step, without spin."""
    assert task == "point"
    move = (-0.5 * observation[:, :1]).clamp(-0.2, 0.2)
    return torch.cat([move, torch.zeros_like(move)], dim=1)[:, None].expand(-1, spec.chunk_length, -1)


@cache
def cloned_file() -> bytes:
    """A policy file of a small diffusion with a horizon of one observation and two draws of noise."""
    sizes = {name: value for name, value in SIZES.items() if name != "observation_horizon"}
    learner = bc.Learner(bc.Config(**sizes, observation_horizon=1), point_task.setup())
    policy = TorchPolicy.with_sampler(learner.ema, "ddim", 2, 1.0)
    manifest = Manifest(
        policy.spec,
        policy.noise_shape,
        Denoised("ddim", 2, 6, 1.0),
        Provenance("bc", "point", 0, "ab" * 32, "cd" * 20, "2026-01-02T03:04:05Z", "0"),
        Parity(1, 1e-4, (0.0, 0.0), 0.0),
        Evaluation(1, 0, 12, "at the origin", 0, 0, 0),
    )
    return embed(to_onnx(policy), manifest)


def write_artifact(folder: Path) -> Path:
    path = folder / "source.onnx"
    path.write_bytes(cloned_file())
    return path


def config(source: str, folder: Path, **changes: Any) -> Config:
    file = {"source_artifact": str(write_artifact(folder))} if source == "artifact" else {}
    return Config(**{**SIZES, "source": source, **SOURCES[source], **file, **changes})


def learner(source: str, folder: Path, seed: int = 0, **changes: Any) -> Learner:
    return Learner(config(source, folder, **changes), point_task.setup(seed=seed))


def trained(source: str, folder: Path, **changes: Any) -> Run:
    """A finished run in folder/run."""
    taught = learner(source, folder, **changes)
    described = taught.policy_config.to_json()
    run = RunConfig("bridger", "point", 0, dict(vars(taught.config)), "demos", "ab" * 32, described, "cd" * 20, "0", utc_now())
    made = create(folder / "run", run, overwrite=False)
    train(made, taught)
    return made
