"""The rule that a policy carries, and the watch that follows one answer by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from cascade.early_stop.token_lists import RUNNING, SLACK, Ints, TokenLists
from cascade.early_stop.tolerance import StopCertificate
from cascade.errors import InvalidInput
from cascade.rows import Floats
from cascade.strict import Fields

if TYPE_CHECKING:
    from cascade.local import TokenSignals

CHECKPOINTS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Numbers of tokens after which the rule looks, by default."""

MOST_TOKENS: Final = 1 << 20
"""No checkpoint is later."""

_DECIMALS: Final = 5  # as records keep signals


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

    def logits(self, running: Floats) -> Floats:
        """``logit`` of many rows, added up in the same order: ``[rows, 12]`` to ``[rows]``."""
        total = np.full(len(running), self.offset)
        for place, weight in enumerate(self.weights):
            total = total + weight * running[:, place]
        return total


@dataclass(frozen=True, slots=True)
class EarlyStop:
    """When to stop a local decode.

    Arguments:
        threshold: the confidence from which an answer counts as kept, in (0, 1]. A policy with a
            higher one loses no more requests: at most ``lost`` of those kept at this one. A lower
            one keeps answers of which nothing was promised, and is refused.
        lowest_score: the raw score below which no answer is kept, for the bound; ``None`` where
            there is none.
        checkpoints: by rising tokens; empty stops by the bound alone.
        cutoff: stops at the first checkpoint whose log odds are at most this.
        certificate: of ``checkpoints`` and ``cutoff``: how few of the kept answers they stop.
            ``None`` exactly where there are no checkpoints.
    """

    threshold: float
    lowest_score: float | None
    checkpoints: tuple[Checkpoint, ...] = ()
    cutoff: float = -math.inf
    certificate: StopCertificate | None = None

    def watch(self, max_tokens: int) -> StopWatch:
        """A watch for one answer of at most ``max_tokens`` tokens."""
        return StopWatch(self, max_tokens)

    def stops_at(self, signals: TokenLists, max_tokens: int) -> Ints:
        """After how many tokens each answer would be stopped; 0 where it would not. Shape
        ``[rows]``; equal to what a watch does."""
        reached = np.zeros(len(signals), np.int64)
        for checkpoint in self.checkpoints:
            rows, running = signals.running(checkpoint.tokens)
            stops = checkpoint.logits(running) <= self.cutoff
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
            None
            if certificate is None
            else StopCertificate.from_json(certificate, fields.path("certificate")),
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
        self.fired = self.fired or sums[0] + SLACK * self._tokens < self._least_sum
        return self.fired


def _least_sum(lowest_score: float, max_tokens: int) -> float:
    return -math.inf if lowest_score <= 0 else max_tokens * math.log(lowest_score)


def _as_kept(value: float) -> float:
    """A signal as records keep it."""
    return float(np.float32(round(value, _DECIMALS)))


def _checkpoint(data: object, where: str) -> Checkpoint:
    fields = Fields(data, where)
    checkpoint = Checkpoint(
        fields.integer("tokens", 1, MOST_TOKENS),
        fields.numbers("weights"),
        fields.number("offset"),
        fields.number("remaining", 0.0),
    )
    fields.end()
    if len(checkpoint.weights) != len(RUNNING):
        raise InvalidInput(f"{where}.weights", f"must be {len(RUNNING)} numbers")
    return checkpoint
