"""What one tier made of one input: the answer, how sure it was, whether it was right, what it cost.

An outcome is a flat object of the fields in ``NUMBERS``, ``COUNTS``, ``TEXTS`` and ``LISTS``, the
same in JSONL and Parquet. Every field but ``status`` is optional: what is absent was not measured.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Final, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike

from cascade.errors import InvalidInput
from cascade.signals import Float32s, OptionScores, ScoreMode, Signals
from cascade.strict import Fields

OK: Final = "OK"
"""The status of an outcome with an answer; any other is the name of a gRPC status."""

Finish = Literal["stop", "length"]

_LOWEST: Final = -1e4  # a log probability of 0 is −∞, which no file may hold

NUMBERS: Final[dict[str, tuple[float, float]]] = {
    "correct": (0.0, 1.0),
    "raw_score": (0.0, 1.0),
    "mean_logprob": (-math.inf, 0.0),
    "min_logprob": (-math.inf, 0.0),
    "q25_logprob": (-math.inf, 0.0),
    "first_logprob": (-math.inf, 0.0),
    "mean_entropy": (0.0, math.inf),
    "max_entropy": (0.0, math.inf),
    "first_entropy": (0.0, math.inf),
    "mean_margin": (0.0, 1.0),
    "min_margin": (0.0, 1.0),
    "first_margin": (0.0, 1.0),
    "option_unexplored": (0.0, 1.0),
    "self_verification": (0.0, 1.0),
    "agreement": (0.0, 1.0),
    "latency_s": (0.0, math.inf),
    "cost_usd": (0.0, math.inf),
}
"""Fields that are finite numbers, with their ranges; a column of each is float64."""

COUNTS: Final = ("prompt_tokens", "completion_tokens", "bytes_up", "bytes_down")
"""Fields that are whole numbers of at least 0; a column of each is float64, too."""

TEXTS: Final = ("status", "answer", "answer_sha256", "finish", "option_mode")

LISTS: Final[dict[str, tuple[float, float]]] = {
    "token_logprobs": (-math.inf, 0.0),
    "token_entropies": (0.0, math.inf),
    "token_margins": (0.0, 1.0),
    "option_logprobs": (-math.inf, math.inf),
    "option_priors": (-math.inf, math.inf),
    "option_probabilities": (0.0, 1.0),
}
"""Fields that are lists of float32, with the ranges of their numbers: one number a token of the
answer, or one an option."""

_SIGNALS: Final = ("token_logprobs", "token_entropies", "token_margins")
_OPTIONS: Final = ("option_logprobs", "option_priors", "option_probabilities")

TOGETHER: Final = (_SIGNALS, (*_OPTIONS, "option_mode", "option_unexplored"))
"""Fields of which an outcome has all or none."""

MOST: Final = 2**53
"""No count is larger: float64 holds every whole number up to here."""

STATUS: Final = "^[A-Z][A-Z_]{0,31}$"
"""What a status looks like."""


@dataclass(frozen=True, slots=True)
class SignalSummary:
    """Per-token signals in ten numbers; see ``cascade.signals.Signals`` for units and ranges.
    ``None`` is what was not measured.

    Arguments:
        q25_logprob: the lower quartile, linearly interpolated.
    """

    mean_logprob: float | None = None
    min_logprob: float | None = None
    q25_logprob: float | None = None
    first_logprob: float | None = None
    mean_entropy: float | None = None
    max_entropy: float | None = None
    first_entropy: float | None = None
    mean_margin: float | None = None
    min_margin: float | None = None
    first_margin: float | None = None

    @classmethod
    def of(cls, signals: Signals) -> Self | None:
        """The summary of an answer's signals; ``None`` for an answer without tokens."""
        if not len(signals):
            return None
        logprobs, entropies, margins = (
            array.astype(np.float64)
            for array in (signals.logprobs, signals.entropies, signals.margins)
        )
        return cls(
            mean_logprob=float(logprobs.mean()),
            min_logprob=float(logprobs.min()),
            q25_logprob=float(np.quantile(logprobs, 0.25)),
            first_logprob=float(logprobs[0]),
            mean_entropy=float(entropies.mean()),
            max_entropy=float(entropies.max()),
            first_entropy=float(entropies[0]),
            mean_margin=float(margins.mean()),
            min_margin=float(margins.min()),
            first_margin=float(margins[0]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Scores over a closed set, float32, shape ``[options]`` each; ``OptionScores`` says what each
    is.

    Arguments:
        unexplored: upper bound of the share of the options that a search left out, in [0, 1).
    """

    logprobs: Float32s
    priors: Float32s
    probabilities: Float32s
    mode: ScoreMode = "exact"
    unexplored: float = 0.0

    def __len__(self) -> int:
        return len(self.probabilities)

    @classmethod
    def of(cls, scores: OptionScores) -> Self:
        """What a device measured, rounded to float32."""
        return cls(
            logprobs=_clipped(scores.logprobs, _LOWEST, -_LOWEST),
            priors=_clipped(scores.prior_logprobs, _LOWEST, -_LOWEST),
            probabilities=_clipped(scores.probabilities, 0.0, 1.0),
            mode=scores.mode,
            unexplored=scores.unexplored,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What one tier made of one input. Two are equal where every field is.

    Arguments:
        status: ``"OK"``, or the gRPC status name with which the tier failed.
        answer: the answer's text, where it is kept.
        answer_sha256: sha256 of its UTF-8 bytes, where the text is not.
        correct: 1 right, 0 wrong, or a score between; ``None`` where nobody graded it.
        raw_score: the tier's uncalibrated score of its answer, in [0, 1].
        signals: of each token, where they are kept. ``summary``: of the whole answer.
        scores: over the closed set, in the order of the record's options.
        finish: ``"length"`` where the answer was cut off.
        latency_s: seconds from asking to the complete answer, waiting for a turn left out.
        prompt_tokens, completion_tokens: in the tier's own vocabulary.
        bytes_up, bytes_down: serialised messages, without HTTP/2 and TLS framing.
        cost_usd: price of the answer.
        self_verification, agreement: what the model made of its answer; see ``cascade.self_check``.
    """

    status: str = OK
    answer: str | None = None
    answer_sha256: str | None = None
    correct: float | None = None
    raw_score: float | None = None
    summary: SignalSummary | None = None
    signals: Signals | None = None
    scores: Scores | None = None
    finish: Finish | None = None
    latency_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    cost_usd: float | None = None
    self_verification: float | None = None
    agreement: float | None = None

    @property
    def failed(self) -> bool:
        """Whether there is no answer."""
        return self.status != OK

    def number(self, name: str) -> float | None:
        """A field of ``NUMBERS`` or ``COUNTS``."""
        if name in _SUMMARY:
            value = getattr(self.summary, name) if self.summary else None
        elif name == "option_unexplored":
            value = self.scores.unexplored if self.scores else None
        else:
            value = getattr(self, name)
        return None if value is None else float(value)

    def array(self, name: str) -> Float32s | None:
        """A field of ``LISTS``."""
        kind, _, what = name.partition("_")
        values = self.signals if kind == "token" else self.scores
        array: Float32s | None = getattr(values, what) if values else None
        return array

    def to_json(self) -> dict[str, object]:
        """A plain dict for ``json.dumps``, without what is absent."""
        content: dict[str, object] = {
            name: getattr(self, name) for name in ("status", "answer", "answer_sha256", "finish")
        }
        content |= {name: self.number(name) for name in NUMBERS}
        content |= {name: getattr(self, name) for name in COUNTS}
        content["option_mode"] = self.scores.mode if self.scores else None
        arrays = {name: self.array(name) for name in LISTS}
        content |= {name: _decimals(array) for name, array in arrays.items() if array is not None}
        return {name: value for name, value in content.items() if value is not None}

    @classmethod
    def from_json(cls, data: object, where: str) -> Self:
        """The outcome that ``to_json`` wrote.

        Raises:
            InvalidInput: a field is unknown, of a wrong type, out of range, or does not go with the
                others; it is named.
        """
        read = Fields(data, where)
        status = read.text("status")
        if not re.fullmatch(STATUS, status):
            raise InvalidInput(read.path("status"), "must be OK or the name of a gRPC status")
        outcome = cls(
            status=status,
            answer=read.text("answer") if read.given("answer") else None,
            answer_sha256=read.sha256("answer_sha256") if read.given("answer_sha256") else None,
            correct=_grade(read),
            raw_score=_number(read, "raw_score"),
            summary=_summary(read),
            signals=_signals(read),
            scores=_scores(read),
            finish=_finish(read),
            latency_s=_number(read, "latency_s"),
            prompt_tokens=_count(read, "prompt_tokens"),
            completion_tokens=_count(read, "completion_tokens"),
            bytes_up=_count(read, "bytes_up"),
            bytes_down=_count(read, "bytes_down"),
            cost_usd=_number(read, "cost_usd"),
            self_verification=_number(read, "self_verification"),
            agreement=_number(read, "agreement"),
        )
        read.end()
        if outcome.failed:
            for name in ("answer", "answer_sha256", "correct"):
                if getattr(outcome, name) is not None:
                    raise InvalidInput(read.path(name), f"must be absent where status is {status}")
        return outcome

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outcome) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]


