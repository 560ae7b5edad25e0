"""Frozen matrices of a graph that trains an adapter: products with W and, going back, with W^T.

The bytes are those that the decode graph multiplies with, found by name in its weight file. There
they lie for products along the columns; going back needs products along the rows, and no kernel
does that with blocks. So blocks become floats inside the graph, a piece of a matrix at a time, when
they are needed and no longer. With the block's offset ``o`` (0 without minima, see ``matrices.py``)

    W = D + o per block             D = scale * (u - z), what GatherBlockQuantized gives
    x W^T = x D^T + S(x) o^T        S: sums over blocks
    g W   = g D + (g o) per block
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnx import TensorProto

from edge.build.nodes import Nodes
from edge.build.weight_file import reshaped

# Floats of one piece: 16 MB, more than a linear of a small model has, far less than its head.
_PIECE = 1 << 22


@dataclass(frozen=True, slots=True)
class Frozen:
    """One matrix of ``rows`` outputs x ``columns`` inputs.

    Arguments:
        table: packed codes [rows, columns * bits / 8], or the floats themselves.
        block: weights under one scale, 0 for floats.
        scale, offset: float32 [rows, columns / block]; "" where there is none.
    """

    rows: int
    columns: int
    table: str
    block: int
    bits: int
    scale: str
    offset: str


class FrozenMatrices:
    """Reads matrices of a decode graph's weight file into another graph.

    Arguments:
        tensors: what ``WeightFile.tensors`` gave when the decode graph was written.
    """

    def __init__(self, nodes: Nodes, tensors: Mapping[str, TensorProto]) -> None:
        self._nodes = nodes
        self._tensors = tensors
        self._known: dict[str, Frozen] = {}

    def has(self, name: str) -> bool:
        """Whether the file holds a tensor ``name``."""
        return name in self._tensors

    def floats(self, name: str) -> str:
        """A float32 value, e.g. the weight of a norm."""
        tensor = self._tensors[name]
        self._nodes.also(tensor)
        if tensor.data_type == TensorProto.FLOAT:
            return name
        return self._nodes.apply("Cast", name, to=TensorProto.FLOAT)

    def linear(self, name: str, columns: int) -> list[Frozen]:
        """The matrices that give a packed linear's output, side by side."""
        if self._stored(name):
            return [self._matrix(name, columns)]
        parts: list[Frozen] = []
        while self._stored(part := f"{name}.{len(parts)}"):
            parts.append(self._matrix(part, columns))
        return parts

    def product(self, x: str, parts: list[Frozen]) -> str:
        """x W^T: float32 [T, columns] -> [T, rows of all parts]."""
        nodes, products = self._nodes, []
        for part in parts:
            pieces = self._pieces(part, after=x)
            y = self._beside([nodes.apply("Gemm", x, piece, transB=1) for piece in pieces])
            if part.offset:
                y = nodes.apply("Gemm", self._block_sums(x, part), part.offset, y, transB=1)
            products.append(y)
        return self._beside(products)

    def product_back(self, gradient: str, parts: list[Frozen]) -> str:
        """g W: float32 [T, rows of all parts] -> [T, columns]."""
        nodes = self._nodes
        sizes = [size for part in parts for size in _sizes(part)]
        pieces = [gradient]
        if len(sizes) > 1:
            pieces = [f"{gradient}.piece.{i}" for i in range(len(sizes))]
            nodes.add("Split", [gradient, nodes.integers(*sizes)], pieces, axis=1)
        terms: list[str] = []
        for part in parts:
            own, pieces = pieces[: len(_sizes(part))], pieces[len(_sizes(part)) :]
            dense = self._pieces(part, after=gradient)
            terms += [nodes.apply("MatMul", g, w) for g, w in zip(own, dense, strict=True)]
            if part.offset:
                whole = nodes.apply("MatMul", self._beside(own), part.offset)
                terms.append(self._per_block(whole, part))
        total = terms[0]
        for term in terms[1:]:
            total = nodes.apply("Add", total, term)
        return total

    def _beside(self, parts: list[str]) -> str:
        return parts[0] if len(parts) == 1 else self._nodes.apply("Concat", *parts, axis=1)

    def _pieces(self, part: Frozen, *, after: str) -> list[str]:
        """The matrix without its offset, as floats, in pieces of rows.

        Arguments:
            after: a value of the run, with a leading dimension: nothing is de-quantised before it
                is there, and ONNX Runtime neither folds the piece into a constant when it loads the
                graph nor keeps it from the way there for the way back.
        """
        nodes = self._nodes
        if not part.block:
            return [part.table]
        nothing = nodes.apply("Mul", nodes.apply("Shape", after, start=0, end=1), nodes.integers(0))
        nothing = nodes.apply("Squeeze", nothing)
        pieces, first = [], 0
        for size in _sizes(part):
            rows = nodes.apply(
                "Range",
                nodes.apply("Add", nothing, nodes.whole(first)),
                nodes.apply("Add", nothing, nodes.whole(first + size)),
                nodes.whole(1),
            )
            pieces.append(
                nodes.apply(
                    "GatherBlockQuantized",
                    part.table,
                    rows,
                    part.scale,
                    bits=part.bits,
                    block_size=part.block,
                    gather_axis=0,
                    quantize_axis=1,
                )
            )
            first += size
        return pieces

    def _block_sums(self, x: str, part: Frozen) -> str:
        nodes = self._nodes
        blocks = nodes.integers(-1, part.columns // part.block, part.block)
        return nodes.apply(
            "ReduceSum", nodes.apply("Reshape", x, blocks), nodes.integers(2), keepdims=0
        )

    def _per_block(self, values: str, part: Frozen) -> str:
        """[T, columns / block] -> [T, columns], each value repeated over its block."""
        nodes = self._nodes
        wide = nodes.apply(
            "Expand",
            nodes.apply("Unsqueeze", values, nodes.integers(2)),
            nodes.integers(1, 1, part.block),
        )
        return nodes.apply("Reshape", wide, nodes.integers(-1, part.columns))

    def _stored(self, name: str) -> bool:
        return f"{name}.codes" in self._tensors or f"{name}.weight" in self._tensors

    def _matrix(self, name: str, columns: int) -> Frozen:
        if name not in self._known:
            self._known[name] = self._read(name, columns)
        return self._known[name]

    def _read(self, name: str, columns: int) -> Frozen:
        nodes, codes = self._nodes, self._tensors.get(f"{name}.codes")
        if codes is None:
            rows = self._tensors[f"{name}.weight"].dims[0]
            return Frozen(rows, columns, self.floats(f"{name}.weight"), 0, 32, "", "")
        rows, blocks, width = codes.dims
        block = columns // blocks
        bits = 8 * width // block
        table = nodes.also(reshaped(codes, f"{name}.table", (rows, blocks * width)))
        scale, offset = self.floats(f"{name}.scale"), ""
        if self.has(f"{name}.minimum"):
            shift = nodes.apply("Mul", scale, nodes.number(float(1 << (bits - 1))))
            offset = nodes.apply("Add", self.floats(f"{name}.minimum"), shift)
        return Frozen(rows, columns, table.name, block, bits, scale, offset)


def _sizes(part: Frozen) -> list[int]:
    """Rows of each piece."""
    if not part.block:
        return [part.rows]
    most = max(1, _PIECE // part.columns)
    return [min(most, part.rows - first) for first in range(0, part.rows, most)]
