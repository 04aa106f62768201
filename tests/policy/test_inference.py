# SPDX-License-Identifier: Apache-2.0
"""Laws of inference: it computes the graph, on what it is given, and nothing survives from one call to the next."""

import gc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_policy
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from otpr_policy import artifact
from otpr_policy.errors import ArtifactError
from otpr_policy.inference import OnnxPolicy
from otpr_policy.spec import Array, PolicySpec
from otpr_policy.timeline import Committed

TWO_STEPS = replace(tiny_policy.SPEC, observation_horizon=2)


def _policy(spec: PolicySpec = tiny_policy.SPEC, providers: Sequence[str] | None = ("CPUExecutionProvider",)) -> OnnxPolicy:
    return OnnxPolicy.from_artifact(artifact.parse(tiny_policy.content(spec)), providers)


def _inputs(seed: int, spec: PolicySpec = tiny_policy.SPEC) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    observation = rng.uniform(spec.observation.low, spec.observation.high, (spec.observation_horizon, spec.observation.size))
    return observation, rng.standard_normal((1, spec.chunk_length, spec.action.size))


@pytest.mark.parametrize("spec", [tiny_policy.SPEC, TWO_STEPS])
def test_an_action_is_what_the_graph_says_in_physical_units(spec: PolicySpec) -> None:
    policy = _policy(spec)
    for seed in range(10):
        observation, noise = _inputs(seed, spec)
        action = policy.infer(observation, noise)
        assert action.dtype == np.float64
        assert action.shape == (4, 7)
        np.testing.assert_allclose(action, tiny_policy.expected_action(observation, noise, spec), atol=1e-6, rtol=0)


def test_a_graph_that_reads_its_previous_chunk_is_told_of_none_by_nan() -> None:
    spec = replace(tiny_policy.SPEC, reads_previous=True)
    policy = _policy(spec)
    observation, noise = _inputs(2, spec)
    previous = np.linspace(-1.0, 1.0, 28).reshape(4, 7)
    for known in (previous, None, previous):
        expected = tiny_policy.expected_action(observation, noise, spec, known)
        np.testing.assert_allclose(policy.infer(observation, noise, known), expected, atol=1e-6, rtol=0)
    assert np.array_equal(policy.infer(observation, noise, np.full((4, 7), np.nan)), policy.infer(observation, noise))
    with pytest.raises(ValueError, match="previous chunk"):
        policy.infer(observation, noise, previous[:1])


def test_a_graph_that_reads_what_is_committed_is_told_of_nothing_by_weights_of_zero() -> None:
    spec = replace(tiny_policy.SPEC, reads_committed=True)
    policy, plain = _policy(spec), _policy()
    observation, noise = _inputs(2, spec)
    committed = Committed(np.linspace(-1.0, 1.0, 28).reshape(4, 7), np.array([1.0, 0.75, 0.25, 0.0]))
    for known in (committed, None, committed):
        expected = tiny_policy.expected_action(observation, noise, spec, committed=known)
        np.testing.assert_allclose(policy.infer(observation, noise, committed=known), expected, atol=1e-6, rtol=0)
    assert np.array_equal(policy.infer(observation, noise), plain.infer(observation, noise))
    for wrong in (Committed(committed.actions[:1], committed.weight), Committed(committed.actions, committed.weight[:1])):
        with pytest.raises(ValueError, match="committed actions and weights"):
            policy.infer(observation, noise, committed=wrong)


def test_a_graph_without_manifest_computes_the_same_as_the_file() -> None:
    content = tiny_policy.graph().SerializeToString()
    graph = OnnxPolicy.from_graph(content, tiny_policy.SPEC, tiny_policy.NOISE_SHAPE)
    observation, noise = _inputs(1)
    assert np.array_equal(graph.infer(observation, noise), _policy().infer(observation, noise))
    with pytest.raises(ArtifactError):
        OnnxPolicy.from_graph(content[:-9], tiny_policy.SPEC, tiny_policy.NOISE_SHAPE)