def kept(signals: Signals, decimals: int = 5) -> Signals | None:
    """Signals as a file keeps them, rounded and within their ranges; ``None`` without tokens."""
    if not len(signals):
        return None
    return Signals(
        logprobs=_clipped(np.round(signals.logprobs, decimals), _LOWEST, 0.0),
        entropies=_clipped(np.round(signals.entropies, decimals), 0.0, -_LOWEST),
        margins=_clipped(np.round(signals.margins, decimals), 0.0, 1.0),
    )


_SUMMARY: Final = tuple(field.name for field in fields(SignalSummary))


def _clipped(values: ArrayLike, low: float, high: float) -> Float32s:
    clipped: Float32s = np.clip(np.asarray(values, np.float64), low, high).astype(np.float32)
    return clipped


def _decimals(values: Float32s) -> list[float]:
    """The shortest decimals that read back as the same float32."""
    return [float(str(value)) for value in values]


def _number(read: Fields, name: str) -> float | None:
    return read.number(name, *NUMBERS[name]) if read.given(name) else None


def _count(read: Fields, name: str) -> int | None:
    return read.integer(name, 0, MOST) if read.given(name) else None


def _grade(read: Fields) -> float | None:
    """A number in [0, 1], or true or false."""
    if not read.given("correct"):
        return None
    value = read.take("correct")
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, int | float) and 0 <= value <= 1:
        return float(value)
    raise InvalidInput(read.path("correct"), "must be true, false, or a number in 0 … 1")


