# SPDX-License-Identifier: Apache-2.0
"""Laws of the policy file: what is not exactly a sound, self-contained policy is refused, with one kind of error."""

import hashlib
import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_policy
from onnx import TensorProto, helper, numpy_helper
from tiny_policy import stamped

from otpr_policy import artifact
from otpr_policy.artifact import METADATA_KEY, PolicyArtifact
from otpr_policy.errors import ArtifactError

CONTENT = tiny_policy.content()


def _with_node(node: onnx.NodeProto) -> bytes:
    model = tiny_policy.graph()
    model.graph.node.insert(0, node)
    return stamped(model)


def _with_constant(tensor: onnx.TensorProto) -> bytes:
    return _with_node(helper.make_node("Constant", [], ["unused"], value=tensor))


def _tensor(kind: int, raw: bytes) -> onnx.TensorProto:
    size = len(raw) // helper.tensor_dtype_to_np_dtype(kind).itemsize
    return helper.make_tensor("planted", kind, [size], raw, raw=True)


def test_a_sound_file_loads_with_its_manifest_and_its_identity(tmp_path: Path) -> None:
    loaded = artifact.load(tiny_policy.write(tmp_path / "tiny.onnx"))
    assert loaded == PolicyArtifact(CONTENT, hashlib.sha256(CONTENT).hexdigest(), tiny_policy.manifest())


def test_embedding_replaces_all_metadata_and_leaves_the_model_as_it_was() -> None:
    model = tiny_policy.graph()
    helper.set_model_props(model, {"built_in": "/home/someone", METADATA_KEY: "old"})
    before = model.SerializeToString()
    content = artifact.embed(model, tiny_policy.manifest())
    assert model.SerializeToString() == before
    assert b"/home/someone" not in content
    assert artifact.parse(content).manifest == tiny_policy.manifest()


def test_embedding_refuses_what_loading_would_refuse() -> None:
    model = tiny_policy.graph()
    model.graph.initializer[0].raw_data = b"\xff" * len(model.graph.initializer[0].raw_data)
    with pytest.raises(ArtifactError, match="not finite"):
        artifact.embed(model, tiny_policy.manifest())


# Files that are no policy at all


def test_a_missing_file_a_folder_and_a_file_of_something_else_are_named_in_the_refusal(tmp_path: Path) -> None:
    contents = {
        "empty": b"",
        "random": np.random.default_rng(0).bytes(5000),
        "zeros": bytes(5000),
        "unsealed": CONTENT[:-81],
        "text": b"robot: panda\n" * 50,
        "pickle": pickle.dumps({"w": [1.0] * 99}),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in (*contents, "missing", "."):
        with pytest.raises(ArtifactError, match=re.escape(str(tmp_path / name))):
            artifact.load(tmp_path / name)


def test_a_pickle_is_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[Path], object], tuple[Path]]:
            return Path.touch, (tmp_path / "sprung",)

    (tmp_path / "policy.onnx").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ArtifactError):
        artifact.load(tmp_path / "policy.onnx")
    assert not (tmp_path / "sprung").exists()


def test_a_file_above_the_size_limit_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_policy.write(tmp_path / "tiny.onnx")
    monkeypatch.setattr(artifact, "SIZE_LIMIT_BYTES", len(CONTENT))
    artifact.load(path)
    monkeypatch.setattr(artifact, "SIZE_LIMIT_BYTES", len(CONTENT) - 1)
    with pytest.raises(ArtifactError, match=f"too large; the limit is {len(CONTENT) - 1} bytes"):
        artifact.load(path)


def test_a_device_that_states_no_size_and_never_ends_is_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            assert size >= 0, "read to the end of what has none"
            return bytes(size)

    monkeypatch.setattr(artifact, "SIZE_LIMIT_BYTES", 1000)
    monkeypatch.setattr(Path, "open", lambda *_args: Endless())
    with pytest.raises(ArtifactError, match="too large"):
        artifact.load(Path("/dev/zero"))


# Graphs that reach outside the file or beyond the standard operators


