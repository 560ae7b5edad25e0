"""Is the candidate good enough? Each question is one bound with a reason. Pure functions on arrays.

A candidate has to *show* that its accuracy is not worse by a margin: the null hypothesis is that it
is, and the test is one-sided, by Tango's score interval of paired differences
(``cascade.metrics.paired_difference``). Too few held-out rows show nothing, so nothing passes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Final, Self

import numpy as np

from cascade.metrics import brier, ece, paired_difference
from cascade.rows import Bools, Floats
from cascade.strict import Fields

_NOTHING: Final = 1e-9  # rounding


@dataclass(frozen=True, slots=True)
class Finding:
    """One question that a candidate was asked.

    Arguments:
        what: the question, e.g. ``"accuracy"``.
        task: its task; empty for canaries.
        against: the adapter that it was compared with, for people; empty for none.
        value: what was measured of the candidate.
        reference: the same of the other adapter; ``None`` where there is none.
        bound: what was allowed.
        shown: the number that is held against the bound: a difference or its bound.
        passed: whether it is good enough.
        reason: in a line.
    """

    what: str
    task: str
    against: str
    value: float
    reference: float | None
    shown: float
    bound: float
    passed: bool
    reason: str

    def to_json(self) -> dict[str, object]:
        """A plain dict for ``json.dumps``; ``from_json`` gives back an equal finding."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object, *, where: str = "finding") -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or unusable; it is named.
        """
        fields = Fields(value, where)
        found = cls(
            what=fields.text("what"),
            task=fields.text("task"),
            against=fields.text("against"),
            value=fields.number("value"),
            reference=fields.number_or_none("reference"),
            shown=fields.number("shown"),
            bound=fields.number("bound"),
            passed=fields.boolean("passed"),
            reason=fields.text("reason"),
        )
        fields.end()
        return found


def accuracy(
    candidate: Bools, other: Bools, *, most_worse: float, delta: float, task: str, against: str
) -> Finding:
    """Not worse by ``most_worse``, shown at the level ``delta``.

    Arguments:
        candidate, other: whether each answer is right, shape ``[rows]``, the same rows.
    """
    compared = paired_difference(candidate, other, level=1 - 2 * delta)
    low = compared.interval[0]
    passed = low > -most_worse
    changed = f"{compared.only_first} rows better, {compared.only_second} worse, of {compared.n}"
    if passed:
        reason = f"worse by less than {_points(most_worse)}: {changed}"
    elif compared.difference <= -most_worse:
        reason = f"worse by {_points(-compared.difference)}: {changed}"
    else:
        reason = (
            f"may be worse by {_points(-low)}, and {_points(most_worse)} are allowed: {changed}"
            + (
                ""
                if compared.difference < 0
                else f"; about {rows_needed(most_worse, delta)} rows could show it"
            )
        )
    return Finding(
        "accuracy",
        task,
        against,
        float(np.mean(candidate)),
        float(np.mean(other)),
        low,
        -most_worse,
        passed,
        reason,
    )


def rows_needed(most_worse: float, delta: float) -> int:
    """How many rows show that an adapter which answers exactly alike is not worse by
    ``most_worse``.

    Without one discordant pair, Tango's statistic at a difference d is d √n / √d, so the lower
    bound is −z² / (n + z²).
    """
    squared = NormalDist().inv_cdf(1 - delta) ** 2
    return math.floor(squared / most_worse - squared) + 1


def calibration(
    candidate: Floats,
    right: Bools,
    other: Floats,
    other_right: Bools,
    *,
    most_brier_rise: float,
    most_ece_rise: float,
    task: str,
    against: str,
) -> tuple[Finding, Finding]:
    """The errors of its confidence are not higher: Brier score and expected calibration error.

    Arguments:
        candidate, other: confidences in [0, 1] of each adapter's own answers, shape ``[rows]``.
    """
    findings = []
    for what, measure, most in (
        ("Brier score", brier, most_brier_rise),
        ("calibration error", ece, most_ece_rise),
    ):
        mine, theirs = measure(candidate, right), measure(other, other_right)
        rise = mine - theirs
        passed = rise <= most + _NOTHING
        findings.append(
            Finding(
                what,
                task,
                against,
                mine,
                theirs,
                rise,
                most,
                passed,
                f"{mine:.3f} after {theirs:.3f}"
                + ("" if passed else f"; {most:g} more is allowed"),
            )
        )
    return findings[0], findings[1]


def out_of_scope(
    candidate: Bools, other: Bools, *, most_escape: float, task: str, against: str
) -> Finding:
    """What is none of the task's goes up to the cluster as before.

    Arguments:
        candidate, other: whether each input would be escalated, shape ``[rows]``.
    """
    mine, theirs = float(np.mean(candidate)), float(np.mean(other))
    passed = theirs - mine <= most_escape + _NOTHING
    return Finding(
        "out of scope",
        task,
        against,
        mine,
        theirs,
        theirs - mine,
        most_escape,
        passed,
        f"{mine:.1%} escalated after {theirs:.1%}"
        + ("" if passed else f"; {_points(most_escape)} less are allowed"),
    )


def canaries(failed: tuple[str, ...], asked: int, *, most_failed: float) -> Finding:
    """Canaries answer as they must.

    Arguments:
        failed: ids of those that did not.
    """
    share = len(failed) / asked
    passed = share <= most_failed + _NOTHING
    named = ", ".join(failed[:5]) + (", …" if len(failed) > 5 else "")
    return Finding(
        "canaries",
        "",
        "",
        share,
        None,
        share,
        most_failed,
        passed,
        f"{len(failed)} of {asked} failed" + (f": {named}" if failed else ""),
    )


def certified(
    kept: float | None,
    why: str,
    other: float | None,
    *,
    most_less_kept: float,
    task: str,
    against: str,
) -> Finding:
    """A policy can be certified wherever one can be for the other adapter, and keeps about as much
    as that one's: a candidate must not take away what devices may answer. Where neither has one,
    all of the task escalates, as before.

    Arguments:
        kept, other: shares of the certify rows that each policy keeps; ``None`` without a
            certificate.
        why: of the candidate's refusal.
        most_less_kept: by how much ``kept`` may be below ``other``.
    """
    bound = 0.0 if other is None else other - most_less_kept
    passed = other is None if kept is None else kept >= bound - _NOTHING
    if kept is not None:
        reason = f"{kept:.1%} of the certify rows are kept"
        if other is not None:
            reason += f", {other:.1%} before"
        if not passed:
            reason += f"; {_points(most_less_kept)} less are allowed"
    elif other is None:
        reason = f"no policy, as before, so all of it escalates: {why}"
    else:
        reason = f"no policy can be certified: {why}"
    return Finding(
        "certificate", task, against, kept or 0.0, other, kept or 0.0, bound, passed, reason
    )


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"
