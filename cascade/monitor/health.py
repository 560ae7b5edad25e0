"""The state of one monitor and how labels change it: pure functions, no clock, no file.

    certified ──► watch ──► demoted          a new policy starts its own monitor: re-certified
        ▲           │
        └─ cleared ─┘

Only errors demote. Scores alone raise ``watch``: inputs may change without one more error, and
errors may multiply under inputs that look the same, so scores say where to look and not what is so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal, Self, TypeVar

from cascade.errors import InvalidInput
from cascade.monitor.detector import MOST_AUDITS, ChangeDetector
from cascade.monitor.scores import LUCK, ScoreAlarm
from cascade.monitor.sequence import RiskSequence
from cascade.score_reference import ScoreReference
from cascade.strict import Fields

FORMAT_VERSION = 1

T = TypeVar("T")


class State(StrEnum):
    """Where a policy stands."""

    CERTIFIED = "certified"
    """Nothing speaks against the certificate."""
    WATCH = "watch"
    """Something may have changed: more answers are audited, the policy still decides."""
    DEMOTED = "demoted"
    """The risk is above what was certified: everything escalates until there is a new policy."""


Source = Literal["tier", "grader"]
"""Who labels an audit: a tier of the cluster, by agreeing or not, or a grader who knows."""

Kind = Literal["watch", "cleared", "demoted"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a monitor holds its policy to.

    Arguments:
        alpha: the certified risk, in (0, 1).
        tier_error: at most this share of the tier's own answers is wrong, in [0, 1 - alpha). The
            device disagrees with a tier at most as often as one of them is wrong, so agreement is
            tested against alpha + tier_error.
        false_alarm: P(ever demoted by audits while the risk is at most alpha), in (0, .1].
        feedback_false_alarm: the same for demotion by users' reports, in (0, .1].
        score_false_alarm: P(ever on watch for the scores while they are as they were), the luck
            of the reference included, in (.005, .5].
        level: that of the intervals shown, and by which a watch ends, in (0, 1).
    """

    alpha: float
    tier_error: float = 0.0
    false_alarm: float = 0.01
    feedback_false_alarm: float = 0.001
    score_false_alarm: float = 0.01
    level: float = 0.95

    def __post_init__(self) -> None:
        _within("alpha", self.alpha, 0 < self.alpha < 1)
        _within("tier_error", self.tier_error, 0 <= self.tier_error < 1 - self.alpha)
        _within("false_alarm", self.false_alarm, 0 < self.false_alarm <= 0.1)
        allowed = 0 < self.feedback_false_alarm <= 0.1
        _within("feedback_false_alarm", self.feedback_false_alarm, allowed)
        _within("score_false_alarm", self.score_false_alarm, 0.005 < self.score_false_alarm <= 0.5)
        _within("level", self.level, 0 < self.level < 1)

    def null(self, source: Source) -> float:
        """The highest P(label says wrong) while the risk is at most alpha."""
        return self.alpha + (self.tier_error if source == "tier" else 0.0)

    def to_json(self) -> dict[str, object]:
        """A plain dict for ``json.dumps``; ``from_json`` gives back equal limits."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: object, *, where: str = "limits") -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or out of its range; it is named.
        """
        fields = Fields(value, where)
        limits = cls(**{field.name: fields.number(field.name) for field in dataclasses.fields(cls)})
        fields.end()
        return limits


@dataclass(frozen=True, slots=True)
class Label:
    """The outcome of one audit.

    Arguments:
        wrong: the grader says so, or the tier disagrees.
        probability: with which the answer was chosen to be audited, in (0, 1].
    """

    wrong: bool
    source: Source
    probability: float

    def __post_init__(self) -> None:
        _within("probability", self.probability, 0 < self.probability <= 1)


