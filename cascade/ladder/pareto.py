"""Finds a ladder: candidates scored on *develop*, tested in a fixed sequence on *certify*.

Pareto testing (Laufer-Goldshtein et al. 2023, arXiv 2210.07913): of all candidates those are kept
that no other beats in both the objective and the predicted p-value of the limits; they are tested
from the safest on, each at level delta, up to the first that fails. The last that passes is chosen.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cascade.binomial import check_level
from cascade.calibrate import fit_platt
from cascade.certify.families import FixedSequence, furthest
from cascade.confidence import ConfidenceModel, Feature
from cascade.errors import InvalidInput
from cascade.ladder.objective import Objective
from cascade.ladder.policy import Bound, LadderCertificate, LadderPolicy
from cascade.ladder.rows import LadderRows
from cascade.ladder.rungs import NEVER, Ladder, Taken
from cascade.metrics import percentile
from cascade.records.record_set import outcome_column
from cascade.rows import Floats
from cascade.task import Task

_ROWS = 20_000  # of develop that are looked at; the search orders candidates, it promises nothing


@dataclass(frozen=True, slots=True)
class Scored:
    """A ladder and its figures on some rows, by the names of ``objective.FIGURES``; NaN where one
    was not measured."""

    ladder: Ladder
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Searched:
    """What a search found.

    Arguments:
        policy: with its certificate, or, where none could be had, all to the last tier.
        refusal: why there is none; ``None`` where there is one.
        scored: every candidate on the develop rows that were looked at.
        front: places in ``scored`` of those that none beats in accuracy, p95, cost and leave.
        sequence: places in ``scored`` of those that were tested, in that order.
        rows: develop rows that were looked at.
    """

    policy: LadderPolicy
    refusal: str | None
    scored: tuple[Scored, ...]
    front: tuple[int, ...]
    sequence: tuple[int, ...]
    rows: int


def search(
    develop: LadderRows,
    fresh: LadderRows,
    objective: Objective,
    *,
    delta: float,
    task_id: str = "",
    most_usd: float | None = None,
    candidates: int = 3000,
    seed: int = 1,
) -> Searched:
    """The best ladder whose limits can be certified.

    Arguments:
        develop, fresh: rows of the parts *develop* and *certify*, which share nothing, of the same
            tiers.
        delta: tolerated probability that any limit does not hold, in (0, 1).
        most_usd: what no request can cost; needed for a limit on the cost.
        candidates: about how many ladders are tried, at most: it sets how fine the thresholds are.
        seed: of the develop rows that are looked at, where there are more than 20,000.

    Raises:
        InvalidInput: the rows lack what the objective takes, or a number is out of range.
        CascadeError: scipy is missing.
    """
    check_level("delta", delta)
    models = _calibrated(develop)
    looked_at = np.sort(np.random.default_rng(seed).permutation(len(develop))[:_ROWS])
    some = develop.take(looked_at)
    judged = _judged(some, models)
    ladders = list(_candidates(some, judged, candidates))
    taken = [ladder.follow(some, judged) for ladder in ladders]
    scored = tuple(
        Scored(ladder, score(some, each)) for ladder, each in zip(ladders, taken, strict=True)
    )
    wanted = np.array([each.figures[objective.figure] for each in scored])
    if np.isnan(wanted).any():
        raise InvalidInput("objective", f"the records do not tell {objective.figure} of every tier")
    loss = -wanted if objective.figure == "accuracy" else wanted
    predicted = np.array(
        [_p_values(objective, some, each, most_usd, len(fresh)).max() for each in taken]
    )
    sequence = _front(np.stack([predicted, loss], axis=1))
    sequence = sequence[np.lexsort((loss[sequence], predicted[sequence]))]

    fresh_judged = _judged(fresh, models)
    tests = [
        _p_values(objective, fresh, ladders[i].follow(fresh, fresh_judged), most_usd, len(fresh))
        for i in sequence
    ]
    passed = FixedSequence().certified(np.array([each.max() for each in tests]), delta)
    last = int(furthest(passed))
    refusal, certificate = None, None
    if last < 0:
        first = ladders[sequence[0]]
        refusal = (
            f"no ladder could be certified for {objective.text!r} with {1 - delta:.0%} certainty "
            f"on {len(fresh)} rows: the safest, {describe(first)}, has p = {tests[0].max():.3g}"
        )
        chosen = Ladder(develop.tiers[-1:])
    else:
        chosen = ladders[sequence[last]]
        seen = _means(objective, fresh, chosen.follow(fresh, fresh_judged))
        certificate = LadderCertificate(
            bounds=tuple(
                Bound(limit.figure, limit.limit, limit.alpha, float(mean), float(p_value))
                for limit, mean, p_value in zip(objective.limits, seen, tests[last], strict=True)
            ),
            delta=delta,
            n=len(fresh),
            place=last,
            tested=len(sequence),
        )
    infos = {tier.name: tier for tier in develop.records.header.tiers}
    policy = LadderPolicy(
        task_id,
        tuple(infos[tier] for tier in develop.tiers),
        objective.text,
        chosen,
        {tier: model for tier, model in models.items() if tier in chosen.tiers},
        certificate,
        _wording(develop, task_id),
    )
    return Searched(
        policy, refusal, scored, pareto_front(scored), tuple(sequence.tolist()), len(some)
    )


def score(rows: LadderRows, taken: Taken) -> dict[str, float]:
    """The figures of a ladder on rows."""
    correct, seconds, dollars = taken.correct(rows), taken.latency_s(rows), taken.cost_usd(rows)
    timed = not np.isnan(seconds).any()
    return {
        "accuracy": float(correct.mean()),
        "risk": float(1 - correct.mean()),
        "excess": float(np.mean(~correct & rows.correct[-1])),
        "cost": float(dollars.mean()),
        "p50": percentile(seconds, 50) if timed else float("nan"),
        "p95": percentile(seconds, 95) if timed else float("nan"),
        "leave": float(taken.left(rows).mean()),
    }


def pareto_front(scored: tuple[Scored, ...]) -> tuple[int, ...]:
    """Places of those that no other beats in accuracy, p95, cost and leave at once, the least
    accurate first. Figures that were not measured are left out of the comparison."""
    names = ("accuracy", "p95", "cost", "leave")
    table = np.array([[each.figures[name] for name in names] for each in scored])
    table[:, 0] = -table[:, 0]
    front = _front(table[:, ~np.isnan(table).any(axis=0)])
    return tuple(front[np.argsort(-table[front, 0], kind="stable")].tolist())


def describe(ladder: Ladder) -> str:
    """A ladder in a few words, e.g. ``device ≥ .81 → tier1 ≥ .93 → tier2``."""
    if ladder.way != "climb":
        return f"{ladder.tiers[0]} ≥ {ladder.thresholds[0]:.4g}, else {ladder.way} of " + ", ".join(
            ladder.tiers
        )
    rungs = [
        f"{tier} ≥ {threshold:.4g}"
        for tier, threshold in zip(ladder.tiers, ladder.thresholds, strict=False)
    ]
    skip = f" (below {ladder.skip_below:.4g}: {ladder.tiers[-1]})" if ladder.skip_below else ""
    return " → ".join([*rungs, ladder.tiers[-1]]) + skip


def _calibrated(develop: LadderRows) -> dict[str, ConfidenceModel]:
    """A calibrator for each tier that tells how sure it is, and can be wrong."""
    models = {}
    for tier, scores, correct in zip(develop.tiers, develop.score, develop.correct, strict=True):
        if np.isnan(scores).any():
            continue
        try:
            models[tier] = fit_platt(scores, correct, feature=_feature(develop, tier))
        except InvalidInput as problem:
            raise InvalidInput(f"develop.{tier}.{problem.field}", problem.problem) from None
    if not models:
        raise InvalidInput("records", "no tier tells how sure it is (raw_score or mean_logprob)")
    return models


def _feature(rows: LadderRows, tier: str) -> Feature:
    """What the scores of ``tier`` are."""
    records = rows.records
    searched = records.source.equal(outcome_column(tier, "option_mode"), "search")[records.places]
    if searched.any() and not searched.all():
        raise InvalidInput(
            "records", f"{tier} searched its options in some rows only; record them alike (--mode)"
        )
    return "search_bound" if searched.all() else "raw_score"


def _wording(rows: LadderRows, task_id: str) -> Task | None:
    wording = rows.records.header.wording
    return None if wording is None else replace(wording, task_id=task_id)


def _judged(rows: LadderRows, models: Mapping[str, ConfidenceModel]) -> dict[str, Floats]:
    return {tier: model.batch(rows.score[rows.tiers.index(tier)]) for tier, model in models.items()}


def _candidates(rows: LadderRows, judged: Mapping[str, Floats], most: int) -> Iterator[Ladder]:
    """Every way through every ordered choice of tiers, with thresholds at quantiles of develop."""
    steps = _steps(len(rows.tiers), most)
    shares = np.arange(1, steps + 1) / (steps + 1)
    quantiles = {
        tier: np.unique(np.quantile(each, shares)).tolist() for tier, each in judged.items()
    }
    for size in range(1, len(rows.tiers) + 1):
        for tiers in itertools.combinations(rows.tiers, size):
            if any(tier not in judged for tier in tiers[:-1]):
                continue
            grids = [[*quantiles[tier], NEVER] for tier in tiers[:-1]]
            for thresholds in itertools.product(*grids):
                yield Ladder(tiers, "climb", thresholds)
                if size >= 3:
                    for skip in quantiles[tiers[0]][:: max(1, steps // 3)]:
                        if skip < thresholds[0]:
                            yield Ladder(tiers, "climb", thresholds, skip)
            if size in (2, 3) and _comparable(rows, tiers, judged):
                for threshold in grids[0]:
                    yield Ladder(tiers, "vote", (threshold,))
                    if size == 2:
                        yield Ladder(tiers, "best", (threshold,))


def _steps(tiers: int, most: int) -> int:
    """Thresholds a tier, so that the product stays below ``most``."""
    return max(3, min(39, int((most / 4) ** (1 / (tiers - 1)))))


def _comparable(rows: LadderRows, tiers: tuple[str, ...], judged: Mapping[str, Floats]) -> bool:
    """Whether the answers of the first two can be compared, and told apart where they differ."""
    kept = all((rows.answer[rows.tiers.index(tier)] >= 0).all() for tier in tiers[:2])
    return kept and (len(tiers) == 3 or tiers[1] in judged)


def _means(objective: Objective, rows: LadderRows, taken: Taken) -> Floats:
    return np.array([limit.losses(rows, taken).mean() for limit in objective.limits])


def _p_values(
    objective: Objective, rows: LadderRows, taken: Taken, most_usd: float | None, size: int
) -> Floats:
    """Of each limit, if ``size`` rows had the mean loss that these have."""
    found = []
    for limit in objective.limits:
        losses = limit.losses(rows, taken)
        if limit.figure == "cost" and most_usd is not None and losses.max() > most_usd:
            raise InvalidInput("most-usd", f"{most_usd:g} is below a request's {losses.max():g}")
        total = float(losses.sum()) * size / len(rows)
        exact = limit.figure != "cost"
        found.append(
            limit.p_value(float(np.ceil(total - 1e-9)) if exact else total, size, most_usd)
        )
    return np.array(found)


def _front(costs: Floats) -> NDArray[np.int64]:
    """Places of the rows that no other row beats: at most as much in all, less in one. Of equal
    rows the first."""
    _, first = np.unique(costs, axis=0, return_index=True)
    unique = costs[first]
    kept = []
    for place, row in zip(first.tolist(), unique, strict=True):
        better = (unique <= row).all(axis=1) & (unique < row).any(axis=1)
        if not better.any():
            kept.append(place)
    return np.array(sorted(kept), np.int64)