@pytest.mark.parametrize("location", ["{folder}/secret.bin", "../secret.bin", "secret.bin", "/etc/passwd"])
@pytest.mark.parametrize("where", ["initializer", "constant"])
def test_weights_in_another_file_are_refused_and_that_file_is_not_opened(
    location: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    for folder in (tmp_path, tmp_path / "below"):
        (folder / "secret.bin").write_bytes(np.zeros(2, dtype=np.float32).tobytes())
    tensor = TensorProto(name="planted", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location.format(folder=tmp_path))
    model = tiny_policy.graph()
    if where == "initializer":
        model.graph.initializer.append(tensor)
    else:
        model.graph.node.insert(0, helper.make_node("Constant", [], ["unused"], value=tensor))
    path = tmp_path / "below" / "policy.onnx"
    path.write_bytes(stamped(model))
    monkeypatch.chdir(tmp_path / "below")
    read: list[str] = []
    to_array = numpy_helper.to_array

    def noting_to_array(tensor: onnx.TensorProto) -> np.ndarray[Any, Any]:
        read.append(tensor.name)
        return to_array(tensor)

    monkeypatch.setattr(numpy_helper, "to_array", noting_to_array)
    with pytest.raises(ArtifactError, match="planted lies in another file"):
        artifact.load(path)
    assert "planted" not in read


def test_a_reference_to_another_file_is_refused_even_when_the_data_location_says_here() -> None:
    tensor = _tensor(TensorProto.FLOAT, np.zeros(2, np.float32).tobytes())
    tensor.external_data.add(key="location", value="../secret.bin")
    with pytest.raises(ArtifactError, match="another file"):
        artifact.parse(_with_constant(tensor))


@pytest.mark.parametrize("domain", ["com.microsoft", "ai.onnx.ml", "custom", "ai.onnx.preview.training"])
def test_an_operator_outside_standard_onnx_is_refused(domain: str) -> None:
    model = tiny_policy.graph()
    model.graph.node[6].domain = domain
    model.opset_import.append(helper.make_opsetid(domain, 1))
    with pytest.raises(ArtifactError, match=f"'Tanh' of domain '{domain}'"):
        artifact.parse(stamped(model))


def test_loops_and_branches_are_refused() -> None:
    body = helper.make_graph([helper.make_node("Identity", ["weights"], ["copy"])], "body", [], [])
    for kind, attributes in (("If", {"then_branch": body, "else_branch": body}), ("Loop", {"body": body}), ("Scan", {"body": body})):
        with pytest.raises(ArtifactError, match=f"'{kind}' holds a subgraph"):
            artifact.parse(_with_node(helper.make_node(kind, ["flat"], ["out"], **attributes)))
    several = helper.make_node("Identity", ["flat"], ["out"])
    several.attribute.append(helper.make_attribute("bodies", [body]))
    with pytest.raises(ArtifactError, match="holds a subgraph"):
        artifact.parse(_with_node(several))


RANDOM = ["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"]


@pytest.mark.parametrize("kind", RANDOM)
def test_an_operator_that_draws_its_own_random_numbers_is_refused(kind: str) -> None:
    # With such a node the same observation and noise would not give the same action.
    node = helper.make_node(kind, [] if kind in ("RandomNormal", "RandomUniform") else ["weights"], ["drawn"])
    with pytest.raises(ArtifactError, match=f"operator '{kind}' draws random numbers"):
        artifact.parse(_with_node(node))


def test_functions_and_training_steps_are_refused() -> None:
    with_function = tiny_policy.graph()
    square = helper.make_node("Mul", ["x", "x"], ["y"])
    with_function.functions.append(helper.make_function("f", "Square", ["x"], ["y"], [square], [helper.make_opsetid("", 18)]))
    with_training = tiny_policy.graph()
    hidden = with_training.training_info.add().initialization.initializer.add(name="hidden", data_type=1, dims=[1], data_location=1)
    hidden.external_data.add(key="location", value="/etc/passwd")
    for model in (with_function, with_training):
        with pytest.raises(ArtifactError, match="one flat graph"):
            artifact.parse(stamped(model))


# Numbers that are none


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.complex64])
@pytest.mark.parametrize("place", [0, 2])
def test_a_single_number_that_is_not_finite_is_found(value: float, kind: type[np.generic], place: int) -> None:
    numbers = np.array([0.25, -1.0, 3.0], dtype=kind)
    tensor = numpy_helper.from_array(numbers, "planted")
    artifact.parse(_with_constant(tensor))
    numbers[place] = value
    tensor = numpy_helper.from_array(numbers, "planted")
    model = tiny_policy.graph()
    model.graph.initializer.append(tensor)
    for content in (_with_constant(tensor), stamped(model)):
        with pytest.raises(ArtifactError, match="planted holds a number that is not finite"):
            artifact.parse(content)