@dataclass(frozen=True, slots=True)
class Weighted:
    """Audits weighted by 1/probability: the unbiased sums of Horvitz and Thompson (1952).

    Arguments:
        answers: estimates how many answers could have been audited.
        errors: estimates how many of these are wrong.
    """

    answers: float = 0.0
    errors: float = 0.0

    @property
    def rate(self) -> float | None:
        """The ratio of both (Hájek 1971); ``None`` before the first audit."""
        return self.errors / self.answers if self.answers else None


@dataclass(frozen=True, slots=True)
class Health:
    """All that a monitor knows; a value.

    Arguments:
        opened, since: when the monitor and when its state began, in seconds since the epoch.
        generation: how often it was begun anew; answers of an earlier one no longer count.
        state: where the policy stands.
        audits: labels of all audits; ``lost`` were begun and never labelled.
        watched: labels since the watch began.
        weighted: the same audits, each counted for the answers that it stands for.
        detector: evidence that audited answers are wrong too often.
        accepted: a success for each accepted answer that a user reported as wrong.
        confirmed: accepted answers that a user called right; shown, and used for nothing.
        scores: evidence that the scores have changed.
        scores_done: the scores have raised a watch already; only once a policy.
    """

    opened: float
    since: float
    generation: int = 0
    state: State = State.CERTIFIED
    audits: RiskSequence = field(default_factory=RiskSequence)
    lost: int = 0
    watched: RiskSequence = field(default_factory=RiskSequence)
    weighted: Weighted = field(default_factory=Weighted)
    detector: ChangeDetector = field(default_factory=ChangeDetector)
    accepted: RiskSequence = field(default_factory=RiskSequence)
    confirmed: int = 0
    scores: ScoreAlarm = field(default_factory=ScoreAlarm)
    scores_done: bool = False

    def risk(self, limits: Limits) -> tuple[float, float]:
        """Bounds of the true running risk of what was audited: the labels' own, widened by what a
        tier may get wrong."""
        low, high = self.audits.interval(1 - limits.level)
        return max(0.0, low - limits.tier_error), min(1.0, high + limits.tier_error)

    def to_json(self) -> dict[str, object]:
        """A plain dict for ``json.dumps``; ``from_json`` gives back an equal value."""
        return {
            "format_version": FORMAT_VERSION,
            "opened": self.opened,
            "since": self.since,
            "generation": self.generation,
            "state": self.state.value,
            "audits": self.audits.to_json(),
            "lost": self.lost,
            "watched": self.watched.to_json(),
            "weighted": [self.weighted.answers, self.weighted.errors],
            "detector": self.detector.to_json(),
            "accepted": self.accepted.to_json(),
            "confirmed": self.confirmed,
            "scores": self.scores.to_json(),
            "scores_done": self.scores_done,
        }

    @classmethod
    def from_json(cls, value: object, *, where: str = "health") -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or unusable; it is named.
        """
        fields = Fields(value, where)
        if fields.number("format_version") != FORMAT_VERSION:
            raise InvalidInput(f"{where}.format_version", f"is not {FORMAT_VERSION}")

        def part(name: str, read: Callable[..., T]) -> T:
            return read(fields.take(name), where=fields.path(name))

        weighted = fields.numbers("weighted", 0.0)
        if len(weighted) != 2:
            raise InvalidInput(f"{where}.weighted", "must have 2 numbers")
        health = cls(
            opened=fields.number("opened"),
            since=fields.number("since"),
            generation=fields.integer("generation", 0, MOST_AUDITS),
            state=State(fields.choice("state", [state.value for state in State])),
            audits=part("audits", RiskSequence.from_json),
            lost=fields.integer("lost", 0, MOST_AUDITS),
            watched=part("watched", RiskSequence.from_json),
            weighted=Weighted(*weighted),
            detector=part("detector", ChangeDetector.from_json),
            accepted=part("accepted", RiskSequence.from_json),
            confirmed=fields.integer("confirmed", 0, MOST_AUDITS),
            scores=part("scores", ScoreAlarm.from_json),
            scores_done=fields.boolean("scores_done"),
        )
        fields.end()
        return health


@dataclass(frozen=True, slots=True)
class Change:
    """A step from one state to another, and why, in a line."""

    kind: Kind
    why: str


Outcome = tuple[Health, Change | None]


def after_audit(health: Health, limits: Limits, label: Label, now: float) -> Outcome:
    """What one more label means. Labels that come in after a demotion are counted, and change
    nothing more."""
    weight = 1 / label.probability
    health = replace(
        health,
        audits=health.audits.after(label.wrong),
        weighted=Weighted(
            health.weighted.answers + weight, health.weighted.errors + weight * label.wrong
        ),
        detector=health.detector.after(label.wrong, null=limits.null(label.source)),
    )
    if health.state is State.WATCH:
        health = replace(health, watched=health.watched.after(label.wrong))
    wealth = health.detector.wealth
    if health.state is State.DEMOTED:
        return health, None
    if wealth >= 1 / limits.false_alarm:
        return _to(health, State.DEMOTED, now, "demoted", "audited answers are wrong too often")
    if health.state is State.CERTIFIED and wealth >= _early(limits):
        return _to(health, State.WATCH, now, "watch", "audited answers are wrong more often")
    if health.state is State.WATCH and wealth < _early(limits):
        high = health.watched.upper(1 - limits.level) + limits.tier_error
        if high <= limits.alpha:
            return _to(health, State.CERTIFIED, now, "cleared", "audits since bound the risk")
    return health, None


def after_answer(
    health: Health,
    limits: Limits,
    *,
    accepted: bool,
    score: float,
    reference: ScoreReference | None,
    now: float,
) -> Outcome:
    """What one more answer of the device means, accepted or not, before anybody judged it.

    Arguments:
        score: its raw score in [0, 1].
        reference: the scores of the certify part; ``None`` where the policy has none.
    """
    if accepted:
        health = replace(health, accepted=health.accepted.after(False))
    if reference is None or health.scores_done:
        return health, None
    health = replace(health, scores=health.scores.after(score, reference))
    if health.scores.wealth < score_threshold(limits):
        return health, None
    health = replace(health, scores_done=True)
    if health.state is not State.CERTIFIED:
        return health, None
    why = "scores of requests are not those of the certify part"
    return _to(health, State.WATCH, now, "watch", why)


def after_feedback(health: Health, limits: Limits, *, correct: bool, now: float) -> Outcome:
    """What a user's word on one accepted answer means.

    Users choose what they report, so praise proves nothing. Complaints do: of all accepted answers
    at most as many are reported as wrong as are wrong, if reports are honest. All others count as
    right until somebody says otherwise, so the bound holds at any moment, however few report.

    Raises:
        InvalidInput: more answers were reported than accepted.
    """
    if correct:
        return replace(health, confirmed=health.confirmed + 1), None
    counts = health.accepted
    health = replace(health, accepted=RiskSequence(counts.labels, counts.errors + 1))
    if health.state is State.DEMOTED:
        return health, None
    if health.accepted.lower(limits.feedback_false_alarm) <= limits.alpha:
        return health, None
    return _to(health, State.DEMOTED, now, "demoted", "users report too many answers as wrong")


def score_threshold(limits: Limits) -> float:
    """The wealth at which the scores raise a watch; their own luck is part of the level."""
    return 1 / (limits.score_false_alarm - LUCK)


def _early(limits: Limits) -> float:
    """The wealth at which a watch begins: half-way to a demotion in nats, so that without cause it
    is reached with a probability of at most the root of ``false_alarm``."""
    return 1 / math.sqrt(limits.false_alarm)


def _to(health: Health, state: State, now: float, kind: Kind, why: str) -> Outcome:
    watched = RiskSequence()
    return replace(health, state=state, since=now, watched=watched), Change(kind, why)


def _within(field: str, value: float, inside: bool) -> None:
    if not inside:
        raise InvalidInput(field, f"{value} is out of its range")
