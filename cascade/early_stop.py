"""Stopping the local decode as soon as it is certain that the answer will be escalated.

An answer is kept where its confidence reaches the policy's threshold. Long before its last token,
a running summary of its signals often tells that it will not; all further tokens are wasted. Two
rules stop it, whichever comes first:

*bound*: a free answer's raw score is exp(Σ logprobs / tokens). Log probabilities only add up, and
there are at most ``max_tokens`` of them, so exp(Σ so far / max_tokens) bounds it from above. Below
the lowest score that is kept there is nothing to wait for. Certain, without data.

*checkpoints*: after 1, 2, 3, 4, 6, 8, … tokens a logistic regression of the running summary
predicts whether the answer will be kept; below a cutoff it stops. However good the regressions are,
the cutoff is certified on other records: with probability 1 − δ over their draw, at most a share ε
of the stopped answers would have been kept. It takes no labels, only decoded answers.

Stopping keeps fewer answers, never others. Still, the error among those that are left may be larger
than before, so the policy's own certificate is to be made with stopping switched on: certify
``mask(confidence, stopped)``, whose stopped rows nothing accepts, and the promise is about what the
device will do. ``fit_early_stop`` says which part of the records is for what.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascade.certificate import Certificate
from cascade.confidence import ConfidenceModel
from cascade.errors import CascadeError, InfeasibleTarget, InvalidInput
from cascade.rows import Bools, Floats, outcomes, unit_floats
from cascade.strict import Fields

if TYPE_CHECKING:  # the device reads no records
    from cascade.local import TokenSignals
    from cascade.records import Lists, RecordSet

Ints = NDArray[np.int64]

RUNNING: Final = (
    "mean_logprob",
    "min_logprob",
    "mean_entropy",
    "max_entropy",
    "mean_margin",
    "min_margin",
    "first_logprob",
    "first_entropy",
    "first_margin",
    "last_logprob",
    "last_entropy",
    "last_margin",
)
"""What a checkpoint looks at: of the tokens so far, in nats and probabilities; see ``Signals``."""

CHECKPOINTS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Numbers of tokens after which the rule looks, by default."""

MIN_ROWS: Final = 20
"""A checkpoint that fewer answers reach, or of either kind fewer than a quarter of this, is left
out."""

_CHANCE: Final = 0.1
_SHARES: Final = tuple(place / 100 for place in range(1, 101))  # of answers, to be stopped
_DECIMALS: Final = 5  # as records keep signals
_MOST_TOKENS: Final = 1 << 20
_SLACK: Final = 1e-4  # a token's rounding, float32 and five decimals, in nats


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """After ``tokens`` tokens: P(kept) = sigmoid(Σ weight · running + offset).

    Arguments:
        tokens: ≥ 1.
        weights: one for each of ``RUNNING``.
        remaining: tokens that were still to come at this point, on average, in the records.
    """

    tokens: int
    weights: tuple[float, ...]
    offset: float
    remaining: float

    def logit(self, running: Sequence[float]) -> float:
        """Log odds of being kept."""
        total = self.offset
        for weight, value in zip(self.weights, running, strict=True):
            total += weight * value
        return total


