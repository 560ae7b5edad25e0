"""Block quantisation of an exported graph: its large constant matrices, wherever they are used.

Works on any decoder that optimum exported, with onnx and numpy alone: ``MatMul`` and ``Gemm`` by a
constant become ``MatMulNBits``, the embedding's ``Gather`` becomes ``GatherBlockQuantized``, and a
head that equals the embedding shares its bytes. All other nodes stay as they are. Exporting itself
is in ``export``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edge.build.blocks import Floats
from edge.build.matrices import AccuracyLevel, Matrices, Stored
from edge.build.nodes import CONTRIB, Nodes
from edge.build.quantise import BLOCK, Quantisation, quantise
from edge.build.weight_file import WeightFile

# Smaller constants stay inside the graph, where onnxruntime's optimiser looks at them.
_SMALL_BYTES = 1024


def write_exported(
    model: ModelProto,
    vocabulary: int,
    quantisation: Quantisation,
    weights: WeightFile,
    accuracy_level: AccuracyLevel,
) -> ModelProto:
    """Write the constants of ``model`` to ``weights`` and return the graph that uses them.

    Arguments:
        model: an exported decoder, its constants loaded.
        vocabulary: rows of the embedding and of the head, which ``int4`` leaves at eight bits.
        accuracy_level: of ``MatMulNBits``, as in ``graph.write_decoder``.
    """
    nodes = Nodes(weights)
    matrices = Matrices(nodes, accuracy_level)
    rewriter = _Rewriter(model, vocabulary, quantisation, nodes, matrices)
    for node in model.graph.node:
        rewriter.take(node)
    matrices.finish()
    rewriter.keep_constants()
    imports = [entry for entry in model.opset_import if entry.domain != CONTRIB]
    return helper.make_model(
        helper.make_graph(
            nodes.nodes,
            "decoder",
            model.graph.input,
            model.graph.output,
            nodes.initializers(),
        ),
        opset_imports=[*imports, helper.make_opsetid(CONTRIB, 1)],
        ir_version=model.ir_version,
        producer_name="edge-cloud-cascade",
    )


@dataclass(frozen=True, slots=True)
class _Linear:
    """``x W^T + bias`` as some node states it; ``weight`` is [outputs, inputs]."""

    x: str
    weight: Floats
    bias: str


class _Rewriter:
    """Copies nodes into ``nodes``, replacing those whose matrix is quantised."""

    def __init__(
        self,
        model: ModelProto,
        vocabulary: int,
        quantisation: Quantisation,
        nodes: Nodes,
        matrices: Matrices,
    ) -> None:
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        # The exporter stores equal tensors once and hands them on through Identity nodes.
        self._same_as = {
            node.output[0]: node.input[0]
            for node in model.graph.node
            if node.op_type == "Identity" and node.input[0] in self._constants
        }
        self._vocabulary = vocabulary
        self._quantisation = quantisation
        self._nodes = nodes
        self._matrices = matrices
        self._stored: dict[bytes, Stored] = {}

    def take(self, node: NodeProto) -> None:
        """Append ``node``, or what computes the same on a quantised matrix."""
        linear = self._linear(node)
        if linear is not None and self._quantisable(linear.weight):
            y = self._matrices.multiply(linear.x, self._store(linear.weight), linear.bias)
        elif (table := self._embedding(node)) is not None and self._quantisable(table):
            y = self._matrices.rows_of(self._store(table), node.input[1])
        else:
            self._nodes.nodes.append(node)
            return
        self._nodes.add("Identity", [y], [node.output[0]])

    def keep_constants(self) -> None:
        """Take over the constants that some node still reads."""
        read = {name for node in self._nodes.nodes for name in node.input}
        for name, tensor in self._constants.items():
            if name not in read:
                continue
            array = numpy_helper.to_array(tensor)
            if array.nbytes < _SMALL_BYTES:
                self._nodes.also(tensor)
            else:
                self._nodes.weight(name, array)

    def _linear(self, node: NodeProto) -> _Linear | None:
        if node.op_type == "MatMul":
            weight = self._matrix(node.input[1])
            return None if weight is None else _Linear(node.input[0], weight.T, "")
        if node.op_type == "Gemm":
            stated = {item.name: helper.get_attribute_value(item) for item in node.attribute}
            plain = all(stated.get(name, 1.0) == 1.0 for name in ("alpha", "beta"))
            weight = self._matrix(node.input[1])
            bias = node.input[2] if len(node.input) > 2 else ""
            vector = not bias or len(self._shape(bias)) == 1
            if weight is None or not plain or stated.get("transA", 0) or not vector:
                return None
            return _Linear(node.input[0], weight if stated.get("transB", 0) else weight.T, bias)
        return None

    def _embedding(self, node: NodeProto) -> Floats | None:
        if node.op_type != "Gather" or any(item.i for item in node.attribute):
            return None
        table = self._matrix(node.input[0])
        return table if table is not None and len(table) == self._vocabulary else None

    def _matrix(self, name: str) -> Floats | None:
        """The constant ``name``, if it is a matrix of floats."""
        tensor = self._constants.get(self._same_as.get(name, name))
        if tensor is None or tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2:
            return None
        return numpy_helper.to_array(tensor)

    def _shape(self, name: str) -> tuple[int, ...]:
        tensor = self._constants.get(self._same_as.get(name, name))
        return () if tensor is None else tuple(tensor.dims)

    def _quantisable(self, weight: Floats) -> bool:
        return self._quantisation != "fp32" and weight.shape[1] % BLOCK == 0

    def _store(self, weight: Floats) -> Stored:
        weight = np.ascontiguousarray(weight)
        key = hashlib.sha256(weight.data).digest()
        if key not in self._stored:
            four = self._quantisation == "int4" and len(weight) != self._vocabulary
            blocks = quantise(weight, 4 if four else 8)
            self._stored[key] = self._matrices.store(blocks, f"matrix.{len(self._stored)}")
        return self._stored[key]
