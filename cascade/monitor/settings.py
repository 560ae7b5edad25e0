"""How a monitor audits: plain values, checked."""

from __future__ import annotations

from dataclasses import dataclass

from cascade.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Settings:
    """How a monitor audits.

    Arguments:
        tier_error: an upper bound of the share of the tier's *own* answers that are wrong, in
            [0, 1). Agreement with a fallible tier is not truth; see docs/monitor.md. 0 where the
            certificate is about agreement with that tier.
        share: of the accepted answers, those that are audited, in [0, 1].
        watch_share: the same while on watch, in [share, 1].
        ask_tier: they are labelled by themselves, most by asking the cluster; else they wait for
            ``Monitor.grade``.
        grader: what compares free text with the tier's, as ``cascade.graders`` names it; without
            one only answers of closed sets are labelled by themselves.
        false_alarm: P(a policy whose risk is within its certificate is ever demoted by audits).
        seed: makes the draw repeatable; by default nobody can foresee it.
    """

    tier_error: float
    share: float = 0.05
    watch_share: float = 0.2
    ask_tier: bool = True
    grader: str = ""
    false_alarm: float = 0.01
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise InvalidInput("share", f"{self.share} is not between 0 and 1")
        if not self.share <= self.watch_share <= 1:
            raise InvalidInput("watch_share", f"{self.watch_share} is not between share and 1")
        if not 0 <= self.tier_error < 1:
            raise InvalidInput("tier_error", f"{self.tier_error} is not at least 0 and below 1")