@dataclass(frozen=True, slots=True)
class EarlyStop:
    """When to stop a local decode.

    Arguments:
        threshold: the confidence from which an answer counts as kept, in (0, 1]. A policy with a
            higher threshold keeps less, so the promise holds for it too; with a lower one not.
        lowest_score: the raw score below which no answer is kept, for the bound; ``None`` where
            there is none.
        checkpoints: by rising tokens; empty stops by the bound alone.
        cutoff: stops at the first checkpoint whose log odds are at most this.
        certificate: of ``checkpoints`` and ``cutoff``: what it calls kept answers are the stopped
            ones here, and an error is one that would have been kept, so its alpha is ε. ``None``
            exactly where there are no checkpoints.
    """

    threshold: float
    lowest_score: float | None
    checkpoints: tuple[Checkpoint, ...] = ()
    cutoff: float = -math.inf
    certificate: Certificate | None = None

    def watch(self, max_tokens: int) -> StopWatch:
        """A watch for one answer of at most ``max_tokens`` tokens."""
        return StopWatch(self, max_tokens)

    def stops_at(self, signals: TokenLists, max_tokens: int) -> Ints:
        """After how many tokens each answer would be stopped; 0 where it would not. Shape
        ``[rows]``; equal to what a watch does."""
        reached = np.zeros(len(signals), np.int64)
        for checkpoint in self.checkpoints:
            rows, running = signals.running(checkpoint.tokens)
            stops = _logits(checkpoint, running) <= self.cutoff
            open_ = reached[rows] == 0
            reached[rows[stops & open_]] = checkpoint.tokens
        if self.lowest_score is not None:
            bound = signals.first_below(_least_sum(self.lowest_score, max_tokens))
            both = np.minimum(reached, bound)
            reached = np.where((reached > 0) & (bound > 0), both, np.maximum(reached, bound))
        return reached

    def to_json(self) -> dict[str, object]:
        """A plain dict for ``json.dumps``; ``from_json`` gives back an equal rule."""
        return {
            "threshold": self.threshold,
            "lowest_score": self.lowest_score,
            "running": list(RUNNING),
            "checkpoints": [
                {
                    "tokens": checkpoint.tokens,
                    "weights": list(checkpoint.weights),
                    "offset": checkpoint.offset,
                    "remaining": checkpoint.remaining,
                }
                for checkpoint in self.checkpoints
            ],
            "cutoff": self.cutoff if self.checkpoints else None,
            "certificate": self.certificate.to_json() if self.certificate else None,
        }

    @classmethod
    def from_json(cls, data: object, where: str = "policy.early_stop") -> Self:
        """The rule that ``to_json`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown, of a wrong type or out of range; it is named.
        """
        fields = Fields(data, where)
        threshold = fields.number("threshold", 0.0, 1.0)
        lowest_score = fields.number_or_none("lowest_score", 0.0, 1.0)
        if fields.texts("running") != RUNNING:
            raise InvalidInput(fields.path("running"), "is another summary; tune it again")
        value = fields.take("checkpoints")
        if not isinstance(value, list):
            raise InvalidInput(fields.path("checkpoints"), "must be a list")
        checkpoints = tuple(
            _checkpoint(item, f"{fields.path('checkpoints')}[{place}]")
            for place, item in enumerate(value)
        )
        cutoff, certificate = fields.number_or_none("cutoff"), fields.take("certificate")
        fields.end()
        for name, given in (("cutoff", cutoff), ("certificate", certificate)):
            if (given is None) == bool(checkpoints):
                raise InvalidInput(
                    fields.path(name), "must be present exactly when there are checkpoints"
                )
        tokens = [checkpoint.tokens for checkpoint in checkpoints]
        if tokens != sorted(set(tokens)):
            raise InvalidInput(fields.path("checkpoints"), "must go by rising tokens")
        if threshold == 0:
            raise InvalidInput(fields.path("threshold"), "is 0, at which everything is kept")
        return cls(
            threshold,
            lowest_score,
            checkpoints,
            -math.inf if cutoff is None else cutoff,
            None if certificate is None else Certificate.from_json(certificate),
        )


class StopWatch:
    """Follows one answer token by token; use a new one for each."""

    def __init__(self, rule: EarlyStop, max_tokens: int) -> None:
        self._rule = rule
        self._due = {checkpoint.tokens: checkpoint for checkpoint in rule.checkpoints}
        lowest = rule.lowest_score
        self._least_sum = -math.inf if lowest is None else _least_sum(lowest, max_tokens)
        self._tokens = 0
        self._sums = [0.0, 0.0, 0.0]
        self._first = (0.0, 0.0, 0.0)
        self._min_logprob, self._max_entropy, self._min_margin = math.inf, -math.inf, math.inf
        self.fired = False
        self.saved: float | None = None
        """Tokens that stopping saved, as far as the records tell: what was still to come there at
        this point, on average. ``None`` where the bound stopped it, or nothing did."""

    def __call__(self, token: TokenSignals) -> bool:
        """Look at one more token; true once the answer may be stopped behind it."""
        logprob, entropy, margin = (
            _as_kept(value) for value in (token.logprob, token.entropy, token.margin)
        )
        self._tokens += 1
        if self._tokens == 1:
            self._first = (logprob, entropy, margin)
        sums = self._sums
        sums[0] += logprob
        sums[1] += entropy
        sums[2] += margin
        self._min_logprob = min(self._min_logprob, logprob)
        self._max_entropy = max(self._max_entropy, entropy)
        self._min_margin = min(self._min_margin, margin)
        checkpoint = self._due.get(self._tokens)
        if checkpoint is not None:
            n = self._tokens
            running = (
                sums[0] / n,
                self._min_logprob,
                sums[1] / n,
                self._max_entropy,
                sums[2] / n,
                self._min_margin,
                *self._first,
                logprob,
                entropy,
                margin,
            )
            if checkpoint.logit(running) <= self._rule.cutoff:
                self.fired, self.saved = True, checkpoint.remaining
        self.fired = self.fired or sums[0] + _SLACK * self._tokens < self._least_sum
        return self.fired