@pytest.mark.parametrize(
    ("kind", "one", "bad"),
    [
        (TensorProto.BFLOAT16, b"\x80\x3f", b"\xc0\x7f"),
        (TensorProto.BFLOAT16, b"\x80\x3f", b"\x80\xff"),
        (TensorProto.FLOAT8E4M3FN, b"\x38", b"\x7f"),
        (TensorProto.FLOAT8E5M2, b"\x3c", b"\x7c"),
    ],
)
def test_onnx_formats_that_numpy_does_not_know_are_checked_too(kind: int, one: bytes, bad: bytes) -> None:
    artifact.parse(_with_constant(_tensor(kind, one + one)))
    with pytest.raises(ArtifactError, match="not finite"):
        artifact.parse(_with_constant(_tensor(kind, one + bad)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_in_attributes_are_checked_too(value: float) -> None:
    for node in (
        helper.make_node("Constant", [], ["unused"], value_float=value),
        helper.make_node("Constant", [], ["unused"], value_floats=[1.0, value]),
        helper.make_node("Elu", ["weights"], ["unused"], alpha=value),
    ):
        with pytest.raises(ArtifactError, match=f"{node.op_type!r} holds a number that is not finite"):
            artifact.parse(_with_node(node))


def test_sparse_weights_and_weights_whose_size_is_not_their_datas_are_refused() -> None:
    sparse = tiny_policy.graph()
    sparse.graph.sparse_initializer.add()
    with pytest.raises(ArtifactError, match="sparse"):
        artifact.parse(stamped(sparse))
    node = helper.make_node("Constant", [], ["unused"])
    node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor.dims.append(1)
    with pytest.raises(ArtifactError, match="sparse"):
        artifact.parse(_with_node(node))
    short = _tensor(TensorProto.FLOAT, np.zeros(2, np.float32).tobytes())
    short.dims[0] = 3
    with pytest.raises(ArtifactError, match="planted cannot be read"):
        artifact.parse(_with_constant(short))


# Graphs that are not what the manifest says


def _changed_value(side: str, index: int, change: Callable[[onnx.ValueInfoProto], None]) -> bytes:
    model = tiny_policy.graph()
    change(getattr(model.graph, side)[index])
    return stamped(model)


def _dynamic(value: onnx.ValueInfoProto) -> None:
    value.type.tensor_type.shape.dim[0].dim_param = "batch"


def _without_dimension(value: onnx.ValueInfoProto) -> None:
    value.type.tensor_type.shape.dim[1].Clear()


def _larger(value: onnx.ValueInfoProto) -> None:
    value.type.tensor_type.shape.dim[1].dim_value += 1


def _double(value: onnx.ValueInfoProto) -> None:
    value.type.tensor_type.elem_type = TensorProto.DOUBLE


def _half(value: onnx.ValueInfoProto) -> None:
    value.type.tensor_type.elem_type = TensorProto.FLOAT16


@pytest.mark.parametrize(("side", "index", "name"), [("input", 0, "observation"), ("input", 1, "noise"), ("output", 0, "action")])
@pytest.mark.parametrize("change", [_dynamic, _without_dimension, _larger, _double, _half])
def test_each_input_and_output_must_have_the_manifests_shape_and_float32(
    side: str, index: int, name: str, change: Callable[[onnx.ValueInfoProto], None]
) -> None:
    with pytest.raises(ArtifactError, match=name):
        artifact.parse(_changed_value(side, index, change))


@pytest.mark.parametrize("old", ["observation", "noise", "action"])
def test_each_input_and_output_must_have_the_manifests_name(old: str) -> None:
    model = tiny_policy.graph()
    for value in (*model.graph.input, *model.graph.output):
        value.name = value.name.replace(old, "other")
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["other" if name == old else name for name in names]
    with pytest.raises(ArtifactError, match="other"):
        artifact.parse(stamped(model))


def test_an_input_too_many_an_output_too_many_and_one_too_few_are_refused() -> None:
    more_inputs, more_outputs, fewer = tiny_policy.graph(), tiny_policy.graph(), tiny_policy.graph()
    more_inputs.graph.input.append(helper.make_tensor_value_info("goal", TensorProto.FLOAT, [1]))
    more_outputs.graph.output.append(helper.make_tensor_value_info("latent", TensorProto.FLOAT, [1, 4, 7]))
    del fewer.graph.input[1]
    fewer.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1, 4, 7), np.float32), "noise"))
    for model, side in ((more_inputs, "inputs"), (more_outputs, "outputs"), (fewer, "inputs")):
        with pytest.raises(ArtifactError, match=f"graph {side} are"):
            artifact.parse(stamped(model))


def test_a_graph_whose_parts_do_not_join_is_refused() -> None:
    model = tiny_policy.graph()
    model.graph.node[1].input[1] = "nowhere"
    with pytest.raises(ArtifactError, match="not a valid ONNX graph"):
        artifact.parse(stamped(model))


def test_every_refusal_is_one_line() -> None:
    for content in (b"", CONTENT[:-1], stamped(tiny_policy.graph(), "[]"), _with_node(helper.make_node("Nonsense", [], ["x"]))):
        with pytest.raises(ArtifactError) as caught:
            artifact.parse(content)
        assert "\n" not in str(caught.value)
