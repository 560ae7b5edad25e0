"""One request on its way up a ladder: what it has heard so far, and the next step. Pure.

``next_step`` walks the rule that records are followed by (``Ladder.after``) from the first tier on,
so that what was certified offline is what happens. Asking, money and time are the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cascade.ladder.policy import LadderPolicy


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of one tier.

    Arguments:
        answer: its text, or anything that is equal exactly where the texts are, e.g. their sha256;
            ``None`` where it did not or may not answer.
        raw_score: in [0, 1]; ``None`` where it does not tell.
    """

    answer: str | None = None
    raw_score: float | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What to do next.

    Arguments:
        tier: who.
        ask: ask it; else its answer is the one to take, if there is one.
        reasons: how it came to this, ``TIER:WORD`` for each tier that answered, in order:
            ``confident``, ``unsure``, ``no_score``, ``skip``, ``last``, ``agree``, ``disagree``,
            ``surer``.
    """

    tier: str
    ask: bool
    reasons: tuple[str, ...]


def next_step(policy: LadderPolicy, heard: Mapping[str, Heard]) -> Step:
    """The next step of a request.

    Arguments:
        heard: by tier; those that were not asked yet are missing.
    """
    ladder = policy.ladder
    known = [heard.get(tier, Heard()) for tier in ladder.tiers]
    confidence = [
        np.array([np.nan if (sure := confidence_in(policy, tier, each)) is None else sure])
        for tier, each in zip(ladder.tiers, known, strict=True)
    ]
    agreed = len(known) > 1 and known[0].answer is not None and known[0].answer == known[1].answer
    position, reasons = 0, list[str]()
    while ladder.tiers[position] in heard:
        following = int(ladder.after(position, confidence, np.array([agreed]))[0])
        if known[position].answer is not None:
            reasons += _words(policy, position, following, float(confidence[position][0]), agreed)
        if following <= position:
            return Step(ladder.tiers[following], False, tuple(reasons))
        position = following
    return Step(ladder.tiers[position], True, tuple(reasons))


def confidence_in(policy: LadderPolicy, tier: str, heard: Heard) -> float | None:
    """Calibrated P(the tier's answer is right), or ``None`` where nobody can tell."""
    model = policy.confidence.get(tier)
    if model is None or heard.answer is None or heard.raw_score is None:
        return None
    return model(heard.raw_score)


def _words(
    policy: LadderPolicy, position: int, following: int, confidence: float, agreed: bool
) -> list[str]:
    ladder, last = policy.ladder, len(policy.ladder.tiers) - 1
    tier = ladder.tiers[position]
    if position == last and (ladder.way == "climb" or position == 2):
        return [f"{tier}:last"]
    if position > 0 and ladder.way != "climb":
        voted = [f"{tier}:{'agree' if agreed else 'disagree'}"] if ladder.way == "vote" else []
        chosen = following <= position and not (ladder.way == "vote" and agreed)
        return [*voted, f"{ladder.tiers[following]}:surer"] if chosen else voted
    if following == position:
        return [f"{tier}:confident"]
    if np.isnan(confidence):
        return [f"{tier}:no_score"]
    return [f"{tier}:skip" if following > position + 1 else f"{tier}:unsure"]
