"""Growing lists of ONNX nodes and initializers, with value names that never collide.

Knows nothing of transformers; ``matrices.py`` and ``graph.py`` speak through it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from edge.build.blocks import Scales
from edge.build.weight_file import Array, WeightFile

Attribute: TypeAlias = int | float | str | list[int]

CONTRIB = "com.microsoft"
_OPSET, _IR_VERSION = 21, 10
_CONTRIB_OPS = frozenset(
    {
        "GatherBlockQuantized",
        "GroupQueryAttention",
        "MatMulNBits",
        "QuickGelu",
        "RotaryEmbedding",
        "SkipSimplifiedLayerNormalization",
    }
)


class Nodes:
    """Nodes in topological order, and initializers."""

    def __init__(self, weights: WeightFile) -> None:
        self.nodes: list[NodeProto] = []
        self._initializers: list[TensorProto] = []
        self._weights = weights
        self._constants: set[str] = set()
        self._before = 0  # nodes that are numbered already, but set aside

    def add(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Attribute
    ) -> None:
        """Append a node with named outputs; an input or output called "" is left out."""
        domain = CONTRIB if op in _CONTRIB_OPS else ""
        node = helper.make_node(
            op, inputs, outputs, name=f"{op}.{self._before + len(self.nodes)}", domain=domain
        )
        node.attribute.extend(helper.make_attribute(*pair) for pair in sorted(attributes.items()))
        self.nodes.append(node)

    @contextmanager
    def in_front(self) -> Iterator[None]:
        """What is added in here comes before all that was added until now."""
        behind, self.nodes = self.nodes, []
        self._before += len(behind)
        yield
        self.nodes += behind

    def apply(self, op: str, *inputs: str, **attributes: Attribute) -> str:
        """Append a node with one output and return that value's name."""
        output = f"{op}.{self._before + len(self.nodes)}.out"
        self.add(op, inputs, [output], **attributes)
        return output

    def initializers(self) -> list[TensorProto]:
        """Those that some node reads."""
        read = {name for node in self.nodes for name in node.input}
        return [tensor for tensor in self._initializers if tensor.name in read]

    def model(
        self, name: str, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]
    ) -> ModelProto:
        """The graph of all nodes."""
        return helper.make_model(
            helper.make_graph(self.nodes, name, inputs, outputs, self.initializers()),
            opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid(CONTRIB, 1)],
            ir_version=_IR_VERSION,
            producer_name="edge-cloud-cascade",
        )

    def integers(self, *values: int) -> str:
        """A constant int64 [len(values)], kept inside the graph."""
        return self._constant("_".join(map(str, values)), np.array(values, np.int64))

    def whole(self, value: int) -> str:
        """A constant int64 scalar, kept inside the graph."""
        return self._constant(f"scalar.{value}", np.array(value, np.int64))

    def number(self, value: float) -> str:
        """A constant float32 scalar, kept inside the graph."""
        return self._constant(str(value), np.array(value, np.float32))

    def weight(self, name: str, array: Array) -> TensorProto:
        """Write ``array`` to the weight file, under ``name``."""
        return self.also(self._weights.add(name, array))

    def name_rows(self, of: TensorProto, name: str, first: int, rows: int) -> None:
        """Name a part of a written matrix, for graphs that are to read it; this one does not."""
        self._weights.name_rows(of, name, first, rows)

    def also(self, tensor: TensorProto) -> TensorProto:
        """Take over an initializer whose bytes are already written."""
        self._initializers.append(tensor)
        return tensor

    def floats(self, name: str, array: Scales) -> str:
        """A float32 value. Halves are stored as such: the Cast is folded when a session loads."""
        self.weight(name, array)
        return self.apply("Cast", name, to=TensorProto.FLOAT) if array.dtype == np.float16 else name

    def _constant(self, suffix: str, array: Array) -> str:
        name = f"constant.{suffix}"
        if name not in self._constants:
            self._constants.add(name)
            self._initializers.append(numpy_helper.from_array(array, name))
        return name
