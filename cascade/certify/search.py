"""The search for a threshold on the certify part: p-values over the grid, a family, the last that
passes. Targets, p-values and families are beside this file; planning the grid is ``grid``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from cascade.binomial import check_level, upper_bound
from cascade.certificate import Certificate, Promise
from cascade.certify.families import Family, FixedSequence, furthest
from cascade.certify.labels import labels_needed
from cascade.certify.targets import Target, selective_risk
from cascade.errors import InfeasibleTarget, InvalidInput
from cascade.rows import Floats, same_length, unit_floats

_BISECTIONS = 50


def certify(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    alpha: float,
    delta: float,
    grid: ArrayLike,
    family: Family | None = None,
) -> Certificate:
    """The lowest threshold of ``grid`` at which the selective risk is certified.

    ``certify_targets`` for the target that matters most.

    Arguments:
        confidence: confidences of the certify rows, in [0, 1], shape ``[rows]``.
        correct: whether each local answer was right, bool or 0/1, shape ``[rows]``.
        alpha: largest tolerated selective risk, in (0, 1).
        delta: tolerated probability of exceeding it, in (0, 1).
        grid: thresholds in the order of test, strictly falling, in [0, 1], shape ``[thresholds]``;
            fixed before these rows were seen, e.g. by ``plan_grid`` on other rows.
        family: ``FixedSequence()`` by default.

    Raises:
        InfeasibleTarget: no threshold passes. ``labels_needed`` estimates how many fresh rows would
            do, or is None where the observed error is nowhere below alpha.
        InvalidInput: bad shapes, NaN, or numbers out of range.
        CascadeError: scipy is not installed.
    """
    floats, target = unit_floats("confidence", confidence), selective_risk(correct, alpha=alpha)
    same_length("confidence", floats, "correct", target.local)
    thresholds = unit_floats("grid", grid)
    if (np.diff(thresholds) >= 0).any():
        raise InvalidInput("grid", "must fall strictly, from the highest threshold to the lowest")
    return certify_targets(floats, [target], delta=delta, grid=thresholds, family=family)


def certify_targets(
    confidence: ArrayLike,
    targets: Sequence[Target],
    *,
    delta: float,
    grid: ArrayLike,
    family: Family | None = None,
) -> Certificate:
    """The last threshold of ``grid`` at which all targets are certified together.

    A threshold is bad if any target fails at it. The p-value of that is the largest of the
    targets' own (an intersection-union test: Berger 1982), so several targets cost no share of
    delta. The direction of the grid says what is wanted: one that falls ends at the most local
    answers that are safe, one that rises at the most escalation that is affordable.

    Arguments:
        confidence: confidences of the certify rows, in [0, 1], shape ``[rows]``.
        targets: one or more, each of its own kind, of the same rows in the same order.
        delta: tolerated probability that any of them fails at the threshold, in (0, 1).
        grid: thresholds in the order of test, strictly falling or rising, in [0, 1], shape
            ``[thresholds]``; fixed before these rows were seen, e.g. by ``plan_grid``.
        family: ``FixedSequence()`` by default.

    Raises:
        InfeasibleTarget: no threshold passes. ``labels_needed`` estimates how many fresh rows would
            do, or is None where no threshold was observed to meet all targets.
        InvalidInput: bad shapes, NaN, or numbers out of range.
        CascadeError: scipy is not installed.
    """
    floats = unit_floats("confidence", confidence)
    _check_targets(targets, floats)
    check_level("delta", delta)
    thresholds = _check_grid(grid)
    tested = family if family is not None else FixedSequence()
    each = [target.p_values(floats, thresholds) for target in targets]
    passed = tested.certified(np.max(each, axis=0), delta)
    last = int(furthest(passed))
    if last < 0:
        raise _infeasible(targets, floats, thresholds, tested, delta)
    threshold = thresholds[last : last + 1]
    return Certificate(
        promises=tuple(
            _promise(target, floats, threshold, delta, float(p_values[last]))
            for target, p_values in zip(targets, each, strict=True)
        ),
        delta=float(delta),
        n=len(floats),
        n_accepted=int(np.sum(floats >= threshold)),
        threshold=float(threshold[0]),
        family=tested.name,
        starts=tuple(tested.starts),
        data_digest=data_digest(floats, targets),
        grid_digest=_digest(thresholds),
        grid_size=len(thresholds),
    )


def data_digest(confidence: Floats, targets: Sequence[Target]) -> str:
    """What a certificate of these rows has as its ``data_digest``: by it rows can be told apart
    from those that were certified on.

    sha256 over the rows sorted by confidence, then losses: their order does not matter. The kinds
    go in too, for equal columns may mean different things.
    """
    losses = [loss for target in targets for loss in (target.local, target.escalated)]
    order = np.lexsort((*losses[::-1], confidence))
    kinds = ",".join(target.kind for target in targets).encode()
    return _digest(confidence[order], *(loss[order] for loss in losses), prefix=kinds)


def _promise(
    target: Target, confidence: Floats, threshold: Floats, delta: float, p_value: float
) -> Promise:
    total, rows = (float(values[0]) for values in target.totals(confidence, threshold))
    if target.method == "clopper_pearson":
        upper = upper_bound(int(total), int(rows), delta)
    else:
        upper = _upper(target, confidence, threshold, delta, at_least=total / rows)
    return Promise(
        kind=target.kind,
        alpha=target.alpha,
        low=target.low,
        high=target.high,
        method=target.method,
        rows=int(rows),
        observed=target.from_unit(total / rows),
        upper=target.from_unit(upper),
        p_value=p_value,
    )


def _upper(
    target: Target, confidence: Floats, threshold: Floats, delta: float, *, at_least: float
) -> float:
    """The smallest mean that is rejected at level delta, by bisection from the certified alpha:
    p-values fall as the mean rises."""
    low, high = at_least, target.unit_alpha
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if target.p_values_at(middle, confidence, threshold)[0] <= delta:
            high = middle
        else:
            low = middle
    return high


def _infeasible(
    targets: Sequence[Target],
    confidence: Floats,
    thresholds: Floats,
    family: Family,
    delta: float,
) -> InfeasibleTarget:
    first = thresholds[list(family.starts)[:1] or [0]]
    accepted = int(np.sum(confidence >= first[0]))
    n = len(confidence)
    seen = f"the first threshold tested keeps {accepted} of {n} rows"
    seen += "".join(f", {_observed(target, confidence, first)}" for target in targets)
    wanted = " and ".join(_wanted(target) for target in targets)
    needed = labels_needed(
        targets, confidence, thresholds, family.first_level(delta, len(thresholds))
    )
    if needed is None:
        advice = (
            "no number of labels would help, for no threshold was observed to meet "
            f"{'the target' if len(targets) == 1 else 'all targets'}"
        )
    elif needed <= n:
        advice = (
            "thresholds that were not reached look better: plan the order of test anew, then "
            f"certify on about {needed} fresh labels"
        )
    else:
        advice = f"about {needed} fresh labels would be needed if what was observed holds"
    return InfeasibleTarget(
        f"cannot certify {wanted}, with {1 - delta:.0%} certainty: {seen}; {advice}", needed
    )


def _wanted(target: Target) -> str:
    limit = f"of at most {target.alpha:g}"
    return {
        "selective_risk": f"an error {limit} among local answers",
        "excess_error": f"a share {limit} that only the cluster would get right",
        "net_error": f"an error above the cluster's {limit}",
        "escalation_share": f"an escalation share {limit}",
        "cost_usd": f"a cost {limit} dollars a request",
        "deadline_misses": f"a share {limit} of missed deadlines",
    }[target.kind]


def _observed(target: Target, confidence: Floats, threshold: Floats) -> str:
    total, rows = (float(values[0]) for values in target.totals(confidence, threshold))
    if target.kind == "selective_risk":
        return f"{total:g} of them wrong"
    return f"{target.kind} {target.from_unit(total / rows):.4g}"


def _check_targets(targets: Sequence[Target], confidence: Floats) -> None:
    if not targets:
        raise InvalidInput("targets", "is empty; give at least one")
    for target in targets:
        same_length("confidence", confidence, target.kind, target.local)
    if len({target.kind for target in targets}) < len(targets):
        raise InvalidInput("targets", "has two of one kind; keep the stricter")


def _check_grid(grid: ArrayLike) -> Floats:
    thresholds = unit_floats("grid", grid)
    steps = np.diff(thresholds)
    if not ((steps < 0).all() or (steps > 0).all()):
        raise InvalidInput("grid", "must fall strictly, or rise strictly")
    return thresholds


def _digest(*arrays: Floats, prefix: bytes = b"") -> str:
    digest = hashlib.sha256(prefix)
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
    return digest.hexdigest()
