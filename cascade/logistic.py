"""Log odds and back, without overflow."""

from __future__ import annotations

from typing import Final

import numpy as np

from cascade.rows import Floats

LOGIT_CLIP: Final = 1e-9
"""Scores are moved this far from 0 and 1 before the logit, so that it stays finite (±20.7)."""


def logit(scores: Floats) -> Floats:
    """ln(p / (1 - p)) with p clipped to [LOGIT_CLIP, 1 - LOGIT_CLIP], elementwise."""
    # np.clip takes nearly twice as long on one score, and a device asks for one.
    clipped = np.minimum(np.maximum(scores, LOGIT_CLIP), 1 - LOGIT_CLIP)
    logits: Floats = np.log(clipped) - np.log1p(-clipped)
    return logits


def sigmoid(logits: Floats) -> Floats:
    """1 / (1 + exp(-x)), elementwise, without overflow."""
    decay = np.exp(-np.abs(logits))
    probabilities: Floats = np.where(logits >= 0, 1.0, decay) / (1.0 + decay)
    return probabilities
