"""Rankings: a number for each answer, by which the least sure are escalated first.

Each function here takes the parts of a task, fits on *develop* what it has to fit, and scores every
part, in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.decision.peers.parts import Part, Parts
from cascade.calibrate import fit_platt
from cascade.features import Features, of_records
from cascade.gain import fit_gain
from cascade.rows import Floats
from cascade.selection import select_confidence
from cascade.verdicts import confidences

OURS = "ours"
RAW = "ours, raw score"
GAIN = "ours, expected gain"


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What one ranking says of each answer, in [0, 1]: the larger, the rather it is kept.

    Arguments:
        develop, certify, test: of the rows of these parts, shapes ``[rows]``. What was fitted has
            seen those of develop.
    """

    develop: Floats
    certify: Floats
    test: Floats

    @classmethod
    def of(cls, parts: Parts, score: Callable[[Part], Floats]) -> Scores:
        """Score each part alike."""
        return cls(*(score(part) for part in (parts.develop, parts.certify, parts.test)))

    @property
    def held(self) -> Floats:
        """Those of certify and test."""
        return np.concatenate([self.certify, self.test])


def ours(parts: Parts) -> Scores:
    """The product's confidence: of the raw score or of all features, as the develop part bears
    out (``cascade.selection``)."""
    develop = parts.develop.rows
    seen, documents = _features(parts.develop), develop.records.documents
    model = select_confidence(seen, develop.correct, documents=documents).model
    return Scores.of(parts, lambda part: confidences(model, part.rows.records, part.rows.local))


def other_ours(parts: Parts) -> dict[str, Scores]:
    """What the product has beside it: the raw score through Platt's map, which is what ``cascade
    tune`` fits, and the gain that is expected from escalating."""
    develop = parts.develop.rows
    cloud = develop.cloud_correct
    assert cloud is not None  # parts have one
    raw = fit_platt(develop.score, develop.correct)
    seen, documents = _features(parts.develop), develop.records.documents
    expected = fit_gain(seen, develop.correct, cloud, documents=documents)

    def gainless(part: Part) -> Floats:
        found: Floats = (1 - expected.of_features(_features(part))) / 2
        return found

    return {
        RAW: Scores.of(parts, lambda part: raw.batch(part.rows.score)),
        GAIN: Scores.of(parts, gainless),
    }


def of_signals(parts: Parts) -> dict[str, Scores]:
    """Plain thresholds on what the device measured, each mapped into [0, 1] by exp."""

    def scores(name: str, sign: float) -> Scores:
        return Scores.of(parts, lambda part: _exp(part, name, sign))

    return {
        "mean log probability": scores("mean_logprob", 1.0),
        "lowest log probability": scores("min_logprob", 1.0),
        "mean entropy": scores("mean_entropy", -1.0),
    }


def bounds(parts: Parts) -> dict[str, Scores]:
    """What no ranking can do without, and what none can exceed."""
    return {
        # All equal: figures take ties in their expected order, which is a random one.
        "random": Scores.of(parts, lambda part: np.full(len(part.rows), 0.5)),
        "oracle of who is right": Scores.of(
            parts, lambda part: part.rows.correct.astype(np.float64)
        ),
        "oracle of where escalating helps": Scores.of(parts, lambda part: (1 - gain(part)) / 2),
    }


def gain(part: Part) -> Floats:
    """What escalating each row brings: 1 where it helps, -1 where it harms, else 0."""
    cloud = part.rows.cloud_correct
    assert cloud is not None  # parts have one
    return cloud.astype(np.float64) - part.rows.correct.astype(np.float64)


def _features(part: Part) -> Features:
    """Those that every row of the part has."""
    return of_records(part.rows.records, part.rows.local).complete()


def _exp(part: Part, name: str, sign: float) -> Floats:
    values = part.rows.records.column(part.rows.local, name)
    scores: Floats = np.exp(sign * values)
    return scores
