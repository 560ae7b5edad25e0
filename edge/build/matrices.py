"""A weight matrix inside the graph: stored once, then multiplied with or looked up in.

``MatMulNBits`` multiplies symmetric blocks only. A matrix with minima is split, exactly, into a
symmetric one and a rank-one term for each block: with ``z`` the zero point,

    scale * u + minimum  =  scale * (u - z)  +  (minimum + z * scale)
                            MatMulNBits         offset, the same for the whole block

so that the second term's product needs only the *sum* of the activations of each block: a matrix
``columns / block`` wide, shared by all matrices that read the same activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from onnx import TensorProto

from edge.build.blocks import BlockWeights, Scales, same_formula, stack
from edge.build.nodes import Nodes
from edge.build.weight_file import reshaped

AccuracyLevel: TypeAlias = Literal[0, 4]
Matrix: TypeAlias = BlockWeights | Scales


@dataclass(frozen=True, slots=True)
class Stored:
    """Names of the values that hold one matrix of ``rows`` (outputs) x ``columns`` (inputs).

    Arguments:
        codes: packed codes, or the float matrix itself when ``bits`` is 32.
        table: the same bytes shaped [rows, packed columns], for look-ups.
        scale: float32 [rows, columns / block], "" for a float matrix.
        offset: float32 [rows, columns / block], "" where there are no minima.
    """

    rows: int
    columns: int
    bits: Literal[4, 8, 32]
    block: int
    codes: str
    table: str
    scale: str
    offset: str


class Matrices:
    """Stores matrices in ``nodes`` and applies them to two-dimensional activations."""

    def __init__(self, nodes: Nodes, accuracy_level: AccuracyLevel) -> None:
        self._nodes = nodes
        self._accuracy_level = accuracy_level
        self._sums: dict[tuple[str, int], str] = {}
        self._halves: dict[tuple[int, int | None], list[tuple[str, BlockWeights]]] = {}

    def store(self, matrix: Matrix, name: str) -> Stored:
        """Write ``matrix`` under ``name``."""
        nodes = self._nodes
        if not isinstance(matrix, BlockWeights):
            rows, columns = matrix.shape
            value = nodes.floats(f"{name}.weight", matrix)
            return Stored(rows, columns, 32, columns, value, value, "", "")
        blocks = matrix.columns // matrix.block
        packed = matrix.packed()
        codes = nodes.weight(f"{name}.codes", packed.reshape(matrix.rows, blocks, -1))
        table = nodes.also(reshaped(codes, f"{name}.table", packed.shape))
        scale, offset = f"{name}.scale", "" if matrix.minimum is None else f"{name}.offset"
        if matrix.scale.dtype == np.float16 and (
            matrix.minimum is None or matrix.minimum.dtype == np.float16
        ):
            zero_point = None if matrix.minimum is None else matrix.zero_point
            self._halves.setdefault((blocks, zero_point), []).append((name, matrix))
        else:
            scale = nodes.floats(scale, matrix.scale)
            if matrix.minimum is not None:
                minimum = nodes.floats(f"{name}.minimum", matrix.minimum)
                shift = nodes.apply("Mul", scale, nodes.number(float(matrix.zero_point)))
                nodes.add("Add", [minimum, shift], [offset])
        return Stored(
            rows=matrix.rows,
            columns=matrix.columns,
            bits=matrix.bits,
            block=matrix.block,
            codes=codes.name,
            table=table.name,
            scale=scale,
            offset=offset,
        )

    def finish(self) -> None:
        """Write what is stored as halves, and the nodes that make floats of it, before all others.

        All scales of one width are one tensor, and all minima, to be split again: ONNX Runtime
        folds this when it loads the graph, and the fewer nodes that takes the faster.
        """
        with self._nodes.in_front():
            for (blocks, zero_point), group in self._halves.items():
                self._widen(f"{blocks}" if zero_point is None else f"{blocks}.{zero_point}", group)
        self._halves.clear()

    def _widen(self, suffix: str, group: list[tuple[str, BlockWeights]]) -> None:
        """Scales, and where there are minima offsets, of matrices with one width and zero point."""
        nodes = self._nodes
        rows = nodes.integers(*(matrix.rows for _, matrix in group))
        scales = self._side_by_side("scale", f"scales.{suffix}", [(n, m.scale) for n, m in group])
        nodes.add("Split", [scales, rows], [f"{name}.scale" for name, _ in group], axis=0)
        minima = [(name, m.minimum) for name, m in group if m.minimum is not None]
        if minima:
            lowest = self._side_by_side("minimum", f"minima.{suffix}", minima)
            shift = nodes.apply("Mul", scales, nodes.number(float(group[0][1].zero_point)))
            offsets = nodes.apply("Add", lowest, shift)
            nodes.add("Split", [offsets, rows], [f"{name}.offset" for name, _ in group], axis=0)

    def _side_by_side(self, kind: str, name: str, parts: list[tuple[str, Scales]]) -> str:
        """Halves of several matrices as one tensor; each part keeps a name of its own in the file,
        that of the tensor which it would be without its neighbours."""
        written = self._nodes.weight(name, np.concatenate([values for _, values in parts]))
        first = 0
        for matrix, values in parts:
            self._nodes.name_rows(written, f"{matrix}.{kind}", first, len(values))
            first += len(values)
        return self._nodes.apply("Cast", name, to=TensorProto.FLOAT)

    def rows_of(self, stored: Stored, indices: str) -> str:
        """Rows of a matrix: int64 [T] -> float32 [T, columns]."""
        nodes = self._nodes
        if stored.bits == 32:
            return nodes.apply("Gather", stored.table, indices, axis=0)
        rows = nodes.apply(
            "GatherBlockQuantized",
            stored.table,
            indices,
            stored.scale,
            bits=stored.bits,
            block_size=stored.block,
            gather_axis=0,
            quantize_axis=1,
        )
        if not stored.offset:
            return rows
        offsets = nodes.apply("Gather", stored.offset, indices, axis=0)
        offsets = nodes.apply("Unsqueeze", offsets, nodes.integers(2))
        blocks = nodes.apply("Reshape", rows, self._in_blocks(stored.columns, stored.block))
        whole = nodes.apply("Add", blocks, offsets)
        return nodes.apply("Reshape", whole, nodes.integers(-1, stored.columns))

    def multiply(self, x: str, stored: Stored, bias: str = "") -> str:
        """x W^T + bias: float32 [T, columns] -> [T, rows]."""
        nodes = self._nodes
        if stored.bits == 32:
            inputs = (x, stored.codes, bias) if bias else (x, stored.codes)
            return nodes.apply("Gemm", *inputs, transB=1)
        optional = ("", "", bias) if bias else ()
        y = nodes.apply(
            "MatMulNBits",
            x,
            stored.codes,
            stored.scale,
            *optional,
            K=stored.columns,
            N=stored.rows,
            bits=stored.bits,
            block_size=stored.block,
            accuracy_level=self._accuracy_level,
        )
        if not stored.offset:
            return y
        return nodes.apply("Gemm", self._block_sums(x, stored), stored.offset, y, transB=1)

    def multiply_all(
        self, x: str, parts: list[Matrix], name: str, bias: Scales | None = None
    ) -> str:
        """Several matrices over the same input, side by side in the output; one kernel if possible.

        Arguments:
            bias: float32 [rows of all parts], or None.
        """
        nodes = self._nodes
        quantised = [part for part in parts if isinstance(part, BlockWeights)]
        if len(quantised) == len(parts) and same_formula(quantised):
            stored = self.store(stack(quantised), name)
            return self.multiply(
                x, stored, "" if bias is None else nodes.floats(f"{name}.bias", bias)
            )
        products = [
            self.multiply(x, self.store(part, f"{name}.{i}")) for i, part in enumerate(parts)
        ]
        y = products[0] if len(products) == 1 else nodes.apply("Concat", *products, axis=1)
        return y if bias is None else nodes.apply("Add", y, nodes.floats(f"{name}.bias", bias))

    def _block_sums(self, x: str, stored: Stored) -> str:
        key = (x, stored.block)
        if key not in self._sums:
            nodes = self._nodes
            blocks = nodes.apply("Reshape", x, self._in_blocks(stored.columns, stored.block))
            self._sums[key] = nodes.apply("ReduceSum", blocks, nodes.integers(2), keepdims=0)
        return self._sums[key]

    def _in_blocks(self, columns: int, block: int) -> str:
        return self._nodes.integers(-1, columns // block, block)
