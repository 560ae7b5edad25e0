"""Block-quantised weights: GGUF blocks re-encoded, without loss, into what ONNX Runtime multiplies.

A GGUF row is a run of blocks, each with its own scale and, in some formats, its own minimum. Every
format handled here is one of two formulas over small unsigned codes ``u``:

    symmetric    w = scale * (u - zero_point)          zero_point = 2 ** (bits - 1)
    with minimum w = scale * u + minimum

ONNX Runtime's ``MatMulNBits`` knows the first one only; ``graph.py`` brings the second to it. The
block layouts are those of ggml (``ggml-quants.h``). Nothing here reads files or builds graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Codes: TypeAlias = npt.NDArray[np.uint8]
Scales: TypeAlias = npt.NDArray[np.float16 | np.float32]
Floats: TypeAlias = npt.NDArray[np.float32]

_SUPER = 256  # weights in a "K" super-block


class BlockType(IntEnum):
    """The tensor types that can be re-encoded, by their ggml number."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q8_0 = 8
    Q4_K = 12
    Q6_K = 14

    @property
    def weights(self) -> int:
        """Weights in one block."""
        return _LAYOUT[self][0]

    @property
    def bytes(self) -> int:
        """Bytes of one block."""
        return _LAYOUT[self][1]


_LAYOUT: dict[BlockType, tuple[int, int]] = {
    BlockType.F32: (1, 4),
    BlockType.F16: (1, 2),
    BlockType.Q4_0: (32, 18),
    BlockType.Q4_1: (32, 20),
    BlockType.Q5_0: (32, 22),
    BlockType.Q8_0: (32, 34),
    BlockType.Q4_K: (_SUPER, 144),
    BlockType.Q6_K: (_SUPER, 210),
}


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """A matrix of ``rows`` x ``columns`` weights, quantised along its columns.

    Arguments:
        bits: width of a code.
        codes: uint8 [rows, columns], one unsigned code each, below ``2 ** bits``.
        scale: float16 or float32 [rows, columns / block].
        minimum: the same shape and type as ``scale``, or None for the symmetric formula.
    """

    bits: Literal[4, 8]
    codes: Codes
    scale: Scales
    minimum: Scales | None = None

    @property
    def rows(self) -> int:
        return int(self.codes.shape[0])

    @property
    def columns(self) -> int:
        return int(self.codes.shape[1])

    @property
    def block(self) -> int:
        """Weights that share a scale."""
        return self.columns // int(self.scale.shape[1])

    @property
    def zero_point(self) -> int:
        return 1 << (self.bits - 1)

    def packed(self) -> Codes:
        """uint8 [rows, columns * bits / 8]; of two 4-bit codes, the first is in the low half."""
        if self.bits == 8:
            return self.codes
        return self.codes[:, 0::2] | (self.codes[:, 1::2] << np.uint8(4))

    def dequantise(self) -> Floats:
        """float32 [rows, columns]: the weights that the codes stand for, rounded as ggml rounds."""
        codes = self.codes.reshape(self.rows, -1, self.block).astype(np.float32)
        scale = self.scale.astype(np.float32)[:, :, None]
        if self.minimum is None:
            weights = scale * (codes - np.float32(self.zero_point))
        else:
            weights = scale * codes + self.minimum.astype(np.float32)[:, :, None]
        return weights.reshape(self.rows, self.columns)


def same_formula(parts: list[BlockWeights]) -> bool:
    """Whether matrices over the same columns can be stacked into one."""
    kinds = {(part.bits, part.block, part.minimum is None) for part in parts}
    return len(kinds) == 1


def stack(parts: list[BlockWeights]) -> BlockWeights:
    """The matrices one below the other. Precondition: ``same_formula(parts)``."""
    if len(parts) == 1:
        return parts[0]
    minima = [part.minimum for part in parts if part.minimum is not None]
    return BlockWeights(
        bits=parts[0].bits,
        codes=np.concatenate([part.codes for part in parts]),
        scale=np.concatenate([part.scale for part in parts]),
        minimum=np.concatenate(minima) if minima else None,
    )


def decode(raw: Codes, kind: BlockType) -> BlockWeights | Scales:
    """Re-encode the rows of one GGUF matrix.

    Arguments:
        raw: uint8 [rows, bytes of a row], as they lie in the file.
        kind: their block type.

    Returns:
        ``BlockWeights`` for a quantised type, else the float16 or float32 matrix itself.
    """
    rows = raw.shape[0]
    if kind is BlockType.F32:
        return raw.view(np.float32)
    if kind is BlockType.F16:
        return raw.view(np.float16)
    decoded = _DECODERS[kind](raw.reshape(-1, kind.bytes))
    return BlockWeights(
        bits=decoded.bits,
        codes=decoded.codes.reshape(rows, -1),
        scale=_narrowest(decoded.scale.reshape(rows, -1)),
        minimum=None if decoded.minimum is None else _narrowest(decoded.minimum.reshape(rows, -1)),
    )


def _narrowest(values: Scales) -> Scales:
    """float16 where that holds every value exactly, which halves the bytes; else float32."""
    if values.dtype == np.float16:
        return values
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), values) else values


# Each decoder takes uint8 [blocks, bytes of a block] and returns one row of codes per block.


def _q4_0(blocks: Codes) -> BlockWeights:
    """d · 16 bytes of nibbles: w = d * (u - 8)."""
    return BlockWeights(4, _nibbles(blocks[:, 2:]), _half(blocks[:, 0:2]))


def _q4_1(blocks: Codes) -> BlockWeights:
    """d · m · 16 bytes of nibbles: w = d * u + m."""
    return BlockWeights(
        4, _nibbles(blocks[:, 4:]), _half(blocks[:, 0:2]), minimum=_half(blocks[:, 2:4])
    )


def _q5_0(blocks: Codes) -> BlockWeights:
    """d · 32 fifth bits · 16 bytes of nibbles: w = d * (u5 - 16), held as 8-bit u = u5 + 112."""
    fifth = np.unpackbits(blocks[:, 2:6], axis=1, bitorder="little")
    codes = _nibbles(blocks[:, 6:]) | (fifth << np.uint8(4))
    return BlockWeights(8, codes + np.uint8(128 - 16), _half(blocks[:, 0:2]))


def _q8_0(blocks: Codes) -> BlockWeights:
    """d · 32 signed bytes: w = d * s, held as u = s + 128 (the sign bit flipped)."""
    return BlockWeights(8, blocks[:, 2:] ^ np.uint8(0x80), _half(blocks[:, 0:2]))


def _q4_k(blocks: Codes) -> BlockWeights:
    """d · dmin · 8 six-bit (scale, minimum) pairs in 12 bytes · nibbles: w = d*sc*u - dmin*mn."""
    d = _half(blocks[:, 0:2]).astype(np.float32)
    dmin = _half(blocks[:, 2:4]).astype(np.float32)
    low_sc, low_mn, high = (blocks[:, 4 + 4 * i : 8 + 4 * i] for i in range(3))
    sc = np.hstack([low_sc & 0x3F, (high & 0x0F) | ((low_sc >> 6) << 4)]).astype(np.float32)
    mn = np.hstack([low_mn & 0x3F, (high >> 4) | ((low_mn >> 6) << 4)]).astype(np.float32)
    codes = _nibbles(blocks[:, 16:].reshape(-1, 32)).reshape(len(blocks), _SUPER)
    return BlockWeights(4, codes, d * sc, minimum=-(dmin * mn))


def _q6_k(blocks: Codes) -> BlockWeights:
    """Low nibbles · high bit pairs · 16 signed scales · d: w = d * sc * (u6 - 32), u = u6 + 96.

    The scales cover 16 weights each, so the block of the result is 16.
    """
    low = blocks[:, 0:128].reshape(-1, 2, 1, 64)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    low = np.concatenate([low & 0x0F, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    high = (high >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & np.uint8(3)
    codes = (low | (high << np.uint8(4))).reshape(len(blocks), _SUPER)
    sc = blocks[:, 192:208].view(np.int8).astype(np.float32)
    d = _half(blocks[:, 208:210]).astype(np.float32)
    return BlockWeights(8, codes + np.uint8(128 - 32), d * sc)


def _half(two_bytes: Codes) -> npt.NDArray[np.float16]:
    return np.ascontiguousarray(two_bytes).view(np.float16)


def _nibbles(packed: Codes) -> Codes:
    """ggml keeps the first half of a block in the low nibbles and the second in the high ones."""
    return np.concatenate([packed & np.uint8(0x0F), packed >> np.uint8(4)], axis=1)


_DECODERS: dict[BlockType, Callable[[Codes], BlockWeights]] = {
    BlockType.Q4_0: _q4_0,
    BlockType.Q4_1: _q4_1,
    BlockType.Q5_0: _q5_0,
    BlockType.Q8_0: _q8_0,
    BlockType.Q4_K: _q4_k,
    BlockType.Q6_K: _q6_k,
}
