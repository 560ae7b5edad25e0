"""An early stop from records: planned on develop, certified on a part of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cascade.early_stop import (
    EarlyStop,
    TokenLists,
    bound_alone,
    certify_early_stop,
    fit_early_stop,
    plan_threshold,
)
from cascade.errors import InfeasibleTarget, InvalidInput
from cascade.pair import Pair
from cascade.records import RecordSet
from cascade.rows import Bools
from cascade.tune.modelling import Fitted
from cascade.verdicts import confidences, ranked


@dataclass(frozen=True, slots=True)
class Stopping:
    """What came of it.

    Arguments:
        rule: ``None`` where there is none to be had.
        problem: why there is none, or none but the bound; ``None`` where checkpoints are certified.
        rows: of the part on which they were.
    """

    rule: EarlyStop | None
    problem: str | None
    rows: int


def fit_stop(
    develop: Pair, part: RecordSet, fitted: Fitted, *, alpha: float, delta: float, rows: int
) -> Stopping:
    """Fit a rule on develop and certify it on ``part``, whose answers nobody needs to grade.

    Arguments:
        alpha, delta: of the selective risk that the policy is to promise; ``delta`` of the rule's
            own promise, too.
        rows: size of the certify part.

    Raises:
        InvalidInput: the records are of a closed set, or have no signals.
        CascadeError: scipy or scikit-learn is missing.
    """
    header = develop.records.header
    if header.options:
        raise InvalidInput("early-stop", "is for free text; these records are of a closed set")
    if header.max_tokens is None:
        raise InvalidInput(
            "early-stop",
            "needs to know how long an answer may be, and the records do not say (max_tokens)",
        )
    usable = usable_for_stopping(part, develop.local)
    some = part.take(usable)
    if not len(some):
        raise InvalidInput("stop", f"has no row with an answer of {develop.local}")
    sure = ranked(fitted.confidence)
    planned = plan_threshold(sure, develop.correct, rows=rows, alpha=alpha, delta=delta)
    kept = 0.0 if planned is None else float(np.mean(sure >= planned))
    if planned is None or not 0 < kept < 1:
        return Stopping(None, "no threshold can be expected from develop", len(some))
    signals = TokenLists.of(develop.records, develop.local)
    rule = fit_early_stop(signals, sure, fitted.model, threshold=planned)
    try:
        if not rule.checkpoints:
            raise InfeasibleTarget("develop has too few answers of one kind for a checkpoint", None)
        certified = certify_early_stop(
            rule,
            TokenLists.of(some, develop.local),
            ranked(confidences(fitted.model, some, develop.local)),
            delta=delta,
        )
    except InfeasibleTarget as problem:
        # The bound needs no evidence; without it there is nothing left.
        left = bound_alone(rule) if rule.lowest_score is not None else None
        return Stopping(left, str(problem), len(some))
    return Stopping(certified, None, len(some))


def usable_for_stopping(part: RecordSet, tier: str) -> Bools:
    """Rows with an answer and a score, graded or not."""
    usable: Bools = part.answered(tier) & ~np.isnan(part.column(tier, "raw_score"))
    return usable
