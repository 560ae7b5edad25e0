"""An exported graph made fit for a device: matrices in blocks, and slots for adapters.

Works on any decoder that optimum exported, with onnx and numpy alone: ``MatMul`` and ``Gemm`` by a
constant become ``MatMulNBits``, the embedding's ``Gather`` becomes ``GatherBlockQuantized``, and a
head that equals the embedding shares its bytes. Each linear of the model takes a LoRA adapter as
two more inputs, of rank 0 when idle. All other nodes stay as they are. Exporting itself is in
``export``; which node is which linear is in ``exported_slots``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edge.build.blocks import Floats
from edge.build.exported_slots import modules_by_output
from edge.build.graph import adapter_inputs
from edge.build.matrices import AccuracyLevel, Matrices, Stored
from edge.build.nodes import CONTRIB, Nodes
from edge.build.quantise import BLOCK, Quantisation, quantise
from edge.build.weight_file import WeightFile
from edge.bundle import AdapterSlot
from edge.slots import linear_name

# Smaller constants stay inside the graph, where onnxruntime's optimiser looks at them.
_SMALL_BYTES = 1024


def write_exported(
    model: ModelProto,
    vocabulary: int,
    quantisation: Quantisation,
    weights: WeightFile,
    accuracy_level: AccuracyLevel,
    *,
    linears: Sequence[str],
) -> tuple[ModelProto, tuple[AdapterSlot, ...]]:
    """Write the constants of ``model`` to ``weights``; the graph that uses them, and its slots.

    Arguments:
        model: an exported decoder, its constants loaded.
        vocabulary: rows of the embedding and of the head, which ``int4`` leaves at eight bits.
        accuracy_level: of ``MatMulNBits``, as in ``graph.write_decoder``.
        linears: paths of the model's modules that are to have slots.
    """
    nodes = Nodes(weights)
    matrices = Matrices(nodes, accuracy_level)
    rewriter = _Rewriter(
        model,
        vocabulary=vocabulary,
        quantisation=quantisation,
        nodes=nodes,
        matrices=matrices,
        linears=linears,
    )
    for node in model.graph.node:
        rewriter.take(node)
    matrices.finish()
    rewriter.keep_constants()
    imports = [entry for entry in model.opset_import if entry.domain != CONTRIB]
    slots = tuple(rewriter.slots.values())
    written = helper.make_model(
        helper.make_graph(
            nodes.nodes,
            "decoder",
            [*model.graph.input, *adapter_inputs(slots)],
            model.graph.output,
            nodes.initializers(),
        ),
        opset_imports=[*imports, helper.make_opsetid(CONTRIB, 1)],
        ir_version=model.ir_version,
        producer_name="edge-cloud-cascade",
    )
    return written, slots


@dataclass(frozen=True, slots=True)
class _Linear:
    """``x W^T + bias`` as some node states it; ``weight`` is [outputs, inputs]."""

    x: str
    weight: Floats
    bias: str


class _Rewriter:
    """Copies nodes into ``nodes``, replacing those whose matrix is quantised.

    Attributes:
        slots: by linear, where the nodes that were taken so far take adapters.
    """

    def __init__(
        self,
        model: ModelProto,
        *,
        vocabulary: int,
        quantisation: Quantisation,
        nodes: Nodes,
        matrices: Matrices,
        linears: Sequence[str],
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
        self._modules = modules_by_output(self._by_constants(model), linears)
        self.slots: dict[str, AdapterSlot] = {}

    def take(self, node: NodeProto) -> None:
        """Append ``node``, or what computes the same on a quantised matrix and with an adapter."""
        linear, module = self._linear(node), self._modules.get(node.output[0])
        if linear is not None and self._quantisable(linear.weight):
            y = self._matrices.multiply(linear.x, self._store(linear.weight), linear.bias)
        elif linear is not None and module is not None:
            y = f"{node.output[0]}.base"
            self._nodes.nodes.append(_renamed(node, y))
        elif (table := self._embedding(node)) is not None and self._quantisable(table):
            y = self._matrices.rows_of(self._store(table), node.input[1])
        else:
            self._nodes.nodes.append(node)
            return
        if linear is not None and module is not None:
            y = self._adapted(y, linear, module, flat=node.op_type == "Gemm")
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

    def _adapted(self, y: str, linear: _Linear, module: str, *, flat: bool) -> str:
        """y + (x A) B; one node less where activations are [T, width], not [1, T, width]."""
        name, (outputs, inputs) = linear_name(module), linear.weight.shape
        slot = self.slots.setdefault(name, AdapterSlot(name, inputs, (name,), (outputs,)))
        low = self._nodes.apply("MatMul", linear.x, slot.input_a)
        if flat:
            return self._nodes.apply("Gemm", low, slot.input_b, y)
        return self._nodes.apply("Add", y, self._nodes.apply("MatMul", low, slot.input_b))

    def _by_constants(self, model: ModelProto) -> Iterator[tuple[NodeProto, str]]:
        for node in model.graph.node:
            if self._linear(node) is not None:
                yield node, self._same_as.get(node.input[1], node.input[1])

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


def _renamed(node: NodeProto, output: str) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.output[0] = output
    return copy
