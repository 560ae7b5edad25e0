"""How much of the local decode of escalated requests an early stop saves, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.decision.decoded import MAX_TOKENS, SHAPES, Decoded, draw
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate
from cascade.binomial import clopper_pearson_interval
from cascade.calibrate import fit_platt
from cascade.certify import certify, plan_grid
from cascade.confidence import ConfidenceModel
from cascade.early_stop import (
    EarlyStop,
    TokenLists,
    bound_alone,
    certify_early_stop,
    fit_early_stop,
    mask,
    plan_epsilon,
    plan_threshold,
    savings,
)
from cascade.errors import InfeasibleTarget
from cascade.estimators import fit_estimator
from cascade.features import of_records
from cascade.records import load
from cascade.rows import Bools, Floats

DELTA = 0.1
RECORDS = Path(__file__).parent / "data" / "free_answers.parquet"
"""Made by ``python -m benchmarks.decision.questions FILE`` and ``cascade record FILE --tiers device
--grader regex --group kind --max-tokens 48``, with the default bundle."""

_ALPHA, _PARTS = 0.2, (600, 2000, 1500, 5000)
_REAL_ALPHA, _REAL_PARTS, _REAL_MAX_TOKENS = 0.3, (0.2, 0.45, 0.25, 0.1), 48
_REACH, _COVERAGE = 0.4, 0.95


@dataclass(frozen=True, slots=True)
class Outcome:
    """One draw of all parts.

    Arguments:
        saved: share of the local tokens of escalated test answers that was saved.
        bound: the same by the bound alone.
        coverage, before: of the certify part at the certified threshold, with and without stopping.
        wrongly: share of the stopped test answers that would have been kept.
        epsilon: what was promised of it.
        risk: error among the test answers that are kept with stopping; 0 where none is.
    """

    saved: float
    bound: float
    coverage: float
    before: float
    wrongly: float
    epsilon: float
    risk: float


def rows(subject: None, run: Run) -> Iterator[Row]:
    """For each kind of traffic: what is saved, and that certificate and promise hold."""
    repeats = 10 if run.quick else 40
    for shape in SHAPES:
        run.say(f"early stop, {shape.name}")
        found = []
        for repeat in range(repeats):
            parts = [draw(shape, size, 10 * repeat + k) for k, size in enumerate(_PARTS)]
            model = fit_platt(parts[0].score, parts[0].correct)
            confidence = [model.batch(part.score) for part in parts]
            outcome = stopped(parts, confidence, model, alpha=_ALPHA, max_tokens=MAX_TOKENS)
            if outcome is not None:
                found.append(outcome)
        sizes = ", ".join(map(str, _PARTS[:3]))
        drawn = (
            f"{len(found)} of {repeats} draws that could be certified; develop, stop and certify "
            f"parts of {sizes} synthetic answers, {_PARTS[3]} to judge by; alpha {_ALPHA:g}, "
            f"delta {DELTA:g}, epsilon at most .05 and for at most .05 of the coverage"
        )
        yield from _rows(run, f"{shape.name} answers", found, _ALPHA, drawn)
    yield from _real(run, repeats)


def stopped(
    parts: list[Decoded],
    confidence: list[Floats],
    model: ConfidenceModel,
    *,
    alpha: float,
    max_tokens: int,
) -> Outcome | None:
    """Fit on the first part, certify the stop on the second and the policy on the third, judge on
    the fourth; ``None`` where the policy cannot be certified without a stop.

    Arguments:
        confidence: of each part, by ``model``, which was fitted to the first.
    """
    develop, fresh, certify_part, test = parts
    rows = len(certify_part.score)
    grid = plan_grid(confidence[0], develop.correct, rows=rows, alpha=alpha, delta=DELTA)
    plan = plan_threshold(confidence[0], develop.correct, rows=rows, alpha=alpha, delta=DELTA)
    if plan is None:
        return None
    before = _coverage(confidence[2], certify_part, alpha, grid)
    if before is None:
        return None
    rule = fit_early_stop(develop.signals, confidence[0], model, threshold=plan)
    alone = bound_alone(rule)
    epsilon = plan_epsilon(float(np.mean(confidence[0] >= plan)))
    try:
        stop = certify_early_stop(
            rule,
            (develop.signals, confidence[0]),
            (fresh.signals, confidence[1]),
            epsilon=epsilon,
            delta=DELTA,
        )
    except InfeasibleTarget:
        stop = alone
    gone = stop.stops_at(certify_part.signals, max_tokens) > 0
    above = grid[grid >= plan] if (grid >= plan).any() else np.array([plan])
    with_stop = _coverage(mask(confidence[2], gone), certify_part, alpha, above)
    # Where nothing is certified all is escalated, and nothing need be decoded: no tokens to save.
    threshold, coverage = with_stop if with_stop is not None else (1.0, 0.0)
    stops = stop.stops_at(test.signals, max_tokens)
    kept = confidence[3] >= threshold
    found = savings(stops, test.signals.tokens, kept)
    by_bound = savings(alone.stops_at(test.signals, max_tokens), test.signals.tokens, kept)
    local = kept & (stops == 0)
    return Outcome(
        saved=found.saved,
        bound=by_bound.saved,
        coverage=coverage,
        before=before[1],
        wrongly=_wrongly(stop, parts[3].signals, confidence[3] >= plan, max_tokens),
        epsilon=epsilon,
        risk=float(1 - test.correct[local].mean()) if local.any() else 0.0,
    )


def _wrongly(stop: EarlyStop, signals: TokenLists, kept: Bools, max_tokens: int) -> float:
    """The share of the stopped that would have been kept at the threshold of the promise."""
    gone = stop.stops_at(signals, max_tokens) > 0
    return float(kept[gone].mean()) if gone.any() else 0.0


def _coverage(
    confidence: Floats, part: Decoded, alpha: float, grid: Floats
) -> tuple[float, float] | None:
    """The certified threshold and what it keeps."""
    try:
        found = certify(confidence, part.correct, alpha=alpha, delta=DELTA, grid=grid)
    except InfeasibleTarget:
        return None
    return found.threshold, found.coverage


def _rows(run: Run, where: str, found: list[Outcome], alpha: float, drawn: str) -> Iterator[Row]:
    if not found:
        yield run.row(f"local tokens saved, {where}", None, "share", f"no draw certified; {drawn}")
        return
    saved, bound, after, before, wrongly, epsilon, risk = (
        np.array([getattr(outcome, name) for outcome in found])
        for name in ("saved", "bound", "coverage", "before", "wrongly", "epsilon", "risk")
    )
    yield run.row(
        f"local tokens of escalated requests saved, {where}",
        _mean(saved),
        "share",
        f"mean over {drawn}; tokens of wrongly stopped answers do not count",
        reach=_REACH,
        sense=">=",
    )
    yield run.row(
        f"the same by the bound alone, {where}",
        _mean(bound),
        "share",
        f"certain without data, and needs no certificate; mean over {drawn}",
        sense=">=",
    )
    yield run.row(
        f"coverage with early stop over without, {where}",
        Estimate(float(after.mean() / before.mean()), len(found)),
        "×",
        f"mean certified coverage of both, the same certify part and grid; {drawn}",
        reach=_COVERAGE,
        sense=">=",
    )
    for name, broken in (
        ("more than epsilon wrongly stopped", wrongly > epsilon),
        ("risk above alpha with early stop", risk > alpha),
    ):
        count = int(broken.sum())
        level = DELTA + 2 * float(np.sqrt(DELTA * (1 - DELTA) / len(found)))
        yield run.row(
            f"{name}, {where}",
            Estimate(count / len(found), len(found), clopper_pearson_interval(count, len(found))),
            "share",
            "of draws, by what the answers to judge by show; where these are few, as recorded ones "
            f"are, that strays from the truth both ways; exact 95 % interval; {drawn}",
            reach=level if where != _REAL else None,
        )


_REAL = "SmolLM2-135M on short questions"


def _real(run: Run, repeats: int) -> Iterator[Row]:
    run.say(f"early stop, {_REAL}")
    records = load(RECORDS)
    signals, score = TokenLists.of(records, "device"), records.column("device", "raw_score")
    features = of_records(records, "device").complete()
    correct = records.correct("device") == 1
    ends = np.cumsum(np.array(_REAL_PARTS[:-1]) * len(score)).astype(np.int64)
    found = []
    for repeat in range(repeats):
        order = np.random.default_rng(repeat).permutation(len(score))
        split = np.split(order, ends)
        parts = [Decoded(signals.take(rows), score[rows], correct[rows]) for rows in split]
        model = fit_estimator(features.take(split[0]), correct[split[0]])
        confidence = [model.of_features(features.take(rows)) for rows in split]
        outcome = stopped(parts, confidence, model, alpha=_REAL_ALPHA, max_tokens=_REAL_MAX_TOKENS)
        if outcome is not None:
            found.append(outcome)
    drawn = (
        f"{len(found)} of {repeats} random splits of {len(score)} answers that could be certified; "
        f"shares {', '.join(f'{share:g}' for share in _REAL_PARTS)} to develop, stop, certify and "
        f"judge; {correct.mean():.0%} right; at most {_REAL_MAX_TOKENS} tokens; "
        f"confidence by logistic regression over {len(features.names)} features; alpha "
        f"{_REAL_ALPHA:g}, delta {DELTA:g}, epsilon at most .05 and for at most .05 of the coverage"
    )
    yield from _rows(run, _REAL, found, _REAL_ALPHA, drawn)


def _mean(values: Floats) -> Estimate:
    half = 1.96 * float(values.std(ddof=1)) / float(np.sqrt(len(values))) if len(values) > 1 else 1
    mean = float(values.mean())
    return Estimate(mean, len(values), (mean - half, mean + half))
