"""What models and policies make of recorded answers, row by row: as a device would.

The one place that turns rows into confidences, gains and verdicts, for tuning, replay, reports and
comparisons. An answer on which something that a model needs was not measured has no confidence: NaN
here, ``unmeasured`` on a device. Such rows are not accepted, and they are not dropped either:
whoever ranks or certifies counts them below every threshold (``ranked``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from cascade.confidence import ConfidenceModel
from cascade.early_stop import EarlyStop, Savings, TokenLists, savings
from cascade.early_stop.token_lists import Ints
from cascade.errors import InvalidInput
from cascade.features import Features, of_records
from cascade.gain import GainModel
from cascade.policy import Policy
from cascade.records import RecordSet
from cascade.rows import Bools, Floats

LEAST: Final = 2.0**-40
"""The lowest threshold of a policy under which rows may have no confidence: above that of these,
which count as 0, and below whatever a confidence is."""

_BLOCK: Final = 20_000  # rows looked at together: forests take a number for each row and tree


@dataclass(frozen=True, slots=True, eq=False)
class Verdicts:
    """What a policy does with rows; arrays have the shape ``[rows]``.

    Arguments:
        confidence: in [0, 1]; NaN where the device has none, because something was not measured,
            it stopped before the end, or it said that the input is none of the task's.
        accepted: answers that are returned as verified.
        little_gain: rows that would stay, unverified, unless accepted: escalating them is expected
            to gain less than the policy's ``min_gain``.
        gain: expected from escalating, in [−1, 1], NaN where not measured; ``None`` without a gain
            model.
        stops: after how many tokens the decode is stopped, 0 where it is not; ``None`` without an
            early stop.
    """

    confidence: Floats
    accepted: Bools
    little_gain: Bools
    gain: Floats | None
    stops: Ints | None

    def take(self, rows: Ints) -> Self:
        """Those of these rows, in this order."""
        return type(self)(
            self.confidence[rows],
            self.accepted[rows],
            self.little_gain[rows],
            None if self.gain is None else self.gain[rows],
            None if self.stops is None else self.stops[rows],
        )

    @property
    def unverified(self) -> Bools:
        """Answers that stay on the device without being accepted."""
        return self.little_gain & ~self.accepted

    @property
    def escalated(self) -> Bools:
        """Requests that go up."""
        return ~(self.accepted | self.little_gain)

    @property
    def stopped(self) -> Bools:
        """Answers that were not written to the end."""
        return np.zeros(len(self.accepted), np.bool_) if self.stops is None else self.stops > 0

    @property
    def unmeasured(self) -> Bools:
        """Whole answers without a confidence."""
        return np.isnan(self.confidence) & ~self.stopped


def judge(policy: Policy, records: RecordSet, tier: str) -> Verdicts:
    """What ``policy`` does with the answers of ``tier``, where nothing stands in the way of
    escalating them. Whether the policy is for these answers is not looked at.

    Raises:
        NotFound: there is no such tier.
        InvalidInput: raw scores are missing, or what an early stop needs.
    """
    confidence = confidences(policy.confidence, records, tier)
    if policy.task.outside:
        said = np.array(records.texts(tier, "answer"))
        if not any(said):
            raise InvalidInput(
                f"{tier}.answer", "is missing; the task's answer for what is out of scope needs it"
            )
        confidence = np.where(said == policy.task.outside, np.nan, confidence)
    stops, gain = None, None
    if policy.early_stop is not None:
        stops = stops_at(policy.early_stop, records, tier)
        confidence = np.where(stops > 0, np.nan, confidence)
    # NaN reaches no threshold.
    accepted: Bools = confidence >= (np.inf if policy.threshold is None else policy.threshold)
    little = np.zeros(len(confidence), np.bool_)
    if policy.gain is not None:
        gain = gains(policy.gain, records, tier)
        if policy.min_gain is not None:
            # What was stopped is no answer, so it goes up at once.
            little = (
                (gain < policy.min_gain)
                if stops is None
                else (gain < policy.min_gain) & ~stops.astype(np.bool_)
            )
    return Verdicts(confidence, accepted, little, gain, stops)


def confidences(model: ConfidenceModel, records: RecordSet, tier: str) -> Floats:
    """Confidences of a tier's answers; NaN where a feature that ``model`` needs was not measured.

    Raises:
        NotFound: there is no such tier.
        InvalidInput: a raw score is out of range.
    """
    if model.scorer is None:
        scores = records.column(tier, "raw_score")
        missing = np.isnan(scores)
        if not missing.any():
            return model.batch(scores)
        return _where_measured(~missing, lambda rows: model.batch(scores[rows]))
    features = of_records(records, tier, model.features)
    return _where_measured(measured(features), lambda rows: model.of_features(features.take(rows)))


def gains(model: GainModel, records: RecordSet, tier: str) -> Floats:
    """Gains expected from escalating a tier's answers; NaN where they cannot be told.

    Raises:
        NotFound, InvalidInput: as ``confidences``.
    """
    names = tuple(dict.fromkeys((*model.local.features, *model.remote.features)))
    features = of_records(records, tier, names)
    return _where_measured(measured(features), lambda rows: model.of_features(features.take(rows)))


def stops_at(rule: EarlyStop, records: RecordSet, tier: str) -> Ints:
    """After how many tokens a tier's answers would have been stopped; 0 where they would not.

    Raises:
        NotFound: there is no such tier.
        InvalidInput: the records have no signals of single tokens, or do not say how long an answer
            may be.
    """
    most = records.header.max_tokens
    if most is None:
        raise InvalidInput(
            "records", "do not say how long an answer may be (max_tokens); an early stop needs it"
        )
    return rule.stops_at(TokenLists.of(records, tier), most)


def saved(policy: Policy, records: RecordSet, tier: str, seen: Verdicts) -> Savings | None:
    """What a policy's early stop saves on a tier's answers; ``None`` without one.

    Arguments:
        seen: its verdicts on them.
    """
    if seen.stops is None or policy.threshold is None:
        return None
    whole = ranked(confidences(policy.confidence, records, tier))
    tokens = TokenLists.of(records, tier).tokens
    return savings(seen.stops, tokens, whole >= policy.threshold)


def ranked(confidence: Floats) -> Floats:
    """Confidences by which rows can be ordered and certified: 0 for those without one."""
    none = np.isnan(confidence)
    return np.where(none, 0.0, confidence) if none.any() else confidence


def measured(features: Features) -> Bools:
    """On which rows every feature was measured, shape ``[rows]``."""
    return np.asarray(np.isfinite(features.values).all(axis=1))


def unmeasured(names: Sequence[str], records: RecordSet, tier: str) -> dict[str, int]:
    """On how many rows each of these features was not measured; those of which none is missing are
    left out."""
    values = of_records(records, tier, names).values
    counts = np.sum(~np.isfinite(values), axis=0).tolist()
    return {name: count for name, count in zip(names, counts, strict=True) if count}


def _where_measured(known: Bools, of_rows: Callable[[Ints], Floats]) -> Floats:
    """Numbers of the rows that are known, a block at a time; NaN for the others."""
    values = np.full(len(known), np.nan)
    places = np.flatnonzero(known)
    for start in range(0, len(places), _BLOCK):
        rows = places[start : start + _BLOCK]
        values[rows] = of_rows(rows)
    return values
