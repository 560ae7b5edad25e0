"""What a policy would have done on records, and whether its certificate bears out there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade.certificate import Promise
from cascade.errors import InvalidInput
from cascade.metrics import Bin, reliability
from cascade.pair import Pair
from cascade.policy import Policy
from cascade.records import Header
from cascade.replay.bootstrap import Interval, intervals
from cascade.replay.figures import UNITS, Figures
from cascade.replay.times import times
from cascade.rows import Bools
from cascade.tune import Aim, Observed, keeps, observe


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
        figures: by the names of ``cascade.replay.UNITS``; NaN where one cannot be told.
        promises: of the certificate; empty where there is none.
        diagram: mean confidence and accuracy of ten bins.
    """

    n: int
    accepted: int
    documents: int
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
    confidence = policy.confidence.of_records(rows.records, rows.local)
    accepted = keeps(policy, rows)
    documents = rows.documents()
    matches = {
        name: rows.records.correct(name)
        for name in rows.records.tiers
        if name != rows.local and not np.isnan(rows.records.correct(name)).all()
    }

    def of_rows(places: NDArray[np.int64]) -> Figures:
        if len(places) == len(rows):
            return Figures(rows, confidence, accepted, matches)
        some = {name: right[places] for name, right in matches.items()}
        return Figures(rows.take(places), confidence[places], accepted[places], some)

    promises = policy.certificate.promises if policy.certificate else ()
    return Replayed(
        n=len(rows),
        accepted=int(accepted.sum()),
        documents=int(documents.max()) + 1,
        figures=_in_order(
            intervals(of_rows, documents, replicates=replicates, seed=seed)
            | times(rows, accepted, documents)
        ),
        promises=tuple(_checked(promise, rows, accepted, deadline_s) for promise in promises),
        diagram=reliability(confidence, rows.correct),
    )


def check_fits(policy: Policy, header: Header, rows: Pair) -> None:
    """Refuse a policy that was made for another model, adapter, wording or way of scoring.

    Raises:
        InvalidInput: with what differs.
    """
    (tier,) = (tier for tier in header.tiers if tier.name == rows.local)
    for name in ("base_digest", "adapter_digest"):
        mine, theirs = getattr(policy, name), getattr(tier, name)
        if mine != theirs:
            raise InvalidInput(
                "policy",
                f"is for the {name} {mine[:12] or '(none)'}, and {tier.name} of the records had "
                f"{theirs[:12] or '(none)'}; --anyway replays it all the same",
            )
    if header.wording is None or _asked(policy.task.to_json()) != _asked(header.wording.to_json()):
        raise InvalidInput(
            "policy", "is for another wording or other options; --anyway replays it all the same"
        )
    if rows.mode() != policy.confidence.mode:
        raise InvalidInput(
            "policy",
            f"is for {policy.confidence.mode} scores, and those of the records are "
            f"{rows.mode()}; --anyway replays it all the same",
        )


def _asked(task: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in task.items() if name != "task_id"}


def _in_order(figures: dict[str, Interval]) -> dict[str, Interval]:
    named = {name: figures[name] for name in UNITS if name in figures}
    return named | figures


def _checked(
    promise: Promise,
    rows: Pair,
    accepted: Bools,
    deadline_s: float | None,
) -> Checked:
    method = promise.method if promise.kind in ("net_error", "cost_usd") else None
    aim = Aim(promise.kind, promise.alpha, method, most_usd=promise.high, deadline_s=deadline_s)
    try:
        seen = observe(aim.target(rows), accepted)
    except InvalidInput:
        return Checked(promise, None, None, None)
    if seen.observed is None or seen.interval is None:
        return Checked(promise, seen, None, None)
    return Checked(promise, seen, seen.observed > promise.alpha, seen.interval[0] > promise.alpha)
