"""Weights of a Hugging Face folder under the names that the graph uses, quantised as asked for.

The container is ``edge.safetensors_file``; the arithmetic is ``quantise.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cascade.errors import InvalidInput
from edge.build.blocks import Floats
from edge.build.matrices import Matrix
from edge.build.quantise import BLOCK, Quantisation, quantise
from edge.safetensors_file import FloatTensor, read_safetensors

_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LOOKED_UP = ("token_embd.weight", "output.weight")


class FolderCheckpoint:
    """A ``Checkpoint`` over the safetensors files of ``folder``.

    Arguments:
        tied: whether the head is the embedding; None to go by whether there is a head.
    """

    def __init__(self, folder: Path, *, tied: bool | None, quantisation: Quantisation) -> None:
        self._tensors: Mapping[str, FloatTensor] = read_safetensors(folder)
        self._folder = folder
        self._tied = tied
        self._quantisation = quantisation

    def has(self, name: str) -> bool:
        if name == "output.weight" and self._tied is not None:
            return not self._tied
        return _torch_name(name) in self._tensors

    def matrix(self, name: str, rows: int, columns: int, *, heads: int = 0) -> Matrix:
        """See ``Checkpoint``; these files hold the halves of a head as attention wants them."""
        values = self._values(name, (rows, columns))
        if self._quantisation == "fp32":
            return values
        if columns % BLOCK:
            raise InvalidInput(
                "safetensors",
                f"{self._folder.name}: the {columns} columns of '{_torch_name(name)}' are not "
                f"whole blocks of {BLOCK}; quantise to fp32",
            )
        four = self._quantisation == "int4" and name not in _LOOKED_UP
        return quantise(values, 4 if four else 8)

    def vector(self, name: str, *, heads: int = 0) -> Floats:
        return self._values(name, None).astype(np.float32)

    def _values(
        self, name: str, shape: tuple[int, int] | None
    ) -> npt.NDArray[np.float16 | np.float32]:
        tensor = self._tensors.get(_torch_name(name))
        if tensor is None:
            raise InvalidInput(
                "safetensors", f"{self._folder.name} has no tensor '{_torch_name(name)}'"
            )
        if len(tensor.shape) != 1 if shape is None else tensor.shape != shape:
            raise InvalidInput(
                "safetensors",
                f"{self._folder.name}: '{tensor.name}' is {tensor.shape}, not {shape or '[n]'}",
            )
        values = tensor.values()
        if not np.isfinite(values).all():
            raise InvalidInput(
                "safetensors", f"{self._folder.name}: '{tensor.name}' is not all finite numbers"
            )
        return values


def _torch_name(name: str) -> str:
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{_INSIDE[part]}.{kind}"
