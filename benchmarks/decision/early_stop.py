"""How much of the local decode of escalated requests an early stop saves, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.decision.decoded import MAX_TOKENS, SHAPES, Decoded, Shape, draw
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate
from cascade.binomial import clopper_pearson_interval
from cascade.calibrate import fit_platt
from cascade.certify import certify, plan_grid
from cascade.confidence import ConfidenceModel
from cascade.early_stop import (
    EarlyStop,
    StopRule,
    TokenLists,
    bound_alone,
    certify_early_stop,
    fit_early_stop,
    mask,
    plan_threshold,
    savings,
    tolerated_cutoff,
)
from cascade.errors import InfeasibleTarget
from cascade.estimators import fit_estimator
from cascade.features import of_records
from cascade.records import load
from cascade.rows import Bools, Floats

DELTA, LOST = 0.1, 0.05
RECORDS = Path(__file__).parent / "data" / "free_answers.parquet"
"""Made by ``python -m benchmarks.decision.questions FILE`` and ``cascade record FILE --tiers device
--grader regex --group kind --max-tokens 48``, with the default bundle."""

_ALPHA, _PARTS, _MANY = 0.2, (600, 2000, 1500, 4000), 10_000
_REAL_PARTS, _REAL_MAX_TOKENS = (0.25, 0.4, 0.25, 0.1), 48
_REAL = (("all four kinds", "", 0.3), ("capitals alone", "capitals", 0.35))
"""Name, kind and alpha. The other kinds are no tasks to look at alone: of sums and words less
than a third is right, and no threshold is certified; of what a sentence says four fifths are, and
with so few answers either nothing is certified or all is kept."""
_REACH, _COVERAGE = 0.4, 0.95


@dataclass(frozen=True, slots=True)
class Outcome:
    """One draw of all parts.

    Arguments:
        saved: share of the local tokens of escalated test answers that was saved.
        bound: the same by the bound alone.
        hindsight: the same regressions with the cutoff at which exactly ``LOST`` of the test
            answers that are kept are stopped.
        informed: as ``hindsight``, by regressions of many more answers; NaN where there are none.
        oracle: stopping all test answers that are not kept, and no other, after one token.
        coverage, before: of the certify part at the certified threshold, with and without stopping.
        lost: share of the test answers kept at the planned threshold that was stopped.
        risk: error among the test answers that are kept with stopping; 0 where none is.
    """

    saved: float
    bound: float
    hindsight: float
    informed: float
    oracle: float
    coverage: float
    before: float
    lost: float
    risk: float


def rows(subject: None, run: Run) -> Iterator[Row]:
    """For each kind of traffic: what is saved, what bounds it, and that the promises hold."""
    repeats = 5 if run.quick else 40
    for shape in SHAPES:
        run.say(f"early stop, {shape.name}")
        found = []
        many = draw(shape, _MANY, 1)
        for repeat in range(repeats):
            parts = [draw(shape, size, 10 * repeat + k) for k, size in enumerate(_PARTS)]
            model = fit_platt(parts[0].score, parts[0].correct)
            confidence = [model.batch(part.score) for part in parts]
            # Fitting to so many is slow; a few of the draws tell enough.
            more = (many.signals, model.batch(many.score)) if repeat < 5 else None
            outcome = stopped(
                parts, confidence, model, alpha=_ALPHA, max_tokens=MAX_TOKENS, many=more
            )
            if outcome is not None:
                found.append(outcome)
        sizes = ", ".join(map(str, _PARTS[:3]))
        drawn = (
            f"{len(found)} of {repeats} draws that could be certified; develop, stop and certify "
            f"parts of {sizes} synthetic answers, {_PARTS[3]} to judge by; alpha {_ALPHA:g}, "
            f"delta {DELTA:g}, at most {LOST:g} of the kept answers lost"
        )
        yield from _rows(run, f"{shape.name} answers", found, _ALPHA, drawn, real=False)
        yield from _promise(run, shape)
    for name, kind, alpha in _REAL:
        yield from _real(run, 2 * repeats, name, kind, alpha)


def stopped(
    parts: list[Decoded],
    confidence: list[Floats],
    model: ConfidenceModel,
    *,
    alpha: float,
    max_tokens: int,
    many: tuple[TokenLists, Floats] | None = None,
) -> Outcome | None:
    """Fit on the first part, certify the stop on the second and the policy on the third, judge on
    the fourth; ``None`` where the policy cannot be certified without a stop.

    Arguments:
        confidence: of each part, by ``model``, which was fitted to the first.
        many: signals and confidences for ``Outcome.informed``.
    """
    develop, fresh, certify_part, test = parts
    rows = len(certify_part.score)
    grid = plan_grid(confidence[0], develop.correct, rows=rows, alpha=alpha, delta=DELTA)
    plan = plan_threshold(confidence[0], develop.correct, rows=rows, alpha=alpha, delta=DELTA)
    before = _coverage(confidence[2], certify_part, alpha, grid)
    if plan is None or before is None:
        return None
    rule = fit_early_stop(develop.signals, confidence[0], model, threshold=plan)
    alone = bound_alone(rule)
    stop = alone
    if rule.checkpoints:
        with suppress(InfeasibleTarget):
            stop = certify_early_stop(rule, fresh.signals, confidence[1], lost=LOST, delta=DELTA)
    gone = stop.stops_at(certify_part.signals, max_tokens) > 0
    above = grid[grid >= plan] if (grid >= plan).any() else np.array([plan])
    with_stop = _coverage(mask(confidence[2], gone), certify_part, alpha, above)
    # Where nothing is certified all is escalated, and nothing need be decoded: no tokens to save.
    threshold, coverage = with_stop if with_stop is not None else (1.0, 0.0)
    tokens, kept = test.signals.tokens, confidence[3] >= threshold
    stops = stop.stops_at(test.signals, max_tokens)
    informed = np.nan
    if many is not None:
        better = fit_early_stop(*many, model, threshold=plan)
        informed = _hindsight(better, test.signals, kept, max_tokens)
    planned, local = confidence[3] >= plan, kept & (stops == 0)
    return Outcome(
        saved=savings(stops, tokens, kept).saved,
        bound=savings(alone.stops_at(test.signals, max_tokens), tokens, kept).saved,
        hindsight=_hindsight(rule, test.signals, kept, max_tokens),
        informed=informed,
        oracle=savings(np.where(kept, 0, 1), tokens, kept).saved,
        coverage=coverage,
        before=before[1],
        lost=float((stops[planned] > 0).mean()) if planned.any() else 0.0,
        risk=float(1 - test.correct[local].mean()) if local.any() else 0.0,
    )


def _hindsight(rule: StopRule, signals: TokenLists, kept: Bools, max_tokens: int) -> float:
    """What the best cutoff saves that loses at most ``LOST`` of just these kept answers."""
    lowest = rule.lowest(signals)
    cutoff = naive_cutoff(lowest[kept]) if kept.any() else np.inf
    best = EarlyStop(rule.threshold, rule.lowest_score, rule.checkpoints, cutoff)
    return savings(best.stops_at(signals, max_tokens), signals.tokens, kept).saved


def naive_cutoff(lowest: Floats) -> float:
    """The empirical quantile: it loses just what is tolerated of the answers at hand, and of others
    more every other time."""
    most = int(LOST * len(lowest))
    return float(np.nextafter(np.partition(lowest, most)[most], -np.inf))


def _promise(run: Run, shape: Shape) -> Iterator[Row]:
    """Draws of the stop part from a pool whose truth is known."""
    draws, size = (200 if run.quick else 2000), 1000
    develop, pool = draw(shape, _PARTS[0], 2), draw(shape, _MANY, 3)
    model = fit_platt(develop.score, develop.correct)
    confidence = model.batch(develop.score)
    plan = plan_threshold(confidence, develop.correct, rows=_PARTS[2], alpha=_ALPHA, delta=DELTA)
    if plan is None:
        raise RuntimeError(f"no threshold for {shape.name}")
    rule = fit_early_stop(develop.signals, confidence, model, threshold=plan)
    kept, lowest = model.batch(pool.score) >= plan, rule.lowest(pool.signals)
    exact, naive = broken(lowest, kept, draws=draws, size=size)
    level = DELTA + 2 * float(np.sqrt(DELTA * (1 - DELTA) / draws))
    how = (
        f"of {draws} stop parts of {size}, drawn with replacement from {_MANY} synthetic answers, "
        f"by the whole pool; {kept.mean():.0%} kept; delta {DELTA:g}; exact 95 % interval"
    )
    for peer, count in ((None, exact), ("the empirical quantile", naive)):
        yield run.row(
            f"more than {LOST:g} of the kept answers stopped, {shape.name} answers",
            Estimate(count / draws, draws, clopper_pearson_interval(count, draws)),
            "share",
            how if peer is None else f"the naive cutoff, which must be caught; {how}",
            reach=level if peer is None else None,
            peer=peer,
        )


def broken(lowest: Floats, kept: Bools, *, draws: int, size: int) -> tuple[int, int]:
    """How many draws of a stop part from this pool give a cutoff that stops more than ``LOST`` of
    the pool's kept answers: the certified one, and the naive one.

    Arguments:
        lowest: ``StopRule.lowest`` of the pool; ``kept``: whether each is kept. Shape ``[pool]``.
    """
    rng, truth = np.random.default_rng(5), np.sort(lowest[kept])
    found = [0, 0]
    for _ in range(draws):
        rows = rng.integers(0, len(kept), size)
        some = lowest[rows][kept[rows]]
        try:
            certified = tolerated_cutoff(some, lost=LOST, delta=DELTA)
        except InfeasibleTarget:
            certified = -np.inf
        for place, cutoff in enumerate((certified, naive_cutoff(some))):
            stopped_of_kept = int(np.searchsorted(truth, cutoff, side="right"))
            found[place] += int(stopped_of_kept > LOST * len(truth))
    return found[0], found[1]


def _coverage(
    confidence: Floats, part: Decoded, alpha: float, grid: Floats
) -> tuple[float, float] | None:
    """The certified threshold and what it keeps."""
    try:
        found = certify(confidence, part.correct, alpha=alpha, delta=DELTA, grid=grid)
    except InfeasibleTarget:
        return None
    return found.threshold, found.coverage


def _rows(
    run: Run, where: str, found: list[Outcome], alpha: float, drawn: str, *, real: bool
) -> Iterator[Row]:
    if not found:
        yield run.row(f"local tokens saved, {where}", None, "share", f"no draw certified; {drawn}")
        return
    values = {
        name: np.array([getattr(outcome, name) for outcome in found])
        for name in Outcome.__dataclass_fields__
    }
    yield run.row(
        f"local tokens of escalated requests saved, {where}",
        _mean(values["saved"]),
        "share",
        f"mean over {drawn}; tokens of wrongly stopped answers do not count",
        reach=_REACH,
        sense=">=",
    )
    informed = values["informed"][~np.isnan(values["informed"])]
    for name, some, how in (
        ("by the bound alone", values["bound"], "certain without data, and needs no certificate"),
        (
            "by the cutoff in hindsight",
            values["hindsight"],
            f"the same regressions, losing just {LOST:g} of the test answers that are kept",
        ),
        (
            "by the cutoff in hindsight and better regressions",
            informed,
            f"fitted to {_MANY} answers, {len(informed)} of the draws",
        ),
        (
            "by an oracle",
            values["oracle"],
            "stops those that are not kept, and no other, after the first token",
        ),
    ):
        if len(some):
            yield run.row(
                f"the same {name}, {where}",
                _mean(some),
                "share",
                f"{how}; mean over {drawn}",
                sense=">=",
            )
    after, before = values["coverage"], values["before"]
    yield run.row(
        f"coverage with early stop over without, {where}",
        Estimate(float(after.mean() / before.mean()), len(found)),
        "×",
        f"mean certified coverage of both, {before.mean():.2f} without, the same certify part and "
        f"grid; {drawn}",
        reach=_COVERAGE,
        sense=">=",
    )
    yield run.row(
        f"kept answers lost, {where}",
        _mean(values["lost"]),
        "share",
        f"of the test answers at or above the planned threshold; mean over {drawn}",
        reach=None if real else LOST,
    )
    count = int((values["risk"] > alpha).sum())
    level = DELTA + 2 * float(np.sqrt(DELTA * (1 - DELTA) / len(found)))
    yield run.row(
        f"risk above alpha with early stop, {where}",
        Estimate(count / len(found), len(found), clopper_pearson_interval(count, len(found))),
        "share",
        "of draws, by what the answers to judge by show; where these are few, as recorded ones "
        f"are, that strays from the truth both ways; exact 95 % interval; {drawn}",
        reach=None if real else level,
    )


def _real(run: Run, repeats: int, name: str, kind: str, alpha: float) -> Iterator[Row]:
    where = f"SmolLM2-135M on short questions, {name}"
    run.say(f"early stop, {where}")
    records = load(RECORDS)
    if kind:
        records = records.take(np.array(records.group("kind")) == kind)
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
        outcome = stopped(parts, confidence, model, alpha=alpha, max_tokens=_REAL_MAX_TOKENS)
        if outcome is not None:
            found.append(outcome)
    drawn = (
        f"{len(found)} of {repeats} random splits of {len(score)} answers that could be certified; "
        f"shares {', '.join(f'{share:g}' for share in _REAL_PARTS)} to develop, stop, certify and "
        f"judge; {correct.mean():.0%} right; at most {_REAL_MAX_TOKENS} tokens; "
        f"confidence by logistic regression over {len(features.names)} features; alpha "
        f"{alpha:g}, delta {DELTA:g}, at most {LOST:g} of the kept answers lost"
    )
    yield from _rows(run, where, found, alpha, drawn, real=True)


def _mean(values: Floats) -> Estimate:
    half = 1.96 * float(values.std(ddof=1)) / float(np.sqrt(len(values))) if len(values) > 1 else 1
    mean = float(values.mean())
    return Estimate(mean, len(values), (mean - half, mean + half))
