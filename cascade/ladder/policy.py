"""A ladder with what decides on it, and the file in which it is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from cascade.confidence import ConfidenceModel
from cascade.errors import InvalidInput, PolicyMismatch
from cascade.ladder.rows import LadderRows
from cascade.ladder.rungs import Ladder, Taken
from cascade.records import Header, TierInfo
from cascade.rows import Floats
from cascade.strict import Fields
from cascade.task import Task, free

FORMAT: Final = "cascade-ladder"
VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Bound:
    """One certified limit.

    Arguments:
        figure, limit: as in the objective, e.g. ``p95`` and 2.0.
        alpha: the largest tolerated mean loss: for ``p95`` the share .05 of answers later than the
            limit, else the limit itself.
        observed: the mean loss on the certify part.
        p_value: of "the mean loss is above alpha".
    """

    figure: str
    limit: float
    alpha: float
    observed: float
    p_value: float


@dataclass(frozen=True, slots=True)
class LadderCertificate:
    """P(some bound does not hold) ≤ delta, over draws of the certify part.

    Arguments:
        n: its rows.
        place, tested: which ladder of the fixed sequence this is, from 0, and how many it has.
    """

    bounds: tuple[Bound, ...]
    delta: float
    n: int
    place: int
    tested: int


@dataclass(frozen=True, slots=True)
class LadderPolicy:
    """A ladder with what decides on it.

    Arguments:
        tiers: who was searched over, and which models they were; the last one is the measure of
            ``excess``.
        objective: what it was chosen for, as it was written.
        confidence: of the tiers on whose confidence something is decided.
        certificate: ``None`` where the limits could not be certified; the ladder is then one that
            sends everything to the last tier.
        wording: of the closed set that was asked about; ``None`` for free text.
    """

    task_id: str
    tiers: tuple[TierInfo, ...]
    objective: str
    ladder: Ladder
    confidence: Mapping[str, ConfidenceModel]
    certificate: LadderCertificate | None
    wording: Task | None = None

    def follow(self, rows: LadderRows) -> Taken:
        """Where each row ends. A score of NaN tells nothing."""
        judged = {
            tier: _judged(model, rows.score[rows.tiers.index(tier)])
            for tier, model in self.confidence.items()
            if tier in self.ladder.tiers
        }
        return self.ladder.follow(rows, judged)

    def check_fits(self, header: Header) -> None:
        """Refuse records in which other models went by the names of these tiers, or that were asked
        for in other words.

        Raises:
            PolicyMismatch: a model or an adapter is another.
            InvalidInput: the wording or the options are.
        """
        theirs = {tier.name: tier for tier in header.tiers}
        for tier in self.tiers:
            for name in ("model", "base_digest", "adapter_digest"):
                mine = getattr(tier, name)
                other = (
                    getattr(theirs[tier.name], name) if tier.name in theirs else "(no such tier)"
                )
                if mine != other:
                    raise PolicyMismatch(
                        f"policy: is for {tier.name} with the {name} {mine[:12] or '(none)'}, and "
                        f"the records have {other[:14] or '(none)'}; --anyway replays it all the "
                        "same",
                    )
        wording, recorded = self.wording or free(""), header.wording or free("")
        if not wording.asked_like(recorded):
            raise InvalidInput(
                "policy",
                "is for another wording or other options; --anyway replays it all the same",
            )

    def to_bytes(self) -> bytes:
        """The bytes that are signed."""
        certificate = self.certificate
        value: dict[str, object] = {
            "format": FORMAT,
            "version": VERSION,
            "task_id": self.task_id,
            "tiers": [tier.to_json() for tier in self.tiers],
            "objective": self.objective,
            "ladder": self.ladder.to_json(),
            "confidence": {tier: model.to_json() for tier, model in self.confidence.items()},
            "certificate": certificate
            and {
                "bounds": [{n: getattr(b, n) for n in _BOUND} for b in certificate.bounds],
                **{name: getattr(certificate, name) for name in ("delta", "n", "place", "tested")},
            },
        }
        if self.wording is not None:
            value["wording"] = self.wording.to_json()
        return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what ``to_bytes`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or unusable; it is named.
        """
        fields = Fields.from_bytes(data, "ladder")
        if fields.take("format") != FORMAT or fields.take("version") != VERSION:
            raise InvalidInput("ladder.format", f"is not {FORMAT} {VERSION}; tune it again")
        models = fields.take("confidence")
        if not isinstance(models, dict):
            raise InvalidInput("ladder.confidence", "must be a JSON object")
        certificate = fields.take("certificate")
        wording = fields.take("wording") if fields.given("wording") else None
        policy = cls(
            task_id=fields.text("task_id"),
            tiers=_tiers(fields.take("tiers"), fields.path("tiers")),
            objective=fields.text("objective"),
            ladder=Ladder.from_json(fields.take("ladder"), "ladder.ladder"),
            confidence={
                tier: ConfidenceModel.from_json(model, f"ladder.confidence.{tier}")
                for tier, model in models.items()
            },
            certificate=None if certificate is None else _certificate(certificate),
            wording=None if wording is None else Task.from_json(wording, where="ladder.wording"),
        )
        fields.end()
        policy.check()
        for tier, model in policy.confidence.items():
            if model.scorer is not None:
                raise InvalidInput(
                    f"ladder.confidence.{tier}",
                    "is of features; tiers of a ladder have scores alone",
                )
        return policy

    def check(self) -> None:
        """Raise ``InvalidInput`` where the ladder has a tier that the policy does not know, or
        decides on one whose confidence nobody can tell."""
        known = {tier.name for tier in self.tiers}
        for tier in self.ladder.tiers:
            if tier not in known:
                raise InvalidInput("ladder.ladder.tiers", f"has {tier}, which is not in tiers")
        decides = self.ladder.tiers[: len(self.ladder.thresholds)]
        for tier, threshold in zip(decides, self.ladder.thresholds, strict=True):
            if threshold <= 1 and tier not in self.confidence:
                raise InvalidInput("ladder.confidence", f"has no model for {tier}")


