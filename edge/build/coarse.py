"""Products of the trunk in whole numbers, at about half the price of floats.

A product of many tokens is bound by arithmetic, of which there is twice as much in 8-bit integers.
One scale a token and one a row of W are too few for a transformer as it is, whose activations are
large in few channels. So both are turned by an orthogonal H first, which spreads what is large over
its neighbours (QuaRot, arXiv 2404.00456) and leaves the product as it is:

    x W^T  =  (x H)(W H)^T          H: Sylvester's Hadamard matrix / 8, over blocks of 64 channels

Codes reach to 90 on both sides of zero, tokens' and weights': kernels without dot products (AVX2)
take the former as 0 to 180 and add two products in 16 bits, which is 32,400 at most.

What is rounded early passes through all layers, so the first of them stay as they are; ``ffn_down``
until later ones than the others, as what it reads has the largest outliers; q, k and v in all. The
codes are in no file: a graph of its own makes them of the decode graph's weights when a trunk is
loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from edge.build.architecture import Decoder
from edge.build.frozen import FrozenMatrices
from edge.build.graph import value
from edge.build.nodes import CONTRIB, Nodes
from edge.build.weight_file import Array, WeightFile
from edge.bundle import COARSE_GRAPH

TURN: Final = 64
REACH: Final = 90
# Which are coarse, and the share of the layers, from the first on, that stays as it is.
_EXACT: Final = {
    "attn_output": Fraction(1, 8),
    "ffn_gate_up": Fraction(1, 8),
    "ffn_down": Fraction(2, 5),
}
# Codes that a trunk may hold: 64 MB, all that a model of 135 M has.
_MOST: Final = 1 << 26
_LEAST: Final = 1e-30  # in place of the largest value of a row of zeros, which is divided by


@dataclass(frozen=True, slots=True)
class Coarse:
    """A matrix of ``rows`` outputs x ``columns`` inputs; ``name`` is that in the weight file."""

    name: str
    rows: int
    columns: int

    @property
    def codes(self) -> str:
        """int8 [columns, rows]."""
        return f"{self.name}.coarse"

    @property
    def scale(self) -> str:
        """float32 [rows]."""
        return f"{self.name}.coarse.scale"


def coarse_matrices(decoder: Decoder, weights: WeightFile, layers: int) -> list[Coarse]:
    """Those below the last ``layers`` layers that are to be coarse: of blocks, not of floats, and
    of a width that is a multiple of H's. Where room is short, the last layers have it."""
    found: list[Coarse] = []
    room = _MOST
    for layer in reversed(range(decoder.layers - layers)):
        for linear, exact in _EXACT.items():
            if layer < exact * decoder.layers:
                continue
            whole = f"blk.{layer}.{linear}"
            columns = decoder.feed_forward if linear == "ffn_down" else decoder.hidden
            if linear == "attn_output":
                columns = decoder.heads * decoder.head_dim
            for name in (whole, f"{whole}.0", f"{whole}.1"):  # gate and up may differ in kind
                codes = weights.tensors.get(f"{name}.codes")
                if codes is None or columns % TURN or codes.dims[0] * columns > room:
                    continue
                room -= codes.dims[0] * columns
                found.append(Coarse(name, codes.dims[0], columns))
    return found


def with_coarse(decode: ModelProto, matrices: list[Coarse]) -> ModelProto:
    """``decode`` with these products in whole numbers; what becomes needless is still in it."""
    of = {f"{each.name}.codes": each for each in matrices}
    nodes: list[NodeProto] = []
    behind = {node.input[2]: node for node in decode.graph.node if _adds_minima(node)}
    replaced: set[str] = set()
    for node in decode.graph.node:
        matrix = of.get(node.input[1]) if node.op_type == "MatMulNBits" else None
        if matrix is not None:
            bias = node.input[5] if len(node.input) > 5 else ""
            last = behind.get(node.output[0], node)
            replaced.add(last.output[0])
            nodes += _product(matrix, node.input[0], bias, last.output[0])
        elif replaced.isdisjoint(node.output):
            nodes.append(node)
    made = ModelProto()
    made.CopyFrom(decode)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    for matrix in matrices:
        made.graph.initializer.append(
            _made_at_loading(matrix.codes, TensorProto.INT8, matrix.columns, matrix.rows)
        )
        made.graph.initializer.append(
            _made_at_loading(matrix.scale, TensorProto.FLOAT, matrix.rows)
        )
    made.graph.initializer.extend(_constants({each.columns for each in matrices}))
    return made


