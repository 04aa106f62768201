# SPDX-License-Identifier: Apache-2.0
"""What an int8 graph must show before it is written: how far its actions are off, that it is faster here, and that it succeeds as often.

Rounding weights to 8 bits is no rounding error any more, so the bound of a float32 graph, 1e-4, says nothing of it. The float32 graph is
proved first; of the int8 graph the actions are bounded loosely, and success on paired episodes decides.
"""

import time
from dataclasses import replace

import numpy as np
import onnx

from otpr_policy.artifact import Parity
from otpr_policy.chunk import ChunkPolicy
from otpr_policy.errors import ArtifactError, RunError
from otpr_policy.inference import OnnxPolicy
from otpr_policy.spec import Array
from otpr_trainer.evaluate import EvaluationResult
from otpr_trainer.policy import TorchPolicy
from otpr_trainer.weights import Weights

TOLERANCE = 0.1  # of the action's range, end to end, the largest over the proof's inputs; a graph that computes something else is far off
LARGEST_DROP = 0.01  # of success, over
FEWEST_EPISODES = 200
_TURNS, _CALLS, _WARM_UP = 20, 40, 5


def check_request(reference: TorchPolicy, episodes: int) -> None:
    """Raises RunError when int8 cannot be proved for what is to be exported."""
    if reference.candidates > 1:
        raise RunError("int8 weights go with one candidate: rounding would choose among several")
    if reference.spec.reads_previous or reference.spec.reads_committed:
        raise RunError("int8 weights go with graphs that read observation and noise alone")
    if episodes < FEWEST_EPISODES:
        raise RunError(f"int8 weights need success on {FEWEST_EPISODES} paired episodes or more; pass --episodes {FEWEST_EPISODES}")


def prove_int8(reference: TorchPolicy, model: onnx.ModelProto, int8_model: onnx.ModelProto, inputs: int, proved: Parity) -> Parity:
    """The int8 graph's part of the manifest, from that of the float32 graph ``proved``.

    Raises:
        ArtifactError: its actions are off by more than TOLERANCE, or it is no faster than the float32 graph on this machine.
    """
    spec, shape = reference.spec, reference.noise_shape
    small, plain = (OnnxPolicy.from_graph(graph.SerializeToString(), spec, shape) for graph in (int8_model, model))
    rng = np.random.default_rng(0)
    observations = rng.uniform(spec.observation.low, spec.observation.high, (inputs, spec.observation_horizon, spec.observation.size))
    noise = rng.standard_normal((inputs, *shape))
    span = spec.action.high - spec.action.low
    errors = [float((np.abs(small.infer(o, z) - reference.infer(o, z)) / span).max()) for o, z in zip(observations, noise, strict=True)]
    worst = float(np.max(errors))
    if not worst <= TOLERANCE:
        raise ArtifactError(f"with int8 weights actions are off by {worst:.2f} of the range, more than {TOLERANCE:g}; nothing was written")
    seconds = _medians([plain, small], observations[0], noise[0])
    if seconds[1] >= seconds[0]:
        raise ArtifactError(
            f"with int8 weights an inference takes {1e3 * seconds[1]:.3f} ms on this computer, with float32 {1e3 * seconds[0]:.3f} ms; "
            "nothing was written"
        )
    return replace(proved, tolerance=TOLERANCE, end_to_end_error=worst, weights=Weights.INT8.value)


def check_success(trained: EvaluationResult, exported: EvaluationResult) -> None:
    """Raises ArtifactError when the exported graph succeeded in over a hundredth of the episodes less than the trained network."""
    episodes = len(trained.episodes)
    before, after = trained.success.successes, exported.success.successes
    if before - after > LARGEST_DROP * episodes:
        raise ArtifactError(
            f"with int8 weights {after} of {episodes} episodes succeed, {before} do without; at most "
            f"{LARGEST_DROP * episodes:g} fewer are accepted; nothing was written"
        )


def _medians(policies: list[ChunkPolicy], observation: Array, noise: Array) -> list[float]:
    """Median seconds of a call of each; they take turns, so that whatever else the machine does meets all."""
    seconds: list[list[float]] = [[] for _ in policies]
    for _ in range(_TURNS):
        for policy, taken in zip(policies, seconds, strict=True):
            for call in range(_WARM_UP + _CALLS):
                start = time.perf_counter()
                policy.infer(observation, noise)
                if call >= _WARM_UP:
                    taken.append(time.perf_counter() - start)
    return [float(np.median(taken)) for taken in seconds]
