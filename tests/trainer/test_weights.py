# SPDX-License-Identifier: Apache-2.0
"""int8 weights: the graph computes nearly the same with a quarter of the bytes, and is refused where success or speed does not bear it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from otpr_policy.artifact import Parity
from otpr_policy.errors import ArtifactError, RunError
from otpr_policy.success import SuccessRate
from otpr_trainer import int8_proof
from otpr_trainer.weights import Weights, with_weights

WIDTH = 96


def _layers(alpha: float = 1.0, trans_b: int = 0) -> onnx.ModelProto:
    """Two layers of 96, one of them used twice, and one of 96 x 4, too small for int8."""
    rng = np.random.default_rng(0)
    shapes = {"w": (WIDTH, WIDTH), "v": (WIDTH, WIDTH), "small": (WIDTH, 4)}
    constants = {name: rng.normal(size=shape).astype(np.float32) / WIDTH**0.5 for name, shape in shapes.items()}
    constants |= {"b": rng.normal(size=(1, WIDTH)).astype(np.float32)}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["one"], transB=trans_b),
        helper.make_node("Tanh", ["one"], ["h"]),
        helper.make_node("Gemm", ["h", "v", "x"], ["two"], alpha=alpha),
        helper.make_node("Gemm", ["two", "w"], ["three"], transB=trans_b),
        helper.make_node("Gemm", ["three", "small"], ["y"]),
    ]
    value = lambda name, size: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])  # noqa: E731
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "layers", [value("x", WIDTH)], [value("y", 4)], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model)
    (y,) = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    return y


@pytest.mark.parametrize("trans_b", [0, 1])
def test_int8_computes_nearly_the_same_in_a_third_of_the_bytes(trans_b):
    model = _layers(trans_b=trans_b)
    small = with_weights(model, Weights.INT8)
    x = np.random.default_rng(1).normal(size=(1, WIDTH)).astype(np.float32)
    exact, near = _run(model, x), _run(small, x)
    assert 0.0 < np.abs(near - exact).max() < 0.03 * np.abs(exact).max()
    assert len(small.SerializeToString()) < 0.35 * len(model.SerializeToString())
    kinds = [tensor.data_type for tensor in small.graph.initializer if len(tensor.dims) == 2]
    assert kinds.count(TensorProto.INT8) == 2, "a matrix that is used twice is stored once, the small one stays"
    assert not any(node.domain for node in small.graph.node)


def test_a_product_with_a_factor_stays_as_it_is_and_so_does_the_given_model():
    model = _layers(alpha=0.5)
    before = model.SerializeToString()
    small = with_weights(model, Weights.INT8)
    assert [node.op_type for node in small.graph.node].count("MatMulInteger") == 2
    assert model.SerializeToString() == before
    assert with_weights(model, Weights.FP32) == model


def _outcome(successes: int, episodes: int = 200) -> SimpleNamespace:
    return SimpleNamespace(episodes=[None] * episodes, success=SuccessRate(successes, episodes))


def test_success_may_drop_by_one_point_and_no_more():
    int8_proof.check_success(_outcome(198), _outcome(196))
    int8_proof.check_success(_outcome(190), _outcome(200))
    with pytest.raises(ArtifactError, match="195 of 200 episodes succeed, 198 do without"):
        int8_proof.check_success(_outcome(198), _outcome(195))


def test_what_success_cannot_prove_is_refused_before_anything_is_computed():
    spec = SimpleNamespace(reads_previous=False, reads_committed=False)
    int8_proof.check_request(SimpleNamespace(candidates=1, spec=spec), 200)
    with pytest.raises(RunError, match="--episodes 200"):
        int8_proof.check_request(SimpleNamespace(candidates=1, spec=spec), 199)
    with pytest.raises(RunError, match="one candidate"):
        int8_proof.check_request(SimpleNamespace(candidates=2, spec=spec), 200)


class _Fake:
    def __init__(self, value: float) -> None:
        self.value = value

    def infer(self, observation, noise, previous=None):
        return np.full((4, 7), self.value)


@pytest.mark.parametrize(("value", "medians", "reason"), [(0.5, [2.0, 1.0], "off by"), (0.0, [1.0, 1.0], "takes"), (0.0, [2.0, 1.0], None)])
def test_actions_far_off_or_no_gain_in_time_are_refused_with_the_numbers(monkeypatch, value, medians, reason):
    import tiny_policy

    graphs = iter([_Fake(value), _Fake(0.0)])
    monkeypatch.setattr(int8_proof.OnnxPolicy, "from_graph", lambda *_: next(graphs))
    monkeypatch.setattr(int8_proof, "_medians", lambda *_: medians)
    reference = SimpleNamespace(spec=tiny_policy.SPEC, noise_shape=tiny_policy.NOISE_SHAPE, infer=_Fake(0.0).infer)
    proved = Parity(10, 1e-4, (1e-6,), 2e-6)
    model = onnx.ModelProto()
    if reason is None:
        parity = int8_proof.prove_int8(reference, model, model, 10, proved)
        assert parity == replace(proved, tolerance=0.1, end_to_end_error=0.0, weights="int8")
        return
    with pytest.raises(ArtifactError, match=reason):
        int8_proof.prove_int8(reference, model, model, 10, proved)