@pytest.mark.parametrize("shape", [(14,), (1, 14), (3, 14), (2, 1), (2, 13), (1, 2, 14), ()])
def test_an_observation_of_another_shape_is_refused_rather_than_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        _policy(TWO_STEPS).infer(np.zeros(shape), np.zeros((1, 4, 7)))


@pytest.mark.parametrize("shape", [(4, 7), (7,), (1, 1, 7), (1, 1, 4, 7), (1, 4, 1), (2, 4, 7), ()])
def test_noise_of_another_shape_is_refused_rather_than_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        _policy().infer(np.zeros((1, 14)), np.zeros(shape))


def test_a_call_does_not_depend_on_the_calls_before_it() -> None:
    observation, noise = _inputs(0)
    fresh = _policy().infer(observation, noise)
    used = _policy()
    for seed in range(1, 20):
        used.infer(*_inputs(seed))
    used.infer(np.full((1, 14), np.nan), np.full((1, 4, 7), np.nan))
    assert used.infer(observation, noise).tobytes() == fresh.tobytes()


def test_an_earlier_result_is_not_overwritten_by_later_calls() -> None:
    policy = _policy()
    observation, noise = _inputs(0)
    first = policy.infer(observation, noise)
    kept = first.copy()
    for seed in range(1, 20):
        policy.infer(*_inputs(seed))
    del policy
    gc.collect()
    assert np.array_equal(first, kept)


def test_the_inputs_are_left_as_they_were_and_the_result_belongs_to_the_caller() -> None:
    policy = _policy()
    observation, noise = _inputs(0)
    before = observation.tobytes(), noise.tobytes()
    first = policy.infer(observation, noise)
    expected = first.copy()
    first[:] = 99.0
    assert (observation.tobytes(), noise.tobytes()) == before
    assert np.array_equal(policy.infer(observation, noise), expected)


def test_two_policies_in_one_process_do_not_mix() -> None:
    one, two = _policy(), _policy(replace(tiny_policy.SPEC, chunk_length=6))
    observation, noise = _inputs(3)
    alone = one.infer(observation, noise)
    two.infer(observation, np.ones((1, 6, 7)))
    assert np.array_equal(one.infer(observation, noise), alone)


