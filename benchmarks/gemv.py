# SPDX-License-Identifier: Apache-2.0
"""gemv.c, compiled on this machine and called through ctypes as a policy."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from otpr_policy.errors import EnvironmentSetupError
from otpr_policy.spec import Array
from otpr_trainer.diffusion import ReverseChain
from otpr_trainer.policy import DiffusionPolicy, TorchPolicy

SOURCE = Path(__file__).with_name("gemv.c")
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC")
_FLOATS = ctypes.POINTER(ctypes.c_float)


class _Layer(ctypes.Structure):
    _fields_ = [("inputs", ctypes.c_int), ("outputs", ctypes.c_int), ("weight", _FLOATS), ("bias", _FLOATS)]


class _Policy(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in ("condition_size", "chunk_size", "action_size", "steps", "hidden")),
        ("center", _FLOATS),
        ("half_width", _FLOATS),
        ("from_condition", _Layer),
        ("from_chunk", _Layer),
        ("trunk", ctypes.POINTER(_Layer)),
        *((name, _FLOATS) for name in ("time_terms", "tables", "action_center", "action_half_width", "low", "high")),
    ]


def build(folder: Path) -> ctypes.CDLL:
    """Compiles gemv.c into ``folder``. Raises EnvironmentSetupError where there is no C compiler or it fails."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise EnvironmentSetupError("no C compiler (cc or gcc)")
    folder.mkdir(parents=True, exist_ok=True)
    library = (folder / "gemv.so").resolve()
    built = subprocess.run([compiler, *FLAGS, "-o", str(library), str(SOURCE), "-lm"], capture_output=True, text=True, check=False)
    if built.returncode:
        raise EnvironmentSetupError(f"{compiler} cannot compile {SOURCE.name}: {(built.stderr.splitlines() or ['no reason given'])[0]}")
    return ctypes.CDLL(str(library))


class GemvPolicy:
    """A plain diffusion policy's inference in C. Satisfies :class:`otpr_policy.chunk.ChunkPolicy`."""

    def __init__(self, library: ctypes.CDLL, reference: TorchPolicy) -> None:
        """Copies the weights. The policy must be one network with one candidate that is shown no differences of positions."""
        policy, reverse = reference.policy, reference.reverse
        assert isinstance(policy, DiffusionPolicy) and isinstance(reverse, ReverseChain)
        assert policy.frozen is None and reference.candidates == 1 and not policy.config.relative_positions
        self.spec, self.noise_shape = reference.spec, reference.noise_shape
        assert self.noise_shape[0] == reverse.steps  # every step but the last draws
        self._kept: list[object] = []
        self._infer = library.infer
        self._infer.restype = None
        self._struct = self._fill(policy, reverse)
        self._observation = np.zeros((self.spec.observation_horizon, self.spec.observation.size), dtype=np.float32)
        self._noise = np.zeros(self.noise_shape, dtype=np.float32)
        self._action = np.zeros(self.noise_shape[1:], dtype=np.float32)
        buffers = (self._observation, self._noise, self._action)
        self._arguments = (ctypes.byref(self._struct), *(array.ctypes.data_as(_FLOATS) for array in buffers))

    def infer(self, observation: Array, noise: Array, previous: Array | None = None) -> Array:
        """See ChunkPolicy."""
        self._observation[:] = observation
        self._noise[:] = noise
        self._infer(*self._arguments)
        return self._action.astype(np.float64)

    @torch.no_grad()
    def _fill(self, policy: DiffusionPolicy, reverse: ReverseChain) -> _Policy:
        network, spec, horizon = policy.network, self.spec, self.spec.observation_horizon
        layers = [self._layer(layer) for layer in network.trunk if isinstance(layer, torch.nn.Linear)]
        trunk = (_Layer * len(layers))(*layers)
        times = torch.cat([network.time_term(torch.tensor([k])) for k in reverse.timesteps])
        tables = [np.sqrt(1.0 - reverse.alpha_bar), np.sqrt(reverse.alpha_bar), reverse.x_0_weight, reverse.x_k_weight, reverse.std]
        return _Policy(
            horizon * spec.observation.size,
            spec.chunk_length * spec.action.size,
            spec.action.size,
            reverse.steps,
            len(layers),
            self._pointer(np.tile(policy.observation.center.numpy(), horizon)),
            self._pointer(np.tile(policy.observation.half_width.numpy(), horizon)),
            self._layer(network.from_condition),
            self._layer(network.from_chunk),
            trunk,
            self._pointer(times.numpy()),
            self._pointer(np.stack(tables, axis=1)),
            self._pointer(policy.action.center.numpy()),
            self._pointer(policy.action.half_width.numpy()),
            self._pointer(spec.action.low),
            self._pointer(spec.action.high),
        )

    def _layer(self, linear: torch.nn.Linear) -> _Layer:
        bias = torch.zeros(linear.out_features) if linear.bias is None else linear.bias
        return _Layer(linear.in_features, linear.out_features, self._pointer(linear.weight.T.numpy()), self._pointer(bias.numpy()))

    def _pointer(self, values: NDArray[np.floating]) -> "ctypes._Pointer[ctypes.c_float]":
        """The address of a copy that lives as long as this object."""
        array = np.ascontiguousarray(values, dtype=np.float32)
        self._kept.append(array)
        return array.ctypes.data_as(_FLOATS)
