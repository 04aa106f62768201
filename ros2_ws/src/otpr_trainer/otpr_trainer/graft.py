# SPDX-License-Identifier: Apache-2.0
"""Two policy graphs as one: the first one's chunk is where the second one starts."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from otpr_policy.artifact import PolicyArtifact
from otpr_policy.errors import ArtifactError

SOURCE_CHUNK = "source_chunk"
"""Input of the second graph that the first one's ``action`` becomes."""
_PREFIX = "source/"


def graft(source: PolicyArtifact, body: onnx.ModelProto) -> onnx.ModelProto:
    """``body`` with the source's graph before it.

    Both read one ``observation``, of which the source takes the newest steps that it reads, and one ``noise``, of which it takes the
    first draws. ``body`` has the third input ``source_chunk``, (1, Ta, Da) in physical units.

    Raises:
        ArtifactError: the graphs are written in different versions of ONNX's operators.
    """
    stock = onnx.ModelProto()
    stock.ParseFromString(source.content)
    versions = [{entry.domain: entry.version for entry in model.opset_import} for model in (stock, body)]
    if versions[0].get("") != versions[1].get(""):
        raise ArtifactError(
            f"the source's graph has ONNX operators of version {versions[0].get('')}, this exporter writes {versions[1].get('')}; "
            "export the source anew"
        )
    stock = onnx.compose.add_prefix(stock, _PREFIX)
    manifest = source.manifest
    horizon, draws = manifest.policy.observation_horizon, manifest.noise_shape[0]
    read = _shape(body, "observation")[1]
    merged = onnx.ModelProto()
    merged.CopyFrom(body)
    merged.ir_version = max(stock.ir_version, body.ir_version)
    graph = merged.graph
    del graph.node[:], graph.input[:]
    graph.input.extend(value for value in body.graph.input if value.name != SOURCE_CHUNK)
    graph.node.extend(_part("observation", read - horizon, read, graph))
    graph.node.extend(_part("noise", 0, draws, graph))
    graph.node.extend(stock.graph.node)
    graph.initializer.extend(stock.graph.initializer)
    graph.node.append(helper.make_node("Identity", [f"{_PREFIX}action"], [SOURCE_CHUNK], name=f"{_PREFIX}chunk"))
    graph.node.extend(body.graph.node)
    return merged


def _part(name: str, start: int, end: int, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The source's input of this name: rows start to end of ours, along the second axis."""
    words = {"start": start, "end": end, "axis": 1}
    for word, value in words.items():
        graph.initializer.append(numpy_helper.from_array(np.array([value], dtype=np.int64), f"{_PREFIX}{name}_{word}"))
    inputs = [name, *(f"{_PREFIX}{name}_{word}" for word in words)]
    return [helper.make_node("Slice", inputs, [f"{_PREFIX}{name}"], name=f"{_PREFIX}{name}_part")]


def _shape(model: onnx.ModelProto, name: str) -> list[int]:
    value = next(value for value in model.graph.input if value.name == name)
    assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    return [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
