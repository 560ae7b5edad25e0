"""What a confidence is computed from, in words."""

from __future__ import annotations

from typing import Final

from cascade.confidence import ConfidenceModel, Platt
from cascade.scorer import Trees

_NAMED: Final = 5  # features that are listed; the policy has them all


def made_of(model: ConfidenceModel) -> str:
    """What a confidence is computed from, in words."""
    if model.scorer is None:
        what = "the raw score"
    else:
        names = ", ".join(model.features[:_NAMED])
        if len(model.features) > _NAMED:
            names += f" and {len(model.features) - _NAMED} more features"
        kind = (
            f"{len(model.scorer.roots)} trees over"
            if isinstance(model.scorer, Trees)
            else "a logistic regression of"
        )
        what = f"{kind} {names}" if len(model.features) > 1 else f"{kind} {names} alone"
    how = "Platt" if isinstance(model.calibrator, Platt) else "isotonic"
    return f"{what}, calibrated ({how})"
