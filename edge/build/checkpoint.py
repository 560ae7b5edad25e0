"""The seam between a file of weights and the graph that is built from them.

Tensors go by llama.cpp's names (``blk.0.attn_q.weight``, ``token_embd.weight``), whatever the file
calls them. ``gguf_checkpoint.py`` and ``folder_checkpoint.py`` implement it; ``graph.py`` reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edge.build.architecture import Decoder
from edge.build.blocks import Floats
from edge.build.matrices import Matrix


class Checkpoint(Protocol):
    """Weights by name. Every method raises ``InvalidInput`` naming a tensor that does not fit."""

    def has(self, name: str) -> bool:
        """Whether there is a tensor ``name``. A head that shares the embedding is not there."""
        ...

    def matrix(self, name: str, rows: int, columns: int, *, heads: int = 0) -> Matrix:
        """The matrix ``name``, of ``rows`` outputs x ``columns`` inputs, as it is to be stored.

        Arguments:
            heads: for q and k, the number of heads: the rows of a head come in the order in which
                attention rotates them, dimension i with i + head_dim / 2.
        """
        ...

    def vector(self, name: str, *, heads: int = 0) -> Floats:
        """The values of ``name``, float32 [n]; ``heads`` as for the matrix of the same linear."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """All that a bundle is made of, read from one file or folder.

    Arguments:
        quantisation: for the manifest, e.g. ``"lossless Q4_1+Q8_0"``.
        tokenizer: content of ``tokenizer.json``.
        chat_template: Jinja text.
        stop_token_ids: tokens that end an answer.
    """

    decoder: Decoder
    weights: Checkpoint
    quantisation: str
    tokenizer: str
    chat_template: str
    stop_token_ids: tuple[int, ...]
