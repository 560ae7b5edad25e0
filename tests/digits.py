"""Classifiers of scikit-learn's digits, trained here in well under a second, as ONNX graphs made
node by node; and smaller graphs for what digits cannot show."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

LABELS = tuple(str(digit) for digit in range(10))


@dataclass(frozen=True)
class Digits:
    """Images, uint8 ``[1797, 8, 8]`` with values 0 to 16, their labels, and disjoint parts."""

    images: NDArray[np.uint8]
    labels: tuple[str, ...]
    train: NDArray[np.int64]
    develop: NDArray[np.int64]
    certify: NDArray[np.int64]
    test: NDArray[np.int64]


@functools.cache
def digits() -> Digits:
    """The data set, split at random with a fixed seed."""
    from sklearn.datasets import load_digits

    data = load_digits()
    parts = np.split(np.random.default_rng(0).permutation(len(data.target)), [600, 800, 1400])
    return Digits(data.images.astype(np.uint8), tuple(map(str, data.target)), *parts)


@functools.cache
def trained(hidden: int) -> onnx.ModelProto:
    """A multi-layer perceptron with one hidden layer on features in [0, 1], ``x`` float32
    ``[batch, 64]`` to ``probabilities``."""
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits

    data = digits()
    model = MLPClassifier(
        (hidden,), learning_rate_init=0.01, tol=1e-3, max_iter=500, random_state=0
    )
    features = data.images.reshape(-1, 64).astype(np.float32) / 16
    # On a shared machine, threads for matrices this small mostly wait for each other.
    with threadpool_limits(1):
        model.fit(features[data.train], [data.labels[row] for row in data.train])
    return perceptron(list(zip(model.coefs_, model.intercepts_, strict=True)))


def perceptron(
    layers: Sequence[tuple[NDArray[np.floating], NDArray[np.floating]]],
    *,
    softmax: bool = True,
    batch: str | int = "batch",
) -> onnx.ModelProto:
    """Linear layers, shapes ``[in, out]`` and ``[out]``, with ReLU between; at the end a softmax,
    or logits."""
    nodes, weights, value = [], [], "x"
    for index, (matrix, bias) in enumerate(layers):
        for name, array in ((f"w{index}", matrix), (f"b{index}", bias)):
            weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        nodes.append(helper.make_node("MatMul", [value, f"w{index}"], [f"m{index}"]))
        nodes.append(helper.make_node("Add", [f"m{index}", f"b{index}"], [f"a{index}"]))
        value = f"a{index}"
        if index < len(layers) - 1:
            nodes.append(helper.make_node("Relu", [value], [f"r{index}"]))
            value = f"r{index}"
    output = "probabilities" if softmax else "logits"
    end = helper.make_node("Softmax", [value], [output], axis=-1)
    nodes.append(end if softmax else helper.make_node("Identity", [value], [output]))
    sizes = (layers[0][0].shape[0], layers[-1][0].shape[1])
    return model_of(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, sizes[0]])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, sizes[1]])],
        weights,
    )


def quantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with weights of 8 bits: rounded to a scale for each column."""
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    matrices = {
        t.name: numpy_helper.to_array(t) for t in graph.graph.initializer if len(t.dims) > 1
    }
    kept = [t for t in graph.graph.initializer if t.name not in matrices]
    nodes = []
    for name, matrix in matrices.items():
        scale = (np.abs(matrix).max(axis=0) / 127).astype(np.float32)
        rounded = np.round(matrix / scale).astype(np.int8)
        kept.append(numpy_helper.from_array(rounded, f"{name}.int8"))
        kept.append(numpy_helper.from_array(scale, f"{name}.scale"))
        inputs = [f"{name}.int8", f"{name}.scale"]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [name], axis=1))
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(kept)
    nodes.extend(graph.graph.node)
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    return graph


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    """A model of standard operators."""
    graph = helper.make_graph(nodes, "test", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