def write_coarse(weights: WeightFile, matrices: list[Coarse]) -> ModelProto:
    """The graph that makes codes and scales: an output of each, by its name. Its input ``first`` is
    0; without one, ONNX Runtime would compute all of them when it loads the graph."""
    nodes = Nodes(weights)
    frozen = FrozenMatrices(nodes, weights.tensors)
    outputs: list[ValueInfoProto] = []
    turn = nodes.also(numpy_helper.from_array(hadamard(), _H)).name
    for matrix in matrices:
        (part,) = frozen.linear(matrix.name, matrix.columns)
        rows = nodes.apply("Range", "first", nodes.whole(matrix.rows), nodes.whole(1))
        turned = nodes.apply(
            "Reshape", frozen.rows(part, rows), nodes.integers(-1, matrix.columns // TURN, TURN)
        )
        turned = nodes.apply("MatMul", turned, turn)
        turned = nodes.apply("Reshape", turned, nodes.integers(-1, matrix.columns))
        largest = nodes.apply("ReduceMax", nodes.apply("Abs", turned), nodes.integers(1))
        scale = nodes.apply("Mul", largest, nodes.number(1 / REACH))
        scale = nodes.apply("Max", scale, nodes.number(_LEAST))
        codes = nodes.apply("Round", nodes.apply("Div", turned, scale))
        codes = nodes.apply("Cast", codes, to=TensorProto.INT8)
        nodes.add("Transpose", [codes], [matrix.codes], perm=[1, 0])
        nodes.add("Reshape", [scale, nodes.integers(-1)], [matrix.scale])
        outputs.append(value(matrix.codes, TensorProto.INT8, matrix.columns, matrix.rows))
        outputs.append(value(matrix.scale, TensorProto.FLOAT, matrix.rows))
    return nodes.model("coarse", [value("first", TensorProto.INT64)], outputs)


def hadamard() -> Array:
    """H, float32 [64, 64]: symmetric, and its own inverse."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < TURN:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.float32(TURN**0.5)


_H, _ROW, _UNIT, _MIDDLE = "coarse.turn", "coarse.row", "coarse.unit", "coarse.middle"
_SMALLEST, _ZERO = "coarse.least", "coarse.zero"


def _product(matrix: Coarse, x: str, bias: str, y: str) -> list[NodeProto]:
    """y = x W^T + bias, with a scale for each token."""
    own = f"{matrix.name}.coarse"
    steps: list[tuple[str, list[str], str]] = [
        ("Reshape", [x, f"{_ROW}.{matrix.columns}.blocks"], f"{own}.blocks"),
        ("MatMul", [f"{own}.blocks", _H], f"{own}.turned.blocks"),
        ("Reshape", [f"{own}.turned.blocks", f"{_ROW}.{matrix.columns}"], f"{own}.turned"),
        ("Abs", [f"{own}.turned"], f"{own}.sizes"),
        ("ReduceMax", [f"{own}.sizes", f"{_ROW}.axis"], f"{own}.largest"),
        ("Max", [f"{own}.largest", _SMALLEST], f"{own}.divisor"),
        ("Div", [f"{own}.turned", f"{own}.divisor"], f"{own}.shares"),
        ("QuantizeLinear", [f"{own}.shares", _UNIT, _MIDDLE], f"{own}.tokens"),
        (
            "MatMulIntegerToFloat",
            [f"{own}.tokens", matrix.codes, _UNIT, matrix.scale, _MIDDLE, _ZERO],
            f"{own}.product",
        ),
    ]
    product = [f"{own}.product", f"{own}.divisor"]
    if bias:
        steps += [("Mul", product, f"{own}.scaled"), ("Add", [f"{own}.scaled", bias], y)]
    else:
        steps.append(("Mul", product, y))
    return [
        helper.make_node(
            op,
            inputs,
            [output],
            name=f"{op}.{output}",
            domain=CONTRIB if op == "MatMulIntegerToFloat" else "",
        )
        for op, inputs, output in steps
    ]


def _constants(widths: set[int]) -> list[TensorProto]:
    """What all products share."""
    arrays: dict[str, Array] = {
        _H: hadamard(),
        _UNIT: np.array(1 / REACH, np.float32),
        _MIDDLE: np.array(REACH, np.uint8),
        _ZERO: np.array(0, np.int8),
        _SMALLEST: np.array(_LEAST, np.float32),
        f"{_ROW}.axis": np.array([1]),
    }
    for width in sorted(widths):
        arrays[f"{_ROW}.{width}"] = np.array([-1, width])
        arrays[f"{_ROW}.{width}.blocks"] = np.array([-1, width // TURN, TURN])
    return [numpy_helper.from_array(array, name) for name, array in arrays.items()]


def _made_at_loading(name: str, kind: int, *shape: int) -> TensorProto:
    """An initializer whose bytes whoever loads the graph must give."""
    tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=COARSE_GRAPH)
    return tensor


def _adds_minima(node: NodeProto) -> bool:
    return node.op_type == "Gemm" and len(node.input) == 3
