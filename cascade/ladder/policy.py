"""What a ladder does with a request, and the file in which it is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from cascade.confidence import ConfidenceModel
from cascade.errors import InvalidInput
from cascade.ladder.rows import LadderRows
from cascade.records import Header, TierInfo
from cascade.rows import Bools, Floats
from cascade.strict import Fields

FORMAT: Final = "cascade-ladder"
VERSION: Final = 1

Way = Literal["climb", "vote", "best"]
"""What follows a first answer that is not sure enough. ``"climb"``: the next tier answers, by its
own threshold. ``"vote"``: the second tier answers, and where both agree that is it; else the last
tier answers, or the surer of the two where there is no third. ``"best"``: the surer of the two."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of each row.

    Arguments:
        place: index of the tier whose answer was taken, shape ``[rows]``.
        asked: which tiers were asked, shape ``[tiers, rows]``; one after the other.
    """

    place: NDArray[np.int64]
    asked: Bools

    def correct(self, rows: LadderRows) -> Bools:
        """Whether the answers that were taken are right."""
        return rows.correct[self.place, np.arange(len(rows))]

    def latency_s(self, rows: LadderRows) -> Floats:
        """Of all tiers that were asked, together; NaN where one was not measured."""
        return _sum(rows.latency_s, self.asked)

    def cost_usd(self, rows: LadderRows) -> Floats:
        """Of all tiers that were asked, together; NaN where one was not measured."""
        return _sum(rows.cost_usd, self.asked)

    def left(self, rows: LadderRows) -> Bools:
        """Whether the input left the device."""
        away: Bools = np.logical_or.reduce(self.asked[rows.remote], axis=0)
        return away


@dataclass(frozen=True, slots=True)
class Ladder:
    """Tiers in order, and when an answer is sure enough.

    Arguments:
        tiers: who may be asked, in this order; the last one's answer is always taken.
        way: see ``Way``; ``"vote"`` and ``"best"`` need two tiers, and at most three and two.
        thresholds: confidences from which an answer is taken, of every tier but the last for
            ``"climb"``, of the first for the others. Above 1: never.
        skip_below: a first answer less sure than this goes to the last tier at once; 0 for none.
    """

    tiers: tuple[str, ...]
    way: Way = "climb"
    thresholds: tuple[float, ...] = ()
    skip_below: float = 0.0

    def __post_init__(self) -> None:
        wanted = len(self.tiers) - 1 if self.way == "climb" else 1
        if not self.tiers or len(self.thresholds) != wanted:
            raise InvalidInput("thresholds", f"are {len(self.thresholds)}, not {wanted}")
        most = {"climb": len(self.tiers), "vote": 3, "best": 2}[self.way]
        if self.way != "climb" and not 2 <= len(self.tiers) <= most:
            raise InvalidInput("tiers", f"{len(self.tiers)} cannot {self.way}; 2 to {most} can")

    def follow(self, rows: LadderRows, confidence: Mapping[str, Floats]) -> Taken:
        """Where each row ends.

        Arguments:
            confidence: of each tier's answers, by name, shape ``[rows]``; a tier's may be missing
                where nothing is decided by it.
        """
        places = [rows.tiers.index(tier) for tier in self.tiers]
        asked = np.zeros((len(rows.tiers), len(rows)), np.bool_)
        asked[places[0]] = True
        if self.way == "climb":
            return self._climb(rows, places, asked, confidence)
        first = confidence[self.tiers[0]]
        unsure = first < self.thresholds[0]
        asked[places[1]] = unsure
        second = confidence.get(self.tiers[1])
        surer = unsure if second is None else unsure & (second > first)
        if self.way == "best" or len(self.tiers) == 2:
            agreed = rows.answer[places[0]] == rows.answer[places[1]]
            take_second = surer & ~agreed if self.way == "vote" else surer
            return Taken(np.where(take_second, places[1], places[0]), asked)
        split = unsure & (rows.answer[places[0]] != rows.answer[places[1]])
        asked[places[2]] = split
        return Taken(np.where(split, places[2], places[0]), asked)

    def _climb(
        self,
        rows: LadderRows,
        places: list[int],
        asked: Bools,
        confidence: Mapping[str, Floats],
    ) -> Taken:
        taken = np.full(len(rows), places[-1])
        open_ = np.ones(len(rows), np.bool_)
        for i, threshold in enumerate(self.thresholds):
            asked[places[i]] = open_
            sure = open_ & (confidence[self.tiers[i]] >= threshold)
            taken[sure] = places[i]
            open_ = open_ & ~sure
            if i == 0 and self.skip_below > 0:
                skipped = open_ & (confidence[self.tiers[0]] < self.skip_below)
                asked[places[-1]] |= skipped
                open_ = open_ & ~skipped
        asked[places[-1]] |= open_
        return Taken(taken, asked)

    def to_json(self) -> dict[str, object]:
        """A plain dict."""
        return {
            "tiers": list(self.tiers),
            "way": self.way,
            "thresholds": list(self.thresholds),
            "skip_below": self.skip_below,
        }

    @classmethod
    def from_json(cls, value: object, where: str) -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or unusable; it is named.
        """
        fields = Fields(value, where)
        way = fields.choice("way", get_args(Way))
        ladder = cls(
            tiers=fields.texts("tiers"),
            way="vote" if way == "vote" else "best" if way == "best" else "climb",
            thresholds=fields.numbers("thresholds", 0, 2),
            skip_below=fields.number("skip_below", 0, 1),
        )
        fields.end()
        return ladder


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
    """

    task_id: str
    tiers: tuple[TierInfo, ...]
    objective: str
    ladder: Ladder
    confidence: Mapping[str, ConfidenceModel]
    certificate: LadderCertificate | None

    def follow(self, rows: LadderRows) -> Taken:
        """Where each row ends."""
        judged = {
            tier: model.batch(rows.score[rows.tiers.index(tier)])
            for tier, model in self.confidence.items()
            if tier in self.ladder.tiers
        }
        return self.ladder.follow(rows, judged)

    def check_fits(self, header: Header) -> None:
        """Refuse records in which other models went by the names of these tiers.

        Raises:
            InvalidInput: with what differs.
        """
        theirs = {tier.name: tier for tier in header.tiers}
        for tier in self.tiers:
            for name in ("model", "base_digest", "adapter_digest"):
                mine = getattr(tier, name)
                other = (
                    getattr(theirs[tier.name], name) if tier.name in theirs else "(no such tier)"
                )
                if mine != other:
                    raise InvalidInput(
                        "policy",
                        f"is for {tier.name} with the {name} {mine[:12] or '(none)'}, and the "
                        f"records have {other[:14] or '(none)'}; --anyway replays it all the same",
                    )

    def to_bytes(self) -> bytes:
        """The bytes that are signed."""
        certificate = self.certificate
        value = {
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
        )
        fields.end()
        for tier, model in policy.confidence.items():
            if model.scorer is not None:
                raise InvalidInput(
                    f"ladder.confidence.{tier}",
                    "is of features; tiers of a ladder have scores alone",
                )
        return policy


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


def _sum(each: Floats, asked: Bools) -> Floats:
    total: Floats = np.where(asked, each, 0.0).sum(axis=0)
    return total
