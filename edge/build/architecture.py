"""What kind of decoder is to be built: its sizes, and where a GGUF file states them.

``graph.py`` builds any ``Decoder``. A family joins as long as it is a pre-norm decoder with rotary
attention and a gated feed-forward. What a Hugging Face folder states is in ``folder_config.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cascade.errors import InvalidInput
from edge.build.blocks import BlockType
from edge.build.gguf_file import GgufFile
from edge.build.rotary import frequencies


@dataclass(frozen=True, slots=True)
class Decoder:
    """Sizes of a decoder-only transformer.

    Arguments:
        context: longest sequence, in tokens, that the rotary table covers.
        rotary: radians per position of each of the head_dim / 2 pairs, with any rescaling applied.
    """

    family: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    rotary: tuple[float, ...]
    norm_epsilon: float


FAMILIES = ("llama", "qwen2")


def read_decoder(gguf: GgufFile) -> Decoder:
    """The decoder that ``gguf`` describes.

    Raises:
        InvalidInput: the architecture is not supported, or a size is missing or impossible.
    """
    family = gguf.value("general.architecture", str)
    if family not in FAMILIES:
        raise InvalidInput(
            "gguf",
            f"{gguf.path.name} is a '{family}' model; supported architectures: "
            + ", ".join(FAMILIES)
            + ". Others are built from their Hugging Face folder, which is slower",
        )
    for unsupported in ("rope.scaling.type", "expert_count", "attention.sliding_window"):
        if gguf.metadata.get(f"{family}.{unsupported}", "none") not in ("none", 0):
            raise InvalidInput(
                "gguf", f"{gguf.path.name} uses '{unsupported}', which is not supported"
            )
    hidden = gguf.value(f"{family}.embedding_length", int)
    heads = gguf.value(f"{family}.attention.head_count", int)
    kv_heads = gguf.metadata.get(f"{family}.attention.head_count_kv", heads)
    if not isinstance(kv_heads, int) or heads < 1 or kv_heads < 1 or heads % kv_heads:
        raise InvalidInput("gguf", f"{gguf.path.name}: {heads} heads cannot share {kv_heads}")
    head_dim = gguf.metadata.get(f"{family}.attention.key_length", hidden // heads)
    rotated = gguf.metadata.get(f"{family}.rope.dimension_count", head_dim)
    if not isinstance(head_dim, int) or rotated != head_dim or head_dim % 2:
        raise InvalidInput(
            "gguf", f"{gguf.path.name} rotates {rotated} of {head_dim} dimensions, not supported"
        )
    return Decoder(
        family=family,
        layers=gguf.value(f"{family}.block_count", int),
        hidden=hidden,
        feed_forward=gguf.value(f"{family}.feed_forward_length", int),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=gguf.tensor("token_embd.weight").shape[0],
        context=gguf.value(f"{family}.context_length", int),
        rotary=_rotary(gguf, gguf.value(f"{family}.rope.freq_base", float), head_dim),
        norm_epsilon=gguf.value(f"{family}.attention.layer_norm_rms_epsilon", float),
    )


def _rotary(gguf: GgufFile, base: float, head_dim: int) -> tuple[float, ...]:
    """Frequencies, divided by the file's own factors where it brings some (Llama 3.1 and later)."""
    unscaled = frequencies(base, head_dim)
    factors = gguf.tensors.get("rope_freqs.weight")
    if factors is not None:
        if factors.kind is not BlockType.F32 or factors.shape != unscaled.shape:
            raise InvalidInput(
                "gguf",
                f"{gguf.path.name}: '{factors.name}' is {factors.kind.name} {factors.shape}, "
                f"not F32 {unscaled.shape}",
            )
        unscaled = unscaled / factors.raw.view(np.float32).reshape(-1)
    return tuple(unscaled.tolist())
