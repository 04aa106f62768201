# SPDX-License-Identifier: Apache-2.0
"""Weights of an exported graph in a quarter of the bytes: int8, with inputs that are quantised as they come."""

from enum import Enum

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

_LEAST_INT8_SIZE = 4096  # numbers in a matrix; below, quantising its input costs more than the product


class Weights(Enum):
    """How the matrices of a graph are stored."""

    FP32 = "fp32"
    INT8 = "int8"  # a scale per column, and products of integers with an input quantised to 8 bits in each call


def with_weights(model: onnx.ModelProto, kind: Weights) -> onnx.ModelProto:
    """A copy of the graph with its matrices stored so; what else it holds stays float32.

    float16 is not among the kinds: ONNX Runtime turns it into float32 when it loads the file, so it is no faster.

    int8 is symmetric with one scale per output, and of products only (Gemm with alpha and beta 1); matrices below 4096 numbers stay.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if kind is Weights.INT8:
        floats = (tensor for tensor in copy.graph.initializer if tensor.data_type == TensorProto.FLOAT)
        _quantize(copy.graph, {tensor.name: tensor for tensor in floats if len(tensor.dims) == 2})
    return copy


def _quantize(graph: onnx.GraphProto, matrices: dict[str, onnx.TensorProto]) -> None:
    nodes: list[onnx.NodeProto] = []
    done: dict[str, tuple[str, str, str]] = {}
    for node in graph.node:
        tensor = matrices.get(node.input[1]) if node.op_type == "Gemm" else None
        settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        plain = settings.get("alpha", 1.0) == 1.0 and settings.get("beta", 1.0) == 1.0 and not settings.get("transA", 0)
        if tensor is None or not plain or np.prod(tensor.dims) < _LEAST_INT8_SIZE:
            nodes.append(node)
            continue
        if tensor.name not in done:
            matrix = numpy_helper.to_array(tensor)
            done[tensor.name] = _store(graph, tensor.name, matrix.T if settings.get("transB", 0) else matrix)
        nodes += _product(node, *done[tensor.name])
    _replace_nodes(graph, nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _store(graph: onnx.GraphProto, name: str, matrix: NDArray[np.float32]) -> tuple[str, str, str]:
    """Adds the quantised (inputs, outputs), its scale and its zero point; returns their names."""
    scale = np.maximum(np.abs(matrix).max(axis=0), np.finfo(np.float32).tiny) / 127.0
    quantised = np.clip(np.round(matrix / scale), -127, 127).astype(np.int8)
    values = {"int8": quantised, "scale": scale.astype(np.float32), "zero": np.zeros(matrix.shape[1], dtype=np.int8)}
    for word, value in values.items():
        graph.initializer.append(numpy_helper.from_array(value, f"{name}.{word}"))
    return f"{name}.int8", f"{name}.scale", f"{name}.zero"


def _product(node: onnx.NodeProto, matrix: str, scale: str, zero: str) -> list[onnx.NodeProto]:
    """In the form that ONNX Runtime knows as one operator."""
    own = node.output[0]
    x, x_scale, x_zero = (f"{own}.{word}" for word in ("x", "x_scale", "x_zero"))
    bias = len(node.input) > 2
    return [
        helper.make_node("DynamicQuantizeLinear", [node.input[0]], [x, x_scale, x_zero]),
        helper.make_node("MatMulInteger", [x, matrix, x_zero, zero], [f"{own}.sum"]),
        helper.make_node("Cast", [f"{own}.sum"], [f"{own}.float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [x_scale, scale], [f"{own}.scale"]),
        helper.make_node("Mul", [f"{own}.float", f"{own}.scale"], [f"{own}.product" if bias else own]),
        *([helper.make_node("Add", [f"{own}.product", node.input[2]], [own])] if bias else []),
    ]


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
