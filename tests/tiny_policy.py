# SPDX-License-Identifier: Apache-2.0
"""A policy file for tests: a small graph, written by hand, whose actions can be computed by hand.

action = centre + 0.5 * range * tanh(observation @ weights + 0.1 * noise)

With ``reads_previous`` the previous chunk is added to the latent, zero where it is NaN. With ``reads_committed`` the action is
weight * committed + (1 - weight) * action.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from otpr_policy.artifact import METADATA_KEY, Denoising, Evaluation, Manifest, Parity, Provenance, embed
from otpr_policy.spec import Array, Field, PolicySpec, Semantics, VectorSpec
from otpr_policy.timeline import Committed

OBSERVATION = VectorSpec(
    (
        Field("ee_position", "m", (0.2, -0.4, -0.1), (0.8, 0.4, 0.4)),
        Field("ee_rotation", "1", (-1.0,) * 6, (1.0,) * 6),
        Field("gripper_position", "m", (0.0, 0.0), (0.04, 0.04)),
        Field("cube_position", "m", (0.3, -0.2, -0.12), (0.7, 0.2, 0.2)),
    )
)
ACTION = VectorSpec(
    (
        Field("ee_position_delta", "m", (-0.05,) * 3, (0.05,) * 3, Semantics.DELTA),
        Field("ee_rotation_delta", "rad", (-0.5,) * 3, (0.5,) * 3, Semantics.DELTA),
        Field("gripper_position", "m", (0.0,), (0.04,), Semantics.ABSOLUTE),
    )
)
SPEC = PolicySpec(OBSERVATION, ACTION, observation_horizon=1, chunk_length=4, executed_length=4, control_rate_hz=20.0)
NOISE_SHAPE = (1, SPEC.chunk_length, ACTION.size)


def weights(spec: PolicySpec = SPEC) -> Array:
    """(To * Do, Ta * Da), the same in every test."""
    rng = np.random.default_rng(5)
    rows = spec.observation_horizon * spec.observation.size
    return np.asarray(rng.normal(size=(rows, spec.chunk_length * spec.action.size)) * 0.3, dtype=np.float32).astype(np.float64)


def expected_action(
    observation: Array, noise: Array, spec: PolicySpec = SPEC, previous: Array | None = None, committed: Committed | None = None
) -> Array:
    """What the graph computes, in float64: observation (To, Do) and noise (1, Ta, Da) to actions (Ta, Da)."""
    low, high = spec.action.low, spec.action.high
    latent = (observation.reshape(-1) @ weights(spec)).reshape(spec.chunk_length, -1) + 0.1 * noise[0]
    latent = latent if previous is None else latent + np.nan_to_num(previous)
    action = np.asarray((low + high) / 2 + (high - low) / 2 * np.tanh(latent))
    return action if committed is None else committed.weight[:, None] * (committed.actions - action) + action


def graph(spec: PolicySpec = SPEC) -> onnx.ModelProto:
    """The graph without manifest."""
    chunk, size = spec.chunk_length, spec.action.size
    low, high = spec.action.low, spec.action.high
    constants = {
        "weights": weights(spec),
        "noise_scale": np.array(0.1),
        "centre": (low + high) / 2,
        "half_range": (high - low) / 2,
    }
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    initializers.append(numpy_helper.from_array(np.array([1, -1], dtype=np.int64), "flat"))
    initializers.append(numpy_helper.from_array(np.array([1, chunk, size], dtype=np.int64), "chunk_shape"))
    nodes = [
        helper.make_node("Reshape", ["observation", "flat"], ["flat_observation"]),
        helper.make_node("MatMul", ["flat_observation", "weights"], ["flat_latent"]),
        helper.make_node("Reshape", ["flat_latent", "chunk_shape"], ["mean_latent"]),
        helper.make_node("Reshape", ["noise", "chunk_shape"], ["chunk_noise"]),
        helper.make_node("Mul", ["chunk_noise", "noise_scale"], ["scaled_noise"]),
        helper.make_node("Add", ["mean_latent", "scaled_noise"], ["latent"]),
        helper.make_node("Tanh", ["continued" if spec.reads_previous else "latent"], ["squashed"]),
        helper.make_node("Mul", ["squashed", "half_range"], ["offset"]),
        helper.make_node("Add", ["offset", "centre"], ["free" if spec.reads_committed else "action"]),
    ]
    more = []
    if spec.reads_previous:
        initializers.append(numpy_helper.from_array(np.zeros((), dtype=np.float32), "nothing"))
        nodes[6:6] = [
            helper.make_node("IsNaN", ["previous"], ["absent"]),
            helper.make_node("Where", ["absent", "nothing", "previous"], ["known"]),
            helper.make_node("Add", ["latent", "known"], ["continued"]),
        ]
        more = [helper.make_tensor_value_info("previous", TensorProto.FLOAT, [1, chunk, size])]
    if spec.reads_committed:
        initializers.append(numpy_helper.from_array(np.array([1, chunk, 1], dtype=np.int64), "weight_shape"))
        nodes += [
            helper.make_node("Reshape", ["committed_weight", "weight_shape"], ["weight"]),
            helper.make_node("Sub", ["committed", "free"], ["difference"]),
            helper.make_node("Mul", ["weight", "difference"], ["drawn"]),
            helper.make_node("Add", ["drawn", "free"], ["action"]),
        ]
        more.append(helper.make_tensor_value_info("committed", TensorProto.FLOAT, [1, chunk, size]))
        more.append(helper.make_tensor_value_info("committed_weight", TensorProto.FLOAT, [1, chunk]))
    observation_shape = [1, spec.observation_horizon, spec.observation.size]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [
                helper.make_tensor_value_info("observation", TensorProto.FLOAT, observation_shape),
                helper.make_tensor_value_info("noise", TensorProto.FLOAT, [1, 1, chunk, size]),
                *more,
            ],
            [helper.make_tensor_value_info("action", TensorProto.FLOAT, [1, chunk, size])],
            initializers,
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )


def manifest(spec: PolicySpec = SPEC) -> Manifest:
    """A manifest that fits :func:`graph`."""
    return Manifest(
        policy=spec,
        noise_shape=(1, spec.chunk_length, spec.action.size),
        denoising=Denoising("ddim", 1, 1, 0.0),
        provenance=Provenance("bc", "lift", 3, "ab" * 32, "cd" * 20, "2026-01-02T03:04:05Z", "0.1.0"),
        parity=Parity(10, 1e-4, (1e-6,), 2e-6),
        evaluation=Evaluation(10, 20_000, 80, "the cube is lifted", 9, 9, 0),
    )


def content(spec: PolicySpec = SPEC) -> bytes:
    """The whole file."""
    return embed(graph(spec), manifest(spec))


def sealed(body: bytes) -> bytes:
    """``body`` with its checksum, byte by byte as docs/artifact.md gives it: field 14 of the model, a key and a value of text."""
    return body + b"\x72\x4f\x0a\x0botpr.sha256\x12\x40" + hashlib.sha256(body).hexdigest().encode()


def stamped(model: onnx.ModelProto, *manifests: str) -> bytes:
    """A whole file made without our own checks, with as many manifest entries as are given, by default the one that fits."""
    for text in manifests or (json.dumps(manifest().to_json()),):
        entry = model.metadata_props.add()
        entry.key, entry.value = METADATA_KEY, text
    return sealed(bytes(model.SerializeToString()))


def write(path: Path, spec: PolicySpec = SPEC) -> Path:
    """Writes the file and returns its path."""
    path.write_bytes(content(spec))
    return path
