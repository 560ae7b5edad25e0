"""Weights and everything else that a bundle takes from a GGUF file.

The container is ``gguf_file.py``; what the bytes of a block mean is ``blocks.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput
from edge.build.architecture import read_decoder
from edge.build.blocks import BlockType, BlockWeights, Floats, decode
from edge.build.checkpoint import Source
from edge.build.gguf_file import GgufFile, read_gguf
from edge.build.matrices import Matrix
from edge.build.quantise import Quantisation, for_blocks
from edge.build.tokenizer import chat_template, stop_token_ids, tokenizer_json

_T = TypeVar("_T", bound=np.generic)


def gguf_source(
    path: Path, quantisation: Quantisation = "lossless", template: str | None = None
) -> Source:
    """Read a GGUF file.

    Arguments:
        quantisation: ``"lossless"`` keeps the file's blocks; ``"fp32"`` writes out the floats
            that they stand for, a reference.
        template: chat template to use instead of the file's.

    Raises:
        InvalidInput: the file cannot be read or is of an unsupported kind.
    """
    for_blocks(quantisation)
    described = "fp32 of" if quantisation == "fp32" else quantisation
    gguf = read_gguf(path)
    return Source(
        decoder=read_decoder(gguf),
        weights=GgufCheckpoint(gguf, as_floats=quantisation == "fp32"),
        quantisation=f"{described} {_block_types(gguf)}",
        tokenizer=tokenizer_json(gguf),
        chat_template=chat_template(gguf) if template is None else template,
        stop_token_ids=stop_token_ids(gguf),
    )


class GgufCheckpoint:
    """A ``Checkpoint`` over a GGUF file.

    Arguments:
        as_floats: give de-quantised matrices.
    """

    def __init__(self, gguf: GgufFile, *, as_floats: bool = False) -> None:
        self._gguf = gguf
        self._as_floats = as_floats
        # llama files pair neighbouring rows of q and k for the rotation; qwen2 files do not.
        self._interleaved = gguf.value("general.architecture", str) == "llama"

    def has(self, name: str) -> bool:
        return name in self._gguf.tensors

    def matrix(self, name: str, rows: int, columns: int, *, heads: int = 0) -> Matrix:
        tensor = self._gguf.tensor(name)
        if tensor.shape != (rows, columns):
            raise InvalidInput(
                "gguf",
                f"{self._gguf.path.name}: '{name}' is {tensor.shape}, not {(rows, columns)}",
            )
        matrix = decode(self._in_halves(tensor.raw, heads), tensor.kind)
        if self._as_floats and isinstance(matrix, BlockWeights):
            return matrix.dequantise()
        return matrix

    def vector(self, name: str, *, heads: int = 0) -> Floats:
        tensor = self._gguf.tensor(name)
        values = decode(tensor.raw, tensor.kind)
        if isinstance(values, BlockWeights):
            raise InvalidInput("gguf", f"{self._gguf.path.name}: '{name}' is quantised")
        column = self._in_halves(values.reshape(-1, 1), heads)
        return column.reshape(-1).astype(np.float32)

    def _in_halves(self, rows: NDArray[_T], heads: int) -> NDArray[_T]:
        """``rows``, and what they hold, in the order of ``Checkpoint.matrix``."""
        if not heads or not self._interleaved:
            return rows
        pairs = rows.reshape(heads, len(rows) // heads // 2, 2, -1)
        return pairs.swapaxes(1, 2).reshape(len(rows), -1)


def _block_types(gguf: GgufFile) -> str:
    """The source's block types, most weights first, e.g. ``"Q4_1+Q8_0"``."""
    size: dict[BlockType, int] = {}
    for tensor in gguf.tensors.values():
        size[tensor.kind] = size.get(tensor.kind, 0) + tensor.raw.size
    matrices = [kind for kind in sorted(size, key=lambda kind: -size[kind]) if kind.weights > 1]
    return "+".join(kind.name for kind in matrices or size)
