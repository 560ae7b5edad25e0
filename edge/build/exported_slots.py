"""Which node of a traced graph is which linear of the model: where adapters get their slots.

The tracer names a node by the modules that it was called in: ``/decoder/layers.0/fc1/MatMul`` is in
``model.decoder.layers.0.fc1`` (the outermost modules may be missing). Names are all that is used,
so whatever is not certain gets no slot, and adapters that name it are refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from onnx import NodeProto


def modules_by_output(
    linears: Iterable[tuple[NodeProto, str]], paths: Sequence[str]
) -> dict[str, str]:
    """The path of the module that each node computes, by the node's output.

    Left out is a module whose matrix some other node multiplies with as well (an adapter would
    change one product and not the other), or that multiplies with several matrices.

    Arguments:
        linears: the graph's linear nodes, and the name of each one's constant matrix.
        paths: of the model's linears, e.g. ``"gpt_neox.layers.0.attention.dense"``.
    """
    found: dict[str, str] = {}
    readers: defaultdict[str, set[str | None]] = defaultdict(set)
    matrices: defaultdict[str, set[str]] = defaultdict(set)
    for node, matrix in linears:
        path = _module(node.name, paths)
        readers[matrix].add(path)
        if path is not None:
            found[node.output[0]] = path
            matrices[path].add(matrix)
    doubtful = {path for paths in readers.values() if None in paths for path in paths}
    doubtful |= {path for path, several in matrices.items() if len(several) > 1}
    return {output: path for output, path in found.items() if path not in doubtful}


def _module(node: str, paths: Sequence[str]) -> str | None:
    """The one module of ``paths`` that the node's name ends in, if there is just one."""
    scope = ".".join(node.strip("/").split("/")[:-1])
    ends = [path for path in paths if scope and f".{path}".endswith(f".{scope}")]
    return ends[0] if len(ends) == 1 else None
