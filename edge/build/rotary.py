"""Angles per position of the rotary embedding, with the rescalings that published models use.

Rotary embedding: Su et al., arXiv 2104.09864. Nothing here reads files; turning frequencies into
the graph's table of cosines and sines is ``graph.py``'s.
"""

from __future__ import annotations

import math

import numpy as np

from edge.build.blocks import Floats


def frequencies(base: float, head_dim: int) -> Floats:
    """float32 [head_dim / 2]: radians per position of each pair, ``base ** (-2i / head_dim)``."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
    return (np.float32(1) / np.float32(base) ** exponents).astype(np.float32)


def stretch_low_bands(
    unscaled: Floats, *, factor: float, low: float, high: float, original_context: int
) -> Floats:
    """Llama 3.1's scaling: slow pairs are slowed by ``factor``, fast ones stay, between is blended.

    A pair that turns fewer than ``low`` times within ``original_context`` positions is slow, one
    that turns more than ``high`` times is fast (The Llama 3 Herd of Models, arXiv 2407.21783, and
    the parameters of the published checkpoints).
    """
    turns = original_context * unscaled / np.float32(2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1).astype(np.float32)
    scaled: Floats = (unscaled * ((1 - kept) / np.float32(factor) + kept)).astype(np.float32)
    return scaled
