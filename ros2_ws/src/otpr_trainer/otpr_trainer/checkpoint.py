# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: one safetensors file each, with all other state as JSON in its header, so that a checkpoint is whole or absent."""

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor
from torch.optim import Optimizer

from otpr_policy.errors import RunError
from otpr_policy.files import write_bytes

KEPT = 2  # the newest, and the one before for a person who doubts the newest
_METADATA_KEY = "otpr.checkpoint"
_NAME = re.compile(r"\d{8,}\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """Everything that training continues from.

    Args:
        step: units done, gradient steps or environment steps as the algorithm counts.
        tensors: named tensors; those under ``policy.`` are the weights to evaluate and export, those under ``critic.`` of the critic that
            chooses among their chunks, if there is one.
        values: plain JSON data.
    """

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]

    def policy_tensors(self) -> dict[str, Tensor]:
        """The weights to evaluate and export, by their names in the policy."""
        return select(self.tensors, "policy.")

    def critic_tensors(self) -> dict[str, Tensor]:
        """The weights of the critic to act with, by their names in the critic; empty for a run without one."""
        return select(self.tensors, "critic.")


def select(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Writes a checkpoint atomically, then removes all but the newest ``KEPT``. Raises OutputError; the others then stay."""
    path = folder / f"{checkpoint.step:08d}.safetensors"
    write(path, checkpoint)
    unfinished = folder.glob(".*.safetensors")  # of processes that were killed while they wrote
    for old in (*_all(folder)[:-KEPT], *unfinished):
        with suppress(FileNotFoundError):
            old.unlink()
    return path


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Writes one file that :func:`load` reads, atomically. Raises OutputError."""
    values = json.dumps({"step": checkpoint.step, "values": checkpoint.values})
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    write_bytes(path, safetensors.torch.save(tensors, {_METADATA_KEY: values}))


def exists(folder: Path) -> bool:
    """Whether there is any checkpoint."""
    return bool(_all(folder))


def newest(folder: Path) -> Path:
    """Path of the newest checkpoint. Raises RunError when there is none."""
    paths = _all(folder)
    if not paths:
        raise RunError(f"{folder} holds no checkpoint yet")
    return paths[-1]


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint. Raises RunError when the file is not one of ours or is damaged."""
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            data = json.loads((file.metadata() or {})[_METADATA_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return Checkpoint(int(data["step"]), tensors, dict(data["values"]))
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} is not a readable checkpoint ({error}); remove it to fall back on the one before") from error


def optimizer_state(optimizer: Optimizer, prefix: str) -> dict[str, Tensor]:
    """An optimiser's per-parameter state as named tensors. Its settings are not state: they are set anew on construction."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}{index}.{key}": value for index, entries in state.items() for key, value in entries.items()}


def restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor], prefix: str) -> None:
    """The inverse of :func:`optimizer_state`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in select(tensors, prefix).items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _all(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("*.safetensors") if _NAME.fullmatch(path.name)), key=lambda path: int(path.stem))