_BOUND: Final = ("figure", "limit", "alpha", "observed", "p_value")


def is_ladder(data: bytes) -> bool:
    """Whether a file holds a ladder, rather than a policy of two sides."""
    try:
        value = json.loads(data)
    except ValueError:
        return False
    return isinstance(value, dict) and value.get("format") == FORMAT


def _tiers(value: object, where: str) -> tuple[TierInfo, ...]:
    if not isinstance(value, list) or not value:
        raise InvalidInput(where, "must be a list of at least one tier")
    return tuple(TierInfo.from_json(item, f"{where}[{i}]") for i, item in enumerate(value))


def _certificate(value: object) -> LadderCertificate:
    fields = Fields(value, "ladder.certificate")
    listed = fields.take("bounds")
    if not isinstance(listed, list) or not listed:
        raise InvalidInput(fields.path("bounds"), "must be a list of at least one bound")
    tested = fields.integer("tested", 1, 10**9)
    certificate = LadderCertificate(
        bounds=tuple(
            _bound(item, f"{fields.path('bounds')}[{i}]") for i, item in enumerate(listed)
        ),
        delta=fields.number("delta", 0, 1),
        n=fields.integer("n", 1, 10**9),
        place=fields.integer("place", 0, tested - 1),
        tested=tested,
    )
    fields.end()
    return certificate


def _bound(value: object, where: str) -> Bound:
    fields = Fields(value, where)
    bound = Bound(fields.text("figure"), *(fields.number(name) for name in _BOUND[1:]))
    fields.end()
    return bound


def _judged(model: ConfidenceModel, scores: Floats) -> Floats:
    known = ~np.isnan(scores)
    if known.all():
        return model.batch(scores)
    judged = np.full(len(scores), np.nan)
    if known.any():
        judged[known] = model.batch(scores[known])
    return judged