def test_one_thread_runs_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[onnxruntime.SessionOptions] = []
    session = onnxruntime.InferenceSession

    def watch(content: bytes, options: onnxruntime.SessionOptions, **others: object) -> onnxruntime.InferenceSession:
        seen.append(options)
        return session(content, options, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", watch)
    _policy()
    assert [(options.intra_op_num_threads, options.inter_op_num_threads) for options in seen] == [(1, 1)]
    assert seen[0].execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL


def test_the_active_provider_is_reported() -> None:
    assert _policy().providers == ("CPUExecutionProvider",)
    assert _policy(providers=None).providers[-1] == "CPUExecutionProvider"


@pytest.mark.parametrize("provider", ["NoSuchExecutionProvider", "CUDAExecutionProvider"])
def test_a_provider_that_was_asked_for_and_is_not_there_is_refused(
    provider: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ArtifactError, match=f"unknown execution provider '{provider}'; known: CPUExecutionProvider"):
        _policy(providers=[provider, "CPUExecutionProvider"])
    assert capsys.readouterr().out == ""  # standard output belongs to --json


def _only_the_cpu_comes_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX Runtime built with CUDA on a machine without a GPU: it offers CUDA, and opens a session on the CPU."""
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda content, _options, providers: session(content, providers=["CPUExecutionProvider"]),
    )


@pytest.mark.parametrize("providers", [None, ["CUDAExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"]])
def test_a_provider_that_is_installed_but_does_not_come_up_is_refused(providers: list[str] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    _only_the_cpu_comes_up(monkeypatch)
    with pytest.raises(ArtifactError, match=r"asked for CUDAExecutionProvider, but active are CPUExecutionProvider; .* --allow-cpu"):
        _policy(providers=providers)


def test_the_cpu_does_in_place_of_cuda_where_that_is_allowed_and_where_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    observation, noise = _inputs(4)
    expected = _policy().infer(observation, noise)
    _only_the_cpu_comes_up(monkeypatch)
    allowed = OnnxPolicy.from_artifact(artifact.parse(tiny_policy.content()), allow_cpu=True)
    for policy in (allowed, _policy(providers=["CPUExecutionProvider"])):
        assert policy.providers == ("CPUExecutionProvider",)
        assert np.array_equal(policy.infer(observation, noise), expected)


def test_a_cuda_session_that_raises_is_an_error_unless_the_cpu_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    asked: list[object] = []

    def open_session(content: bytes, options: onnxruntime.SessionOptions, providers: list[Any]) -> onnxruntime.InferenceSession:
        asked.append(providers[0])
        if providers != ["CPUExecutionProvider"]:
            assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
            raise RuntimeError("a node is assigned to the CPU")
        return session(content, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
    with pytest.raises(ArtifactError, match="a node is assigned to the CPU"):
        _policy(providers=None)
    assert asked == [("CUDAExecutionProvider", {"enable_cuda_graph": "1", "use_tf32": "0"})]
    assert OnnxPolicy.from_artifact(artifact.parse(tiny_policy.content()), allow_cpu=True).providers == ("CPUExecutionProvider",)


@pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="this ONNX Runtime has no CUDA")
def test_on_cuda_a_replayed_graph_computes_what_the_cpu_computes_on_inputs_that_change() -> None:
    on_cuda, on_cpu = _policy(providers=["CUDAExecutionProvider"]), _policy()
    assert on_cuda.providers[0] == "CUDAExecutionProvider"
    for seed in range(50):
        observation, noise = _inputs(seed)
        np.testing.assert_allclose(on_cuda.infer(observation, noise), on_cpu.infer(observation, noise), atol=1e-6)


def _appended(nodes: list[onnx.NodeProto], **constants: NDArray[Any]) -> bytes:
    """The tiny graph with its action renamed to ``tiny_action`` and ``nodes`` making the action from it."""
    model = tiny_policy.graph()
    model.graph.node[-1].output[0] = "tiny_action"
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    model.graph.node.extend(nodes)
    return artifact.embed(model, tiny_policy.manifest())


def test_a_graph_that_fails_when_it_runs_is_refused_before_the_robot_moves() -> None:
    nodes = [
        helper.make_node("Cast", ["noise"], ["whole"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["whole"], ["index"], keepdims=0),
        helper.make_node("Add", ["index", "far"], ["outside"]),
        helper.make_node("Gather", ["tiny_action", "outside"], ["row"]),
        helper.make_node("Add", ["row", "tiny_action"], ["action"]),
    ]
    content = _appended(nodes, far=np.array(10**6))
    with pytest.raises(ArtifactError, match="ONNX Runtime cannot run the policy"):
        OnnxPolicy.from_artifact(artifact.parse(content))


@pytest.mark.parametrize("rows", [0, 2])
def test_a_graph_that_yields_another_shape_than_it_declares_is_refused_before_the_robot_moves(rows: int) -> None:
    nodes = [  # the number of rows is computed, so that nothing but running it can tell
        helper.make_node("ReduceSum", ["noise"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Cast", ["nothing"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Add", ["whole", "rows"], ["end"]),
        helper.make_node("Slice", ["tiny_action", "start", "end", "axis"], ["action"]),
    ]
    content = _appended(nodes, zero=np.array(0, np.float32), rows=np.array([rows]), start=np.array([0]), axis=np.array([1]))
    with pytest.raises(ArtifactError, match=rf"cannot run the policy: .*\{{1,4,7\}} .*\{{1,{rows},7\}}"):
        OnnxPolicy.from_artifact(artifact.parse(content))