def _finish(read: Fields) -> Finish | None:
    if not read.given("finish"):
        return None
    return "length" if read.choice("finish", get_args(Finish)) == "length" else "stop"


def _summary(read: Fields) -> SignalSummary | None:
    given = {name: value for name in _SUMMARY if (value := _number(read, name)) is not None}
    return SignalSummary(**given) if given else None


def _signals(read: Fields) -> Signals | None:
    if not _all_or_none(read, _SIGNALS):
        return None
    logprobs, entropies, margins = _same_length(read, _SIGNALS)
    return Signals(logprobs, entropies, margins)


def _scores(read: Fields) -> Scores | None:
    if not _all_or_none(read, TOGETHER[1]):
        return None
    mode = read.choice("option_mode", get_args(ScoreMode))
    unexplored = read.number("option_unexplored", *NUMBERS["option_unexplored"])
    logprobs, priors, probabilities = _same_length(read, _OPTIONS)
    exact_or_search: ScoreMode = "search" if mode == "search" else "exact"
    return Scores(logprobs, priors, probabilities, exact_or_search, unexplored)


def _all_or_none(read: Fields, names: tuple[str, ...]) -> bool:
    there = [name for name in names if read.given(name)]
    if there and len(there) < len(names):
        missing = next(name for name in names if name not in there)
        raise InvalidInput(read.path(missing), f"is missing, but {there[0]} is there; give both")
    return bool(there)


def _same_length(read: Fields, names: tuple[str, ...]) -> list[Float32s]:
    arrays = [np.array(read.numbers(name, *LISTS[name]), np.float32) for name in names]
    for name, array in zip(names, arrays, strict=True):
        if len(array) != len(arrays[0]):
            raise InvalidInput(
                read.path(name),
                f"has {len(array)} numbers but {names[0]} has {len(arrays[0])}; give as many",
            )
        if not np.isfinite(array).all():
            raise InvalidInput(read.path(name), "holds a number too large for float32")
    return arrays
