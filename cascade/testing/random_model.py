"""A two-layer language model with random weights, as a GGUF file.

Sizes, words and weights are chosen so that a graph of every part of a real model comes out: grouped
key-value heads, 4-bit blocks with minima, an 8-bit head of its own, a byte-level tokenizer with
merges, a chat template. The layout is the GGUF specification's, version 3
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput

LAYERS: Final = 2
HIDDEN: Final = 64
_WIDE, _HEADS, _KV_HEADS, _HEAD = 128, 4, 2, 16
_CONTROL_TOKENS: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CHAT_TEMPLATE: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Each is one token, with a space before it. What the model says is made of them.
_TEXT: Final = (
    "the and of to is not it was with that this you we are have good bad yes no positive negative "
    "true false red green blue water light house river small large first last never always today"
)
_WORDS: Final = tuple(_TEXT.split())


class _Kind(IntEnum):
    """Tensor types, by their ggml number."""

    F32 = 0
    Q4_1 = 3
    Q8_0 = 8


_Tensor = tuple[_Kind, tuple[int, ...], bytes]
_Metadata = int | float | str | list[int] | list[str]


def write_random_model(
    path: Path, *, seed: int, family: Literal["llama", "qwen2"], context_tokens: int
) -> None:
    """Write the file. The same arguments give the same bytes on every machine.

    Raises:
        InvalidInput: ``seed`` is negative, or ``context_tokens`` below 1.
    """
    if seed < 0:
        raise InvalidInput("seed", f"{seed} is below 0")
    if context_tokens < 1:
        raise InvalidInput("context_tokens", f"{context_tokens} is below 1")
    tokens, merges = _vocabulary()
    metadata: dict[str, _Metadata] = {
        "general.architecture": family,
        f"{family}.block_count": LAYERS,
        f"{family}.context_length": context_tokens,
        f"{family}.embedding_length": HIDDEN,
        f"{family}.feed_forward_length": _WIDE,
        f"{family}.attention.head_count": _HEADS,
        f"{family}.attention.head_count_kv": _KV_HEADS,
        f"{family}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{family}.rope.freq_base": 10_000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": {"llama": "smollm", "qwen2": "qwen2"}[family],
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in _CONTROL_TOKENS else 1 for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": _CONTROL_TOKENS.index("<|im_end|>"),
        "tokenizer.chat_template": _CHAT_TEMPLATE,
    }
    _write_gguf(path, metadata, dict(_tensors(np.random.PCG64(seed), family, tokens)))


def _vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE in which every word of ``_WORDS`` is one token."""
    stand_ins = _stand_ins()
    tokens, merges = [*_CONTROL_TOKENS, *stand_ins], []
    for word in _WORDS:
        prefix = stand_ins[ord(" ")]
        for letter in word:
            if prefix + letter not in tokens:
                tokens.append(prefix + letter)
                merges.append(f"{prefix} {letter}")
            prefix += letter
    return tokens, merges


def _stand_ins() -> list[str]:
    """GPT-2's printable characters for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [
        chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)
    ]


def _tensors(
    random: np.random.PCG64, family: str, tokens: list[str]
) -> Iterator[tuple[str, _Tensor]]:
    words = {"Ġ" + word for word in _WORDS}
    yield "token_embd.weight", _bytes(random, np.ones(len(tokens)), HIDDEN)
    # The logits of whole words are ten times those of all other tokens, so they are what it says.
    sizes = np.array([1.0 if token in words else 0.1 for token in tokens])
    sizes[: len(_CONTROL_TOKENS)] = 0.0
    yield "output.weight", _bytes(random, sizes, HIDDEN)
    yield "output_norm.weight", _ones(HIDDEN)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        for part, heads in (("q", _HEADS), ("k", _KV_HEADS), ("v", _KV_HEADS)):
            yield f"{block}.attn_{part}.weight", _nibbles(random, heads * _HEAD, HIDDEN)
            if family == "qwen2":
                yield f"{block}.attn_{part}.bias", _ones(heads * _HEAD)
        yield f"{block}.attn_output.weight", _nibbles(random, HIDDEN, HIDDEN)
        yield f"{block}.ffn_gate.weight", _nibbles(random, _WIDE, HIDDEN)
        yield f"{block}.ffn_up.weight", _nibbles(random, _WIDE, HIDDEN)
        yield f"{block}.ffn_down.weight", _nibbles(random, HIDDEN, _WIDE)
        yield f"{block}.attn_norm.weight", _ones(HIDDEN)
        yield f"{block}.ffn_norm.weight", _ones(HIDDEN)


def _ones(size: int) -> _Tensor:
    return _Kind.F32, (size,), np.ones(size, "<f4").tobytes()


def _nibbles(random: np.random.PCG64, rows: int, columns: int) -> _Tensor:
    """Q4_1: per 32 weights a scale, a minimum, then a nibble each; uniform around zero."""
    scale = np.float16(_SPREAD / 15 / columns**0.5)
    blocks = np.empty((rows, columns // 32, 20), np.uint8)
    blocks[..., :4] = np.array([scale, np.float16(-7.5) * scale], "<f2").view(np.uint8)
    blocks[..., 4:] = _random_bytes(random, (rows, columns // 32, 16))
    return _Kind.Q4_1, (rows, columns), blocks.tobytes()


def _bytes(random: np.random.PCG64, sizes: NDArray[np.float64], columns: int) -> _Tensor:
    """Q8_0: per 32 weights a scale, then a signed byte each; ``sizes`` are the rows' own."""
    rows = len(sizes)
    blocks = np.empty((rows, columns // 32, 34), np.uint8)
    scales = (sizes * _SPREAD / 255 / columns**0.5).astype("<f2")
    blocks[..., :2] = scales.view(np.uint8).reshape(rows, 1, 2)
    blocks[..., 2:] = _random_bytes(random, (rows, columns // 32, 32))
    return _Kind.Q8_0, (rows, columns), blocks.tobytes()


# Width of the uniform distribution of a weight, times the root of the columns: a standard deviation
# above one, so that each token changes what follows.
_SPREAD: Final = 8.0


def _random_bytes(random: np.random.PCG64, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    # Unlike the distributions of numpy, the raw stream never changes between releases.
    words = random.random_raw(int(np.prod(shape)) // 8).astype("<u8")
    return words.view(np.uint8).reshape(shape)


def _write_gguf(path: Path, metadata: dict[str, _Metadata], tensors: dict[str, _Tensor]) -> None:
    alignment = 32
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        head += _string(key) + _value(value)
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        dimensions = struct.pack(f"<{len(shape)}Q", *reversed(shape))
        head += _string(name) + struct.pack("<I", len(shape)) + dimensions
        head += struct.pack("<IQ", kind, len(data))
        data += raw + bytes(-len(raw) % alignment)
    path.write_bytes(head + bytes(-len(head) % alignment) + data)


def _value(value: _Metadata) -> bytes:
    """A metadata value behind the number of its type."""
    match value:
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _string(value)
        case [str(), *_]:
            items = b"".join(_string(str(item)) for item in value)
            return struct.pack("<IIQ", 9, 8, len(value)) + items
        case _:
            return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw
