"""Floats to blocks: the quantiser for checkpoints that are not quantised yet.

Symmetric, by blocks of 32 along a row, as round-to-nearest codes under one scale a block. Blocks
that are quantised already (GGUF) are re-encoded instead, in ``blocks.py``.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from cascade.errors import InvalidInput
from edge.build.blocks import BlockWeights, Codes, Floats, Scales

Quantisation: TypeAlias = Literal["lossless", "int8", "int4", "fp32"]
"""How a bundle stores weights. ``lossless`` keeps the blocks of a GGUF file; the others are for
checkpoints of floats: ``int8`` costs hardly any quality (0.008 nats on SmolLM2-135M), ``int4``
halves the file and costs much (0.5 nats; embedding and head stay int8). ``fp32`` is a reference."""

BLOCK = 32
_COARSEST = np.float32(1 + 2**-5)  # the most that rounding up may add to a scale


def for_floats(quantisation: Quantisation) -> Quantisation:
    """``quantisation``; raises ``InvalidInput`` where it is not for checkpoints of floats."""
    if quantisation not in ("int8", "int4", "fp32"):
        raise InvalidInput(
            "quantise",
            f"{quantisation} is for GGUF files; a model folder takes int8 (closest to lossless), "
            "int4 or fp32",
        )
    return quantisation


def for_blocks(quantisation: Quantisation) -> Quantisation:
    """``quantisation``; raises ``InvalidInput`` where it is not for files of blocks."""
    if quantisation not in ("lossless", "fp32"):
        raise InvalidInput(
            "quantise",
            f"{quantisation}: a GGUF file is quantised already and its blocks are kept as they "
            "are; leave it out (or fp32, for a reference)",
        )
    return quantisation


def quantise(weights: npt.NDArray[np.float16 | np.float32], bits: Literal[4, 8]) -> BlockWeights:
    """The nearest codes to ``weights``.

    With ``q = 2 ** (bits - 1) - 1`` codes on either side of zero, each block's scale s is
    ``max |w| / q``, rounded up by at most 1/32 of itself, and every weight is off by at most s / 2.
    A block of zeros stays zeros.

    Arguments:
        weights: finite, [rows, columns], columns a multiple of ``BLOCK``.
    """
    rows, columns = weights.shape
    blocks = weights.astype(np.float32).reshape(rows, columns // BLOCK, BLOCK)
    steps = (1 << (bits - 1)) - 1
    scale = _stored(np.abs(blocks).max(axis=2) / np.float32(steps))
    divisor = scale.astype(np.float32)[:, :, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        signed = np.where(divisor > 0, np.rint(blocks / divisor), 0)
    signed = np.clip(signed, -steps, steps)
    codes: Codes = (signed + np.float32(1 << (bits - 1))).astype(np.uint8)
    return BlockWeights(bits, codes.reshape(rows, columns), scale)


def _stored(scale: Floats) -> Scales:
    """``scale`` as float16 rounded up, which halves its bytes; float32 where that is too coarse."""
    with np.errstate(over="ignore"):
        half = scale.astype(np.float16)
    half = np.where(half.astype(np.float32) < scale, np.nextafter(half, np.float16(np.inf)), half)
    return half if (half.astype(np.float32) <= scale * _COARSEST).all() else scale
