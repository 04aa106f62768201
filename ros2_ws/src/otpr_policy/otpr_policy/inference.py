# SPDX-License-Identifier: Apache-2.0
"""Running a policy file: one ONNX Runtime session with fixed shapes at fixed addresses, on one thread of the CPU or as one CUDA graph."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from otpr_policy.artifact import PolicyArtifact, check_model
from otpr_policy.errors import ArtifactError, unknown
from otpr_policy.spec import Array, PolicySpec
from otpr_policy.timeline import Committed

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
_CUDA_OPTIONS = {
    "enable_cuda_graph": "1",  # the runs after the first replay its kernels with one launch, at the addresses that it used
    "use_tf32": "0",  # ten bits of mantissa are less than what export proved
}
_WARM_UP_CALLS = 20  # the first calls allocate; on CUDA they also choose kernels and capture the graph


class OnnxPolicy:
    """A policy file, ready to infer. Satisfies :class:`otpr_policy.chunk.ChunkPolicy`."""

    def __init__(
        self,
        content: bytes,
        spec: PolicySpec,
        noise_shape: tuple[int, ...],
        providers: Sequence[str] | None = None,
        allow_cpu: bool = False,
    ) -> None:
        """Opens a session on checked content and warms it up.

        Args:
            content: an ONNX file whose graph has inputs ``observation``, ``noise`` and, if the spec says so, ``previous``, or
                ``committed`` and ``committed_weight``; and output ``action``.
            spec: what the numbers mean.
            noise_shape: shape of one inference's noise.
            providers: execution providers, best first; by default CUDA where this ONNX Runtime is built with it, else the CPU.
            allow_cpu: whether the CPU will do where CUDA was wanted and does not come up, or cannot run the whole graph.

        Raises:
            ArtifactError: ONNX Runtime cannot run the graph, or the first provider is not active.
        """
        self.spec = spec
        self.noise_shape = noise_shape
        available = onnxruntime.get_available_providers()
        wanted = list(providers) if providers else [CUDA if CUDA in available else CPU]
        for provider in wanted:
            if provider not in available:  # ONNX Runtime would say so on standard output and take another
                raise ArtifactError(unknown("execution provider", provider, available))
        self._action_shape = (1, spec.chunk_length, spec.action.size)
        shapes = {"observation": (1, spec.observation_horizon, spec.observation.size), "noise": (1, *noise_shape)}
        if spec.reads_previous:
            shapes["previous"] = self._action_shape
        if spec.reads_committed:
            shapes |= {"committed": self._action_shape, "committed_weight": self._action_shape[:2]}
        self._inputs = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
        try:
            session = _open(content, wanted, allow_cpu)
            self.providers: tuple[str, ...] = tuple(session.get_providers())
            if wanted[0] == self.providers[0] or allow_cpu:
                self._binding = _Binding(session, self._inputs, self._action_shape)
                self._warm_up()
        except Exception as error:  # ONNX Runtime's exceptions have no public base class
            raise ArtifactError(f"ONNX Runtime cannot run the policy: {_reason(error)}") from error
        if wanted[0] != self.providers[0] and not allow_cpu:
            raise ArtifactError(
                f"asked for {wanted[0]}, but active are {', '.join(self.providers)}; 'otpr doctor' says what is missing, "
                "and --allow-cpu (parameter allow_cpu) lets the CPU do"
            )

    @classmethod
    def from_artifact(cls, artifact: PolicyArtifact, providers: Sequence[str] | None = None, allow_cpu: bool = False) -> "OnnxPolicy":
        """Opens a loaded policy file; see :meth:`__init__`."""
        return cls(artifact.content, artifact.manifest.policy, artifact.manifest.noise_shape, providers, allow_cpu)

    @classmethod
    def from_graph(cls, content: bytes, spec: PolicySpec, noise_shape: tuple[int, ...]) -> "OnnxPolicy":
        """Opens a graph that has no manifest yet, as export does to prove it. Raises ArtifactError."""
        check_model(content)
        return cls(content, spec, noise_shape, (CPU,))

    def infer(
        self,
        observation: NDArray[Any],
        noise: NDArray[Any],
        previous: NDArray[Any] | None = None,
        committed: Committed | None = None,
    ) -> Array:
        """See ChunkPolicy. A graph that reads the previous chunk is told of none by NaN, of nothing committed by weights of
        zero. Not thread-safe: the buffers are one set.

        Raises ValueError on another shape: numpy would otherwise broadcast one observation over the history. ONNX Runtime raises where
        a graph computes an output of another shape than the one it declares, since the output's place is fixed.
        """
        inputs = self._inputs
        expected = inputs["observation"].shape[1:]
        if observation.shape != expected or noise.shape != self.noise_shape:
            raise ValueError(f"observation {observation.shape} and noise {noise.shape}, expected {expected} and {self.noise_shape}")
        inputs["observation"][0] = observation
        inputs["noise"][0] = noise
        if self.spec.reads_previous:
            if previous is not None and previous.shape != self._action_shape[1:]:
                raise ValueError(f"previous chunk {previous.shape}, expected {self._action_shape[1:]}")
            inputs["previous"][0] = np.nan if previous is None else previous
        if self.spec.reads_committed:
            self._set_committed(committed)
        return self._binding.run()[0].astype(np.float64)

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


class _Binding:
    """A session with its inputs and its output at addresses that never change, as replaying a CUDA graph requires.

    On the CPU the graph reads and writes the arrays of numpy themselves.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, inputs: Mapping[str, NDArray[np.float32]], action_shape: tuple[int, ...]
    ) -> None:
        self._session = session
        self._on_cuda = session.get_providers()[0] == CUDA
        device = "cuda" if self._on_cuda else "cpu"
        self._inputs = inputs
        self._action = np.zeros(action_shape, dtype=np.float32)
        self._device_inputs = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array, device) for name, array in inputs.items()}
        self._device_action = onnxruntime.OrtValue.ortvalue_from_numpy(self._action, device)
        self._binding = session.io_binding()
        for name, value in self._device_inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        self._binding.bind_ortvalue_output("action", self._device_action)

    def run(self) -> NDArray[np.float32]:
        """The action for what the input arrays hold; the next run overwrites it."""
        if self._on_cuda:
            for name, value in self._device_inputs.items():
                value.update_inplace(self._inputs[name])
        self._session.run_with_iobinding(self._binding)
        return self._device_action.numpy() if self._on_cuda else self._action


def _open(content: bytes, providers: Sequence[str], allow_cpu: bool) -> onnxruntime.InferenceSession:
    options = _session_options()
    if CUDA not in providers:
        return onnxruntime.InferenceSession(content, options, providers=list(providers))
    onnxruntime.preload_dlls()  # pip's CUDA libraries are not where the loader looks
    # Else ONNX Runtime would silently leave to the CPU what CUDA cannot do, with a copy there and back, and no graph could be captured.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        return onnxruntime.InferenceSession(content, options, providers=[(CUDA, _CUDA_OPTIONS)])
    except Exception:
        if not allow_cpu:
            raise
    return onnxruntime.InferenceSession(content, _session_options(), providers=[CPU])


def _session_options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    # Networks this small are bound by memory: a second thread makes the median no better and the tail ten times worse.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors only; what a user can act on comes as an exception
    return options


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
