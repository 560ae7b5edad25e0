"""What a policy would have done on records, and whether its certificate bears out there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade.certificate import Promise
from cascade.early_stop import Savings
from cascade.errors import InvalidInput, PolicyMismatch
from cascade.metrics import Bin, reliability
from cascade.pair import Pair
from cascade.policy import Policy
from cascade.records import Header
from cascade.replay.bootstrap import Interval, Weighted, intervals
from cascade.replay.figures import UNITS, Figures
from cascade.replay.gain import WithGain
from cascade.replay.times import times
from cascade.rows import Floats
from cascade.task import free
from cascade.tune import Aim, Observed, observe, settled
from cascade.verdicts import Verdicts, judge, saved


@dataclass(frozen=True, slots=True)
class Checked:
    """One promise of the certificate, held against the records.

    Arguments:
        observed: the mean loss here with its exact interval, rows taken as independent; ``None``
            where the records, or the options, lack what it takes.
        violated: whether the mean loss of these records is above alpha. One file's may well be,
            with a certificate that is right.
        refuted: whether its whole interval is: then inputs like these are not those for which the
            certificate was made.
    """

    promise: Promise
    observed: Observed | None
    violated: bool | None
    refuted: bool | None


@dataclass(frozen=True, slots=True)
class Replayed:
    """Everything that a replay found.

    Arguments:
        n, accepted, documents: rows, those kept on the device, and how many documents they are of.
        unverified: rows that stay on the device without being kept, for there is little to gain.
        unmeasured: rows without a confidence, for something was not measured; none is kept.
        saved: what stopping early saves; ``None`` where the policy does not.
        figures: by the names of ``cascade.replay.UNITS``; NaN where one cannot be told.
        promises: of the certificate; empty where there is none.
        diagram: mean confidence and accuracy of ten bins.
    """

    n: int
    accepted: int
    unverified: int
    unmeasured: int
    documents: int
    saved: Savings | None
    figures: dict[str, Interval]
    promises: tuple[Checked, ...]
    diagram: tuple[Bin, ...]


def replay(
    policy: Policy,
    rows: Pair,
    *,
    replicates: int = 1000,
    seed: int = 1,
    deadline_s: float | None = None,
) -> Replayed:
    """Apply a policy to records.

    Arguments:
        rows: usable rows; ``check_fits`` says whether the policy may judge them.
        replicates: bootstrap resamples by document; 0 for none. Quantiles of time have intervals
            of their own.
        deadline_s: what a promise on deadlines is about; the certificate does not say.

    Raises:
        InvalidInput: an option is out of range.
    """
    seen = judge(policy, rows.records, rows.local)
    documents = rows.documents()
    matches = {
        name: rows.records.correct(name)
        for name in rows.records.tiers
        if name != rows.local and not np.isnan(rows.records.correct(name)).all()
    }

    may_stay = policy.min_gain is not None

    def of_rows(places: NDArray[np.int64]) -> Weighted:
        if len(places) == len(rows):
            return _figures(rows, seen, matches, may_stay=may_stay)
        some = {name: right[places] for name, right in matches.items()}
        return _figures(rows.take(places), seen.take(places), some, may_stay=may_stay)

    promises = policy.certificate.promises if policy.certificate else ()
    known = ~np.isnan(seen.confidence)
    return Replayed(
        n=len(rows),
        accepted=int(seen.accepted.sum()),
        unverified=int(seen.unverified.sum()),
        unmeasured=int(seen.unmeasured.sum()),
        documents=int(documents.max()) + 1,
        saved=saved(policy, rows.records, rows.local, seen),
        figures=_in_order(
            intervals(of_rows, documents, replicates=replicates, seed=seed)
            | times(rows, ~seen.escalated, documents)
        ),
        promises=tuple(_checked(promise, rows, seen, deadline_s) for promise in promises),
        diagram=reliability(seen.confidence[known], rows.correct[known]) if known.any() else (),
    )


def check_fits(policy: Policy, header: Header, rows: Pair) -> None:
    """Refuse a policy that was made for another model, adapter, wording or way of scoring.

    Raises:
        PolicyMismatch: the model or the adapter is another.
        InvalidInput: the wording, the options or the way of scoring are.
    """
    (tier,) = (tier for tier in header.tiers if tier.name == rows.local)
    for name in ("base_digest", "adapter_digest"):
        mine, theirs = getattr(policy, name), getattr(tier, name)
        if mine != theirs:
            raise PolicyMismatch(
                f"policy: is for the {name} {mine[:12] or '(none)'}, and {tier.name} of the "
                f"records had {theirs[:12] or '(none)'}; --anyway replays it all the same",
            )
    # Free text is not worded.
    wording = header.wording if header.options or header.wording else free("")
    if wording is None or not policy.task.asked_like(wording):
        raise InvalidInput(
            "policy", "is for another wording or other options; --anyway replays it all the same"
        )
    if rows.mode() != policy.confidence.mode:
        raise InvalidInput(
            "policy",
            f"is for {policy.confidence.mode} scores, and those of the records are "
            f"{rows.mode()}; --anyway replays it all the same",
        )


def _figures(
    rows: Pair, seen: Verdicts, matches: Mapping[str, Floats], *, may_stay: bool
) -> Weighted:
    """The figures of a policy's verdicts on these very rows.

    Arguments:
        may_stay: whether the policy lets answers stay that it does not accept.
    """
    plain = Figures(
        rows,
        seen.confidence,
        seen.accepted,
        matches,
        unverified=seen.unverified if may_stay else None,
        stops=seen.stops,
    )
    if seen.gain is None or rows.cloud is None:
        return plain
    return WithGain(plain, rows, seen.gain)


def _in_order(figures: dict[str, Interval]) -> dict[str, Interval]:
    named = {name: figures[name] for name in UNITS if name in figures}
    return named | figures


def _checked(
    promise: Promise,
    rows: Pair,
    seen: Verdicts,
    deadline_s: float | None,
) -> Checked:
    method = promise.method if promise.kind in ("net_error", "cost_usd") else None
    aim = Aim(promise.kind, promise.alpha, method, most_usd=promise.high, deadline_s=deadline_s)
    try:
        shown = observe(settled(aim.target(rows), seen.little_gain), seen.accepted)
    except InvalidInput:
        return Checked(promise, None, None, None)
    if shown.observed is None or shown.interval is None:
        return Checked(promise, shown, None, None)
    return Checked(
        promise, shown, shown.observed > promise.alpha, shown.interval[0] > promise.alpha
    )
