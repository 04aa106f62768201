# SPDX-License-Identifier: Apache-2.0
"""The policy that fine-tuning starts from. A new run keeps a copy, so that it does not depend on what becomes of the other run."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from otpr_policy.errors import OutputError, RunError
from otpr_sim.rollout import signature
from otpr_trainer import checkpoint
from otpr_trainer import run as runs
from otpr_trainer.checkpoint import Checkpoint
from otpr_trainer.data.demonstrations import Header
from otpr_trainer.policy import ChainPolicy, DiffusionPolicy, PolicyConfig
from otpr_trainer.run import Run, build_policy

_FILE = "start.safetensors"
_SHAPE_SETTINGS = ("chunk_length", "observation_horizon")


def open_start(directory: Path, task: str, demos: Header, config: Any) -> DiffusionPolicy:
    """The policy of another run's newest checkpoint, to fine-tune with ``demos`` and the settings ``config``.

    Raises:
        RunError: not a run, no checkpoint, another task, fields or control rate, lengths other than those that the settings ask for, or
            no diffusion alone: fine-tuning works on the chain of one network.
    """
    run = runs.load(directory)
    if run.config.task != task:
        raise RunError(f"--init {directory} is a run of task {run.config.task!r}, not {task!r}")
    start = PolicyConfig.from_json(run.config.policy)
    spec = start.spec
    if start.frozen_from is not None:
        raise RunError(
            f"--init {directory} has a network of its own for the first denoising steps, frozen by {run.config.algorithm}; "
            f"fine-tuning starts from policies of one network, such as those of bc"
        )
    for side, ours, theirs in (("observation", spec.observation, demos.observation), ("action", spec.action, demos.action)):
        if signature(ours) != signature(theirs):
            raise RunError(f"--init {directory} has the {side} {signature(ours)}; the demonstrations have {signature(theirs)}")
    if spec.control_rate_hz != demos.control_rate_hz:
        raise RunError(f"--init {directory} runs at {spec.control_rate_hz:g} Hz, the demonstrations at {demos.control_rate_hz:g} Hz")
    for name in _SHAPE_SETTINGS:
        if hasattr(config, name) and getattr(config, name) != getattr(spec, name):
            flag, ours = f"--{name.replace('_', '-')}", getattr(spec, name)
            raise RunError(f"--init {directory} has {name} {ours}, the settings ask for {getattr(config, name)}; give {flag} {ours}")
    return _diffusion(run.policy(), f"--init {directory}")


def _diffusion(policy: ChainPolicy, where: str) -> DiffusionPolicy:
    if not isinstance(policy, DiffusionPolicy):
        kind = "a Gaussian" if policy.config.gaussian is not None else "an interpolant's"
        raise RunError(f"{where} is {kind} policy; fine-tuning needs a diffusion's chain, as 'otpr train bc' clones one")
    if policy.config.gaussian is not None:
        raise RunError(
            f"{where} has an actor beside its diffusion, which others would ignore; fine-tuning needs a diffusion alone, as 'otpr train "
            f"bc' clones one"
        )
    return policy


def weights_sha256(policy: DiffusionPolicy) -> str:
    """Identity of a policy's weights and normaliser: names, types, shapes and every number."""
    digest = sha256()
    for name, tensor in sorted(policy.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def keep(run: Run, start: DiffusionPolicy) -> None:
    """Copies the start policy into a new run. Raises OutputError."""
    tensors = {f"policy.{name}": tensor for name, tensor in start.state_dict().items()}
    checkpoint.write(run.directory / _FILE, Checkpoint(0, tensors, {"policy": start.config.to_json()}))


def kept(run: Run) -> DiffusionPolicy | None:
    """The policy that a run started from, None when it started from nothing. Raises RunError when it is missing or damaged."""
    if run.config.init_sha256 is None:
        return None
    path = run.directory / _FILE
    if not path.exists():
        raise RunError(f"{path} is missing, the policy that this run started from; start it anew with --overwrite")
    saved = checkpoint.load(path)
    policy = _diffusion(build_policy(PolicyConfig.from_json(saved.values.get("policy")), saved.policy_tensors()), str(path))
    if weights_sha256(policy) != run.config.init_sha256:
        raise RunError(f"{path} is not the policy that this run started from (sha256 differs)")
    return policy


def refuse_overwriting(directory: Path, output: Path) -> None:
    """Raises OutputError when the new run would replace the one that it starts from."""
    if Path(directory).resolve() == Path(output).resolve():
        raise OutputError(f"--init and --out are both {directory}; a run cannot replace the one that it starts from")