@dataclass(frozen=True, slots=True, eq=False)
class TokenLists:
    """Signals of many answers, end to end: row i has those from ``offsets[i]`` to
    ``offsets[i + 1]``.

    Arguments:
        logprobs, entropies, margins: float64, shape ``[all tokens]``; see ``Signals``.
        offsets: int64, shape ``[rows + 1]``.
    """

    logprobs: Floats
    entropies: Floats
    margins: Floats
    offsets: Ints

    @classmethod
    def of(cls, records: RecordSet, tier: str) -> Self:
        """Those of a tier's recorded answers.

        Raises:
            NotFound: there is no such tier.
            InvalidInput: no answer has signals; record them without ``--no-signals``.
        """
        names = ("token_logprobs", "token_entropies", "token_margins")
        lists: list[Lists] = [records.lists(tier, name) for name in names]
        if not len(lists[0].values):
            raise InvalidInput("records", f"{tier} has no signals of single tokens; record them")
        logprobs, entropies, margins = (each.values.astype(np.float64) for each in lists)
        return cls(logprobs, entropies, margins, lists[0].offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: Ints) -> Self:
        """Those of these rows, in this order."""
        lengths = self.tokens[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        places = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return type(self)(
            self.logprobs[places], self.entropies[places], self.margins[places], offsets
        )

    @property
    def tokens(self) -> Ints:
        """Tokens of each answer, shape ``[rows]``."""
        return np.diff(self.offsets)

    def running(self, tokens: int) -> tuple[Ints, Floats]:
        """The rows that have so many tokens, and ``RUNNING`` of their first ones, shape
        ``[those rows, 12]``."""
        rows = np.flatnonzero(self.tokens >= tokens)
        places = self.offsets[rows][:, None] + np.arange(tokens)
        columns: list[Floats] = []
        extremes = (np.min, np.max, np.min)
        each = (self.logprobs, self.entropies, self.margins)
        for values, extreme in zip(each, extremes, strict=True):
            some = values[places]
            # Added one after the other, as a watch does: ``mean`` would round otherwise.
            columns += [np.cumsum(some, axis=1)[:, -1] / tokens, extreme(some, axis=1)]
        for place in (places[:, 0], places[:, -1]):
            columns += [values[place] for values in each]
        return rows, np.stack(columns, axis=1)

    def first_below(self, least_sum: float) -> Ints:
        """After how many tokens the log probabilities add up to less; 0 where they never do."""
        first, sums = np.zeros(len(self), np.int64), np.zeros(len(self))
        for token in range(int(self.tokens.max(initial=0))):
            rows = np.flatnonzero(self.tokens > token)
            # Added one after the other, as a watch does.
            sums[rows] += self.logprobs[self.offsets[rows] + token]
            below = (sums[rows] + _SLACK * (token + 1) < least_sum) & (first[rows] == 0)
            first[rows[below]] = token + 1
        return first


def plan_threshold(
    confidence: ArrayLike, correct: ArrayLike, *, rows: int, alpha: float, delta: float
) -> float | None:
    """The lowest threshold that a certificate of the selective risk has a fair chance to end at,
    from the develop part: about one in ten.

    Too low a threshold stops less than it could; below one that is too high the certificate cannot
    go. Were the certify part just like develop, thresholds whose p-value is ``delta`` would pass
    every other time; one time in ten those do whose p-value is 1.28 standard deviations above.

    Arguments:
        confidence, correct: of the develop part, shape ``[develop rows]``.
        rows: size of the certify part, ≥ 1.
        alpha, delta: as for ``cascade.certify.certify``.

    Returns:
        a threshold in (0, 1], or ``None`` where none would pass, or all answers would be kept.

    Raises:
        InvalidInput: bad shapes, NaN, or numbers out of range.
        CascadeError: scipy is not installed.
    """
    from cascade.certify import selective_risk, threshold_grid

    floats, target = unit_floats("confidence", confidence), selective_risk(correct, alpha=alpha)
    grid = threshold_grid(floats)
    wrong, kept = target.totals(floats, grid)
    larger = rows / len(floats)
    p_values = target.p_values_of(np.ceil(wrong * larger), np.floor(kept * larger), alpha)
    fair = NormalDist().cdf(NormalDist().inv_cdf(delta) - NormalDist().inv_cdf(_CHANCE))
    passed = np.flatnonzero((p_values <= fair) & (grid > 0))
    return float(grid[passed[-1]]) if len(passed) else None


@dataclass(frozen=True, slots=True)
class StopRule:
    """Checkpoints without a cutoff: what ``fit_early_stop`` makes of the develop part.

    Arguments:
        threshold, lowest_score, checkpoints: as in ``EarlyStop``.
    """

    threshold: float
    lowest_score: float | None
    checkpoints: tuple[Checkpoint, ...]

    def unkept(self, signals: TokenLists) -> Floats:
        """How sure the surest checkpoint was that the answer is not kept, in [0, 1], shape
        ``[rows]``; 0 for answers too short for all. A score, not a probability."""
        highest = np.zeros(len(signals))
        for checkpoint in self.checkpoints:
            rows, running = signals.running(checkpoint.tokens)
            highest[rows] = np.maximum(highest[rows], _unkept(_logits(checkpoint, running)))
        return highest


def fit_early_stop(
    signals: TokenLists,
    confidence: ArrayLike,
    model: ConfidenceModel,
    *,
    threshold: float,
    at: Sequence[int] = CHECKPOINTS,
) -> StopRule:
    """Fit the checkpoints on the develop part.

    Three disjoint parts come after each other: *develop* for the confidence, for ``threshold``
    (by ``plan_threshold``) and for this; then ``certify_early_stop``
    on records of their own, whose answers nobody needs to grade; then *certify* for the policy's
    threshold, with stopped rows masked and no threshold of the grid below the planned one.

    Arguments:
        signals: of the develop part.
        confidence: of the same rows, in [0, 1], shape ``[rows]``.
        model: of the confidence, for the bound.
        threshold: the confidence from which an answer is kept, in (0, 1].
        at: numbers of tokens, ≥ 1, rising.

    Raises:
        InvalidInput: bad shapes or numbers out of range.
        CascadeError: scikit-learn is not installed.
    """
    if not 0 < threshold <= 1:
        raise InvalidInput("threshold", f"{threshold} is not above 0 and at most 1")
    if list(at) != sorted(set(at)) or any(not 1 <= tokens <= _MOST_TOKENS for tokens in at):
        raise InvalidInput("at", "must be rising numbers of tokens, each at least 1")
    kept = _of_rows(signals, confidence) >= threshold
    return StopRule(threshold, model.lowest_score(threshold), _regressions(signals, kept, at))


def certify_early_stop(
    rule: StopRule,
    develop: tuple[TokenLists, ArrayLike],
    fresh: tuple[TokenLists, ArrayLike],
    *,
    epsilon: float = 0.05,
    delta: float = 0.1,
) -> EarlyStop:
    """Choose the cutoff on records that nothing was fitted to.

    Stopping at a cutoff is accepting the verdict "not kept"; the wrong verdicts among the stopped
    are binomial, so the search is ``cascade.certify.certify``: exact p-values, fixed-sequence
    testing down a grid planned on the develop part.

    Arguments:
        develop, fresh: signals and confidences of each part; no labels.
        epsilon: largest share of the stopped answers that would have been kept, in (0, 1); see
            ``plan_epsilon``.
        delta: probability of exceeding it, over the draw of ``fresh``, in (0, 1).

    Raises:
        InfeasibleTarget: no cutoff passes; it names how many records would be needed. The bound
            alone, which needs none, is ``bound_alone(rule)``.
        InvalidInput: bad shapes, or numbers out of range.
        CascadeError: scipy is not installed.
    """
    from cascade.certify import certify

    new, new_confidence = fresh
    right = _of_rows(new, new_confidence) < rule.threshold
    grid = plan_cutoffs(rule, *develop, rows=len(new), epsilon=epsilon, delta=delta)
    unkept = rule.unkept(new)
    try:
        certificate = certify(unkept, right, alpha=epsilon, delta=delta, grid=grid)
    except InfeasibleTarget as problem:
        needed = problem.labels_needed
        how = f"about {needed} fresh answers would be needed" if needed else "none was seen to"
        raise InfeasibleTarget(
            f"no cutoff is certain to stop at most {epsilon:g} of answers that would be kept, on "
            f"{len(right)} answers; {how}",
            needed,
        ) from None
    return EarlyStop(
        rule.threshold,
        rule.lowest_score,
        rule.checkpoints,
        _cutoff(certificate.threshold),
        certificate,
    )


def plan_cutoffs(
    rule: StopRule,
    signals: TokenLists,
    confidence: ArrayLike,
    *,
    rows: int,
    epsilon: float,
    delta: float,
) -> Floats:
    """Cutoffs in the order of test, planned on the develop part; see ``certify_early_stop``.

    Arguments:
        rows: size of the part to come, ≥ 1.

    Returns:
        on the scale of ``StopRule.unkept``, above 0, strictly falling, shape ``[cutoffs]``.

    Raises:
        InvalidInput, CascadeError: as ``certify_early_stop``.
    """
    from cascade.certify import plan_grid

    if not rule.checkpoints:
        raise InvalidInput("rule", "has no checkpoint: too few answers of one kind; add records")
    kept = _of_rows(signals, confidence) >= rule.threshold
    grid = plan_grid(
        _unseen(rule, signals, kept),
        ~kept,
        rows=rows,
        alpha=epsilon,
        delta=delta,
        coverages=_SHARES,
    )
    above = grid[grid > 0]  # at 0 everything would be stopped, answers without a token too
    if not len(above):
        raise InfeasibleTarget("no answer reaches a checkpoint; there is nothing to stop", None)
    return above


def plan_epsilon(coverage: float, *, lost: float = 0.05, most: float = 0.05) -> float:
    """The epsilon at which stopping loses at most a share ``lost`` of the answers that are kept.

    Of a request, ε · P(stopped) is lost and ``coverage`` kept, and at most what is not kept, or
    hardly more, is stopped: so ε = lost · coverage / (1 − coverage), but not above ``most``.

    Arguments:
        coverage: share of the develop part that is kept, strictly between 0 and 1.

    Raises:
        InvalidInput: a number is out of range.
    """
    for name, value in (("coverage", coverage), ("lost", lost), ("most", most)):
        if not 0 < value < 1:
            raise InvalidInput(name, f"{value} is not between 0 and 1")
    return min(most, lost * coverage / (1 - coverage))


def bound_alone(rule: StopRule) -> EarlyStop:
    """The rule that stops by the bound and nothing else."""
    return EarlyStop(rule.threshold, rule.lowest_score)


def mask(confidence: ArrayLike, stopped: ArrayLike) -> Floats:
    """Confidences as the policy's certificate is to see them: 0 where the answer was stopped, so
    that no threshold above 0 accepts it. Shape ``[rows]``.

    Raises:
        InvalidInput: bad shapes, or confidences out of [0, 1].
    """
    floats, gone = unit_floats("confidence", confidence), outcomes("stopped", stopped)
    if len(floats) != len(gone):
        raise InvalidInput("stopped", f"has {len(gone)} rows for {len(floats)}")
    return np.where(gone, 0.0, floats)


@dataclass(frozen=True, slots=True)
class Savings:
    """What a rule saves on recorded answers.

    Arguments:
        escalated: rows that are escalated, stopped or not.
        stopped: rows that were stopped; ``wrongly`` of these would have been kept.
        wasted_tokens: local tokens of escalated rows without the rule.
        saved_tokens: how many of those the rule saves; tokens of wrongly stopped rows do not count.
    """

    escalated: int
    stopped: int
    wrongly: int
    wasted_tokens: int
    saved_tokens: int

    @property
    def saved(self) -> float:
        """Share of the wasted tokens that is saved, in [0, 1]; 0 where none is wasted."""
        return self.saved_tokens / self.wasted_tokens if self.wasted_tokens else 0.0


def savings(stops: Ints, tokens: Ints, kept: Bools) -> Savings:
    """What stopping saves.

    Arguments:
        stops: from ``EarlyStop.stops_at``, shape ``[rows]``.
        tokens: of the whole answers; ``kept``: whether these reach the policy's threshold.
    """
    stopped = stops > 0
    saved = np.where(stopped & ~kept, tokens - stops, 0)
    return Savings(
        escalated=int((~kept | stopped).sum()),
        stopped=int(stopped.sum()),
        wrongly=int((stopped & kept).sum()),
        wasted_tokens=int(tokens[~kept].sum()),
        saved_tokens=int(saved.sum()),
    )


def _regressions(signals: TokenLists, kept: Bools, at: Sequence[int]) -> tuple[Checkpoint, ...]:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise CascadeError(
            "fitting an early stop needs scikit-learn: pip install 'edge-cloud-cascade[tune]'"
        ) from None
    checkpoints = []
    for tokens in at:
        rows, running = signals.running(tokens)
        target = kept[rows]
        if len(rows) < MIN_ROWS or min(target.sum(), (~target).sum()) < MIN_ROWS / 4:
            continue
        center, scale = running.mean(axis=0), np.maximum(running.std(axis=0), 1e-9)
        fitted = LogisticRegression(max_iter=1000).fit((running - center) / scale, target)
        weights = fitted.coef_[0] / scale
        checkpoints.append(
            Checkpoint(
                tokens,
                tuple(map(float, weights)),
                float(fitted.intercept_[0] - weights @ center),
                float(np.mean(signals.tokens[rows] - tokens)),
            )
        )
    return tuple(checkpoints)


def _unseen(rule: StopRule, signals: TokenLists, kept: Bools) -> Floats:
    """``StopRule.unkept`` of each develop row by regressions of the other half: what the rule will
    show on rows that it was not fitted to, or nearly."""
    at = [checkpoint.tokens for checkpoint in rule.checkpoints]
    halves = [np.arange(first, len(signals), 2) for first in (0, 1)]
    scores = np.zeros(len(signals))
    for half, other in (halves, halves[::-1]):
        checkpoints = _regressions(signals.take(half), kept[half], at)
        scores[other] = StopRule(rule.threshold, None, checkpoints).unkept(signals.take(other))
    return scores if scores.any() else rule.unkept(signals)


def _logits(checkpoint: Checkpoint, running: Floats) -> Floats:
    """``Checkpoint.logit`` of many rows, added up in the same order."""
    total = np.full(len(running), checkpoint.offset)
    for place, weight in enumerate(checkpoint.weights):
        total = total + weight * running[:, place]
    return total


def _unkept(logits: Floats) -> Floats:
    """Log odds of being kept as a falling score in [0, 1], by arithmetic that IEEE 754 rounds alike
    everywhere: what is certified on records is then what a device does, to the last bit."""
    score: Floats = 0.5 - logits / (2 * (1 + np.abs(logits)))
    return score


def _cutoff(unkept: float) -> float:
    """The largest log odds whose ``_unkept`` reaches ``unkept``."""
    low, high = -1e9, 1e9
    while (middle := (low + high) / 2) not in (low, high):
        reaches = float(_unkept(np.array([middle]))[0]) >= unkept
        low, high = (middle, high) if reaches else (low, middle)
    return low


def _least_sum(lowest_score: float, max_tokens: int) -> float:
    return -math.inf if lowest_score <= 0 else max_tokens * math.log(lowest_score)


def _as_kept(value: float) -> float:
    """A signal as records keep it."""
    return float(np.float32(round(value, _DECIMALS)))


def _of_rows(signals: TokenLists, confidence: ArrayLike) -> Floats:
    floats = unit_floats("confidence", confidence)
    if len(floats) != len(signals):
        raise InvalidInput("confidence", f"has {len(floats)} rows for {len(signals)} answers")
    return floats


def _checkpoint(data: object, where: str) -> Checkpoint:
    fields = Fields(data, where)
    checkpoint = Checkpoint(
        fields.integer("tokens", 1, _MOST_TOKENS),
        fields.numbers("weights"),
        fields.number("offset"),
        fields.number("remaining", 0.0),
    )
    fields.end()
    if len(checkpoint.weights) != len(RUNNING):
        raise InvalidInput(f"{where}.weights", f"must be {len(RUNNING)} numbers")
    return checkpoint
