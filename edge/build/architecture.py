"""What kind of decoder a GGUF file describes: its sizes, and the switches that tell families apart.

Reads metadata only. ``graph.py`` builds any ``Decoder``; a family joins by one entry in
``_FAMILIES`` as long as it is a pre-norm decoder with rotary attention and a gated feed-forward.
"""

from __future__ import annotations

from dataclasses import dataclass

from cascade.errors import InvalidInput
from edge.build.gguf_file import GgufFile


@dataclass(frozen=True, slots=True)
class Decoder:
    """Sizes of a decoder-only transformer.

    Arguments:
        context: longest sequence, in tokens, that the rotary table covers.
        rope_base: theta of the rotary embedding.
        interleaved_rows: whether the file pairs neighbouring rows of q and k for the rotation
            (llama) instead of the two halves of each head.
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
    rope_base: float
    norm_epsilon: float
    interleaved_rows: bool


_FAMILIES = {"llama": True, "qwen2": False}  # family: interleaved_rows


def read_decoder(gguf: GgufFile) -> Decoder:
    """The decoder that ``gguf`` describes.

    Raises:
        InvalidInput: the architecture is not supported, or a size is missing or impossible.
    """
    family = gguf.value("general.architecture", str)
    if family not in _FAMILIES:
        raise InvalidInput(
            "gguf",
            f"{gguf.path.name} is a '{family}' model; supported architectures: "
            + ", ".join(sorted(_FAMILIES)),
        )
    for unsupported in ("rope.scaling.type", "expert_count", "attention.sliding_window"):
        if gguf.metadata.get(f"{family}.{unsupported}", "none") not in ("none", 0):
            raise InvalidInput(
                "gguf", f"{gguf.path.name} uses '{unsupported}', which is not supported"
            )
    if "rope_freqs.weight" in gguf.tensors:
        raise InvalidInput("gguf", f"{gguf.path.name} rescales its rotary table, not supported")
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
        rope_base=gguf.value(f"{family}.rope.freq_base", float),
        norm_epsilon=gguf.value(f"{family}.attention.layer_norm_rms_epsilon", float),
        interleaved_rows=_FAMILIES[family],
    )
