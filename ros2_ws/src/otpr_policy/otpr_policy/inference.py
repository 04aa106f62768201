# SPDX-License-Identifier: Apache-2.0
"""Running a policy file: one ONNX Runtime session with fixed shapes, one thread, and a clock on every call."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from otpr_policy.artifact import PolicyArtifact, check_model
from otpr_policy.errors import ArtifactError, unknown
from otpr_policy.spec import Array, PolicySpec
from otpr_policy.timeline import Committed

_CUDA = "CUDAExecutionProvider"
_PREFERRED_PROVIDERS = (_CUDA, "CPUExecutionProvider")
_WARM_UP_CALLS = 20  # the first calls allocate; the first CUDA call also compiles


class OnnxPolicy:
    """A policy file, ready to infer. Satisfies :class:`otpr_policy.chunk.ChunkPolicy`."""

    def __init__(self, content: bytes, spec: PolicySpec, noise_shape: tuple[int, ...], providers: Sequence[str] | None = None) -> None:
        """Opens a session on checked content and warms it up.

        Args:
            content: an ONNX file whose graph has inputs ``observation``, ``noise`` and, if the spec says so, ``previous``, or
                ``committed`` and ``committed_weight``; and output ``action``.
            spec: what the numbers mean.
            noise_shape: shape of one inference's noise.
            providers: execution providers, best first; by default CUDA where this ONNX Runtime has it, else CPU.

        Raises:
            ArtifactError: ONNX Runtime cannot run the graph, or a provider that was asked for by name is not active.
        """
        self.spec = spec
        self.noise_shape = noise_shape
        available = onnxruntime.get_available_providers()
        wanted = list(providers) if providers else [p for p in _PREFERRED_PROVIDERS if p in available]
        for provider in wanted:
            if provider not in available:  # ONNX Runtime would say so on standard output and take another
                raise ArtifactError(unknown("execution provider", provider, available))
        self._observation = np.zeros((1, spec.observation_horizon, spec.observation.size), dtype=np.float32)
        self._noise = np.zeros((1, *noise_shape), dtype=np.float32)
        self._action_shape = (1, spec.chunk_length, spec.action.size)
        self._inputs = {"observation": self._observation, "noise": self._noise}
        if spec.reads_previous:
            self._inputs["previous"] = np.full(self._action_shape, np.nan, dtype=np.float32)
        if spec.reads_committed:
            self._inputs["committed"] = np.zeros(self._action_shape, dtype=np.float32)
            self._inputs["committed_weight"] = np.zeros((1, spec.chunk_length), dtype=np.float32)
        if _CUDA in wanted:
            onnxruntime.preload_dlls()  # pip's CUDA libraries are not where the loader looks
        try:
            self._session = onnxruntime.InferenceSession(content, _session_options(), providers=wanted)
            self._warm_up()
        except Exception as error:  # ONNX Runtime's exceptions have no public base class
            raise ArtifactError(f"ONNX Runtime cannot run the policy: {str(error).splitlines()[0]}") from error
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        if providers and providers[0] != self.providers[0]:
            raise ArtifactError(f"asked for {providers[0]}, but active are {', '.join(self.providers)}")

    @classmethod
    def from_artifact(cls, artifact: PolicyArtifact, providers: Sequence[str] | None = None) -> "OnnxPolicy":
        """Opens a loaded policy file; see :meth:`__init__`."""
        return cls(artifact.content, artifact.manifest.policy, artifact.manifest.noise_shape, providers)

    @classmethod
    def from_graph(cls, content: bytes, spec: PolicySpec, noise_shape: tuple[int, ...]) -> "OnnxPolicy":
        """Opens a graph that has no manifest yet, as export does to prove it. Raises ArtifactError."""
        check_model(content)
        return cls(content, spec, noise_shape, ("CPUExecutionProvider",))

    def infer(
        self,
        observation: NDArray[Any],
        noise: NDArray[Any],
        previous: NDArray[Any] | None = None,
        committed: Committed | None = None,
    ) -> Array:
        """See ChunkPolicy. A graph that reads the previous chunk is told of none by NaN, of nothing committed by weights of zero.

        Raises ValueError on another shape: numpy would otherwise broadcast one observation over the history. A graph
        can compute the shape of its output, so what it declares is no proof of that either.
        """
        if observation.shape != self._observation.shape[1:] or noise.shape != self.noise_shape:
            raise ValueError(
                f"observation {observation.shape} and noise {noise.shape}, expected {self._observation.shape[1:]} and {self.noise_shape}"
            )
        self._observation[0] = observation
        self._noise[0] = noise
        if self.spec.reads_previous:
            if previous is not None and previous.shape != self._action_shape[1:]:
                raise ValueError(f"previous chunk {previous.shape}, expected {self._action_shape[1:]}")
            self._inputs["previous"][0] = np.nan if previous is None else previous
        if self.spec.reads_committed:
            self._set_committed(committed)
        (action,) = self._session.run(["action"], self._inputs)
        if action.shape != self._action_shape:
            raise ValueError(f"the graph yields an action of shape {action.shape}, expected {self._action_shape}")
        return np.asarray(action[0], dtype=np.float64)

    def _set_committed(self, committed: Committed | None) -> None:
        actions, weight = self._inputs["committed"][0], self._inputs["committed_weight"][0]
        if committed is None:
            actions[:], weight[:] = 0.0, 0.0
            return
        if committed.actions.shape != actions.shape or committed.weight.shape != weight.shape:
            shapes = f"{committed.actions.shape} and {committed.weight.shape}"
            raise ValueError(f"committed actions and weights {shapes}, expected {actions.shape} and {weight.shape}")
        actions[:], weight[:] = committed.actions, committed.weight

    def _warm_up(self) -> None:
        middle = (self.spec.observation.low + self.spec.observation.high) / 2
        observation = np.tile(middle, (self.spec.observation_horizon, 1))
        noise = np.random.default_rng(0).standard_normal(self.noise_shape)
        for _ in range(_WARM_UP_CALLS):
            self.infer(observation, noise)


def _session_options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    # Networks this small are bound by memory: a second thread makes the median no better and the tail ten times worse.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors only; what a user can act on comes as an exception
    return options
