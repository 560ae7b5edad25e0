"""Frozen matrices of a graph that trains an adapter: products with W and, going back, with W^T.

The bytes are those that the decode graph multiplies with, found by name in its weight file. There
they lie for products along the columns; going back needs products along the rows, and no kernel
does that with blocks. So blocks become floats inside the graph: those of a few linears once, when a
session loads it, and all others a piece of a matrix at a time, when they are needed and no longer.
With the block's offset ``o`` (0 without minima, see ``matrices.py``)

    W = D + o per block             D = scale * (u - z), what GatherBlockQuantized gives
    x W^T = x D^T + S(x) o^T        S: sums over blocks
    g W   = g D + (g o) per block

Nothing here rounds activations, as the decode graph does: from about a hundred tokens on that is no
faster (docs/training.md has figures), and gradients come out as those of float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from onnx import TensorProto

from edge.build.nodes import Nodes
from edge.build.weight_file import reshaped

# Floats of one piece: 4 MB, so that it is still in the cache when it is multiplied with.
_PIECE = 1 << 20
# Floats that a session may keep: 64 MB, the linears of four layers of a model of 135 M. To make
# them anew takes a fifth of a step over 128 tokens, and more of a shorter one.
_KEPT = 1 << 24


@dataclass(frozen=True, slots=True)
class Frozen:
    """One matrix of ``rows`` outputs x ``columns`` inputs.

    Arguments:
        table: packed codes [rows, columns * bits / 8], or the floats themselves.
        codes: the same shaped [rows, columns / block, …].
        bits: 4 or 8 of codes, 32 of floats.
        block: weights under one scale; all columns of floats.
        scale, offset: float32 [rows, columns / block]; "" where there is none.
    """

    rows: int
    columns: int
    table: str
    codes: str
    bits: int
    block: int
    scale: str
    offset: str


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of a matrix as floats: ``dense`` [rows, columns] without its ``offset``."""

    of: Frozen
    rows: int
    dense: str
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
        self._room = _KEPT

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
        """The matrices that give a packed linear's output, side by side; none of that name is an
        empty list."""
        if self._stored(name):
            return [self._matrix(name, columns)]
        parts: list[Frozen] = []
        while self._stored(part := f"{name}.{len(parts)}"):
            parts.append(self._matrix(part, columns))
        return parts

    def product(self, x: str, parts: list[Frozen]) -> str:
        """x W^T: float32 [T, columns] -> [T, rows of all parts]."""
        products: list[str] = []
        for part in parts:
            if part.bits == 4:  # its kernel makes floats of blocks faster than any other node
                products.append(self._with_offset(self._four_bits(x, part), x, part, part.offset))
            else:
                products += [self.times(x, piece) for piece in self.pieces(part, after=x)]
        if len(products) == 1:
            return products[0]
        return self._nodes.apply("Concat", *products, axis=1)

    def product_back(self, gradient: str, parts: list[Frozen]) -> str:
        """g W: float32 [T, rows of all parts] -> [T, columns]."""
        nodes = self._nodes
        pieces = [piece for part in parts for piece in self._back_pieces(part, gradient)]
        own = [gradient]
        if len(pieces) > 1:
            own = [f"{gradient}.piece.{i}" for i in range(len(pieces))]
            sizes = nodes.integers(*(piece.rows for piece in pieces))
            nodes.add("Split", [gradient, sizes], own, axis=1)
        terms = [self.back(g, piece) for g, piece in zip(own, pieces, strict=True)]
        total = terms[0]
        for term in terms[1:]:
            total = nodes.apply("Add", total, term)
        return total

    def pieces(self, part: Frozen, *, after: str, in_turn: Sequence[str] = ()) -> Iterator[Piece]:
        """The rows of a matrix as floats, some at a time.

        Arguments:
            after: a value of the run, with a leading dimension: no piece is made before it is
                there. ONNX Runtime then neither folds pieces into constants when it loads the graph
                nor keeps one from the way there for the way back.
            in_turn: what became of the pieces so far; the next one waits for the last of it, so
                that they are not all in memory together.
        """
        nodes = self._nodes
        if part.bits == 32:
            yield Piece(part, part.rows, part.table, "")
            return
        most = max(1, _PIECE // part.columns)
        for first in range(0, part.rows, most):
            count = min(most, part.rows - first)
            size = nodes.apply("Shape", in_turn[-1] if in_turn else after, start=0, end=1)
            nothing = nodes.apply("Squeeze", nodes.apply("Mul", size, nodes.integers(0)))
            rows = nodes.apply(
                "Range",
                nodes.apply("Add", nothing, nodes.whole(first)),
                nodes.apply("Add", nothing, nodes.whole(first + count)),
                nodes.whole(1),
            )
            offset = part.offset
            if offset and count < part.rows:
                offset = nodes.apply("Gather", offset, rows, axis=0)
            yield Piece(part, count, self._dense(part, rows), offset)

    def _back_pieces(self, part: Frozen, gradient: str) -> Iterator[Piece]:
        """The rows of a linear as floats, kept as long as there is room for them."""
        floats = part.rows * part.columns
        if part.bits == 32 or floats > self._room:
            yield from self.pieces(part, after=gradient)
            return
        self._room -= floats
        yield Piece(part, part.rows, self._kept(part), "")

    def _kept(self, part: Frozen) -> str:
        """A whole matrix, offset included, of constants and standard nodes alone: ONNX Runtime
        folds that when it loads the graph, but no ``GatherBlockQuantized``. What it folds stays
        until all is folded, so there are as few large values on the way as can be."""
        nodes, last = self._nodes, self._nodes.integers(2)
        shape = (part.rows, part.columns // part.block, part.block)
        codes = reshaped(self._tensors[part.codes], f"{part.codes}.apart", shape)
        codes.data_type = TensorProto.UINT4 if part.bits == 4 else TensorProto.UINT8
        lowest = nodes.apply("Mul", part.scale, nodes.number(-float(1 << (part.bits - 1))))
        if part.offset:
            lowest = nodes.apply("Add", lowest, part.offset)
        dense = nodes.apply("Cast", nodes.also(codes).name, to=TensorProto.FLOAT)
        dense = nodes.apply("Mul", dense, nodes.apply("Unsqueeze", part.scale, last))
        dense = nodes.apply("Add", dense, nodes.apply("Unsqueeze", lowest, last))
        return nodes.apply("Reshape", dense, nodes.integers(part.rows, part.columns))

    def times(self, x: str, piece: Piece) -> str:
        """x W^T of some rows."""
        y = self._nodes.apply("Gemm", x, piece.dense, transB=1)
        return self._with_offset(y, x, piece.of, piece.offset)

    def back(self, gradient: str, piece: Piece) -> str:
        """g W of some rows."""
        nodes, part = self._nodes, piece.of
        x = nodes.apply("MatMul", gradient, piece.dense)
        if not piece.offset:
            return x
        return nodes.apply(
            "Add", x, self._spread(nodes.apply("MatMul", gradient, piece.offset), part)
        )

    def rows(self, part: Frozen, indices: str) -> str:
        """Rows of a matrix, as they are: int64 [P] -> float32 [P, columns]."""
        nodes = self._nodes
        if part.bits == 32:
            return nodes.apply("Gather", part.table, indices, axis=0)
        dense = self._dense(part, indices)
        if not part.offset:
            return dense
        offset = nodes.apply("Gather", part.offset, indices, axis=0)
        return nodes.apply("Add", dense, self._spread(offset, part))

    def _dense(self, part: Frozen, rows: str) -> str:
        return self._nodes.apply(
            "GatherBlockQuantized",
            part.table,
            rows,
            part.scale,
            bits=part.bits,
            block_size=part.block,
            gather_axis=0,
            quantize_axis=1,
        )

    def _four_bits(self, x: str, part: Frozen) -> str:
        return self._nodes.apply(
            "MatMulNBits",
            x,
            part.codes,
            part.scale,
            K=part.columns,
            N=part.rows,
            bits=4,
            block_size=part.block,
            accuracy_level=0,
        )

    def _with_offset(self, y: str, x: str, part: Frozen, offset: str) -> str:
        if not offset:
            return y
        nodes = self._nodes
        blocks = nodes.integers(-1, part.columns // part.block, part.block)
        blocks = nodes.apply("Reshape", x, blocks)
        sums = nodes.apply("ReduceSum", blocks, nodes.integers(2), keepdims=0)
        return nodes.apply("Gemm", sums, offset, y, transB=1)

    def _spread(self, values: str, part: Frozen) -> str:
        """[T, columns / block] -> [T, columns], each value repeated over its block."""
        nodes = self._nodes
        values = nodes.apply("Unsqueeze", values, nodes.integers(2))
        wide = nodes.apply("Expand", values, nodes.integers(1, 1, part.block))
        return nodes.apply("Reshape", wide, nodes.integers(-1, part.columns))

    def _stored(self, name: str) -> bool:
        return self.has(f"{name}.codes") or self.has(f"{name}.weight")

    def _matrix(self, name: str, columns: int) -> Frozen:
        if name not in self._known:
            self._known[name] = self._read(name, columns)
        return self._known[name]

    def _read(self, name: str, columns: int) -> Frozen:
        nodes, codes = self._nodes, self._tensors.get(f"{name}.codes")
        if codes is None:
            rows, value = self._tensors[f"{name}.weight"].dims[0], self.floats(f"{name}.weight")
            return Frozen(rows, columns, value, value, 32, columns, "", "")
        rows, blocks, width = codes.dims
        block = columns // blocks
        bits = 8 * width // block
        nodes.also(codes)
        table = nodes.also(reshaped(codes, f"{name}.table", (rows, blocks * width)))
        scale, offset = self.floats(f"{name}.scale"), ""
        if self.has(f"{name}.minimum"):
            shift = nodes.apply("Mul", scale, nodes.number(float(1 << (bits - 1))))
            offset = nodes.apply("Add", self.floats(f"{name}.minimum"), shift)
        return Frozen(rows, columns, table.name, codes.name, bits, block, scale, offset)
