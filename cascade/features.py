"""What a confidence can be computed from: a list of numbers for each answer, named and versioned.

The same numbers come from an answer on the device and from records of it, to the last bit: signals
are rounded first as records keep them, and both ways end in the same arithmetic. What a model makes
of them is ``cascade.scorer``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascade.errors import InvalidInput, NotFound
from cascade.local import LocalAnswer
from cascade.logistic import logit
from cascade.rows import Floats

if TYPE_CHECKING:  # the device reads no records
    from cascade.records import RecordSet

Matrix = NDArray[np.float64]
Rows = NDArray[np.int64]

FEATURES_VERSION: Final = 1
"""Of the list below. A model names the version that it was fitted to, and no other is read."""


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Features of answers, by column.

    Arguments:
        names: of ``FEATURES``, no two the same.
        values: float64, shape ``[rows, names]``; NaN where something was not measured.

    Raises:
        InvalidInput: a name is unknown or repeated, or the shape does not fit.
    """

    names: tuple[str, ...]
    values: Matrix

    def __post_init__(self) -> None:
        check_names(self.names)
        if self.values.ndim != 2 or self.values.shape[1] != len(self.names):
            raise InvalidInput(
                "features", f"has shape {self.values.shape} for {len(self.names)} names"
            )

    def __len__(self) -> int:
        return len(self.values)

    def select(self, names: Sequence[str]) -> Self:
        """These columns, in this order.

        Raises:
            NotFound: one is not there; it is named.
        """
        for name in names:
            if name not in self.names:
                raise NotFound(f"no feature {name!r}; there are {', '.join(self.names)}")
        places = [self.names.index(name) for name in names]
        return type(self)(tuple(names), np.ascontiguousarray(self.values[:, places]))

    def take(self, rows: ArrayLike) -> Self:
        """These rows, by index or where a bool array is true."""
        return type(self)(self.names, self.values[np.asarray(rows)])

    def complete(self) -> Self:
        """The columns that were measured on every row."""
        holes = np.isnan(self.values)
        return self.select([n for place, n in enumerate(self.names) if not holes[:, place].any()])


def of_answer(answer: LocalAnswer, names: Sequence[str] | None = None) -> Features:
    """The features of one answer, shape ``[1, names]``.

    Arguments:
        names: which; all by default.

    Raises:
        InvalidInput: a name is unknown or repeated.
    """
    # Late: a device whose policies take the raw score alone does without.
    from cascade.records.outcome import Scores, kept

    signals = kept(answer.signals)
    scores = Scores.of(answer.options) if answer.options else None

    def numbers(name: str) -> Floats:
        value = {
            "raw_score": min(1.0, max(0.0, answer.raw_score)),
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.tokens,
            "self_verification": answer.self_verification,
            "agreement": answer.agreement,
        }[name]
        return np.array([np.nan if value is None else float(value)])

    def lists(name: str) -> _Ragged:
        kind, _, what = name.partition("_")
        source = signals if kind == "token" else scores
        values = getattr(source, what) if source is not None else np.zeros(0)
        return _Ragged(values.astype(np.float64), np.array([0, len(values)], np.int64))

    return _table(names, 1, numbers, lists)


def of_records(records: RecordSet, tier: str, names: Sequence[str] | None = None) -> Features:
    """The features of one tier's answers, shape ``[records, names]``.

    Arguments:
        tier: as a rule the device; a cluster's answers have lengths alone.
        names: which; all by default.

    Raises:
        NotFound: there is no such tier.
        InvalidInput: a name is unknown or repeated, or the file holds unusable lists.
    """

    def lists(name: str) -> _Ragged:
        found = records.lists(tier, name)
        return _Ragged(found.values.astype(np.float64), found.offsets)

    return _table(names, len(records), lambda name: records.column(tier, name), lists)


def check_names(names: Sequence[str]) -> None:
    """Raise ``InvalidInput`` unless every name is a feature, and given once."""
    for place, name in enumerate(names):
        if name not in FEATURES:
            raise InvalidInput(
                "features", f"{name!r} is not known; known are {', '.join(FEATURES)}"
            )
        if name in names[:place]:
            raise InvalidInput("features", f"names {name!r} twice")


@dataclass(frozen=True, slots=True)
class _Ragged:
    """A list of numbers for each row, end to end; see ``cascade.records.Lists``."""

    values: Floats
    offsets: Rows

    def each(self, statistic: Callable[[Floats, Rows, Rows], Floats]) -> Floats:
        """A statistic of each list, from all numbers, the places where lists begin and their
        lengths; NaN for an empty list."""
        lengths = np.diff(self.offsets)
        some = lengths > 0
        result = np.full(len(lengths), np.nan)
        if some.any():
            result[some] = statistic(self.values, self.offsets[:-1][some], lengths[some])
        return result

    def ordered(self) -> _Ragged:
        """Every list in rising order."""
        rows = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        return _Ragged(self.values[np.lexsort((self.values, rows))], self.offsets)


def _mean(values: Floats, begins: Rows, lengths: Rows) -> Floats:
    mean: Floats = _sum(values, begins, lengths) / lengths
    return mean


def _sum(values: Floats, begins: Rows, lengths: Rows) -> Floats:
    total: Floats = np.add.reduceat(values, begins)
    return total


def _first(values: Floats, begins: Rows, lengths: Rows) -> Floats:
    return values[begins]


def _last(values: Floats, begins: Rows, lengths: Rows) -> Floats:
    last: Floats = values[begins + lengths - 1]
    return last


def _quantile(share: float) -> Callable[[Floats, Rows, Rows], Floats]:
    """Linearly interpolated, of ordered lists; 0 is the smallest and 1 the largest."""

    def quantile(values: Floats, begins: Rows, lengths: Rows) -> Floats:
        place = (lengths - 1) * share
        below = np.floor(place).astype(np.int64)
        above = np.minimum(below + 1, lengths - 1)
        low, high = values[begins + below], values[begins + above]
        between: Floats = low + (high - low) * (place - below)
        return between

    return quantile


def _top2_margin(values: Floats, begins: Rows, lengths: Rows) -> Floats:
    """Of ordered lists; a single number is compared with 0."""
    ends = begins + lengths - 1
    second = np.where(lengths > 1, values[np.maximum(ends - 1, 0)], 0.0)
    margin: Floats = values[ends] - second
    return margin


def _entropy(values: Floats, begins: Rows, lengths: Rows) -> Floats:
    """-Σ p ln p in nats."""
    surprise = np.where(values > 0, -values * np.log(np.where(values > 0, values, 1.0)), 0.0)
    total: Floats = np.add.reduceat(surprise, begins)
    return total


_LOGPROBS, _ENTROPIES, _MARGINS = "token_logprobs", "token_entropies", "token_margins"
_OPTIONS = "option_probabilities"
_Statistic = Callable[[Floats, Rows, Rows], Floats]

# From which list, whether that is to be ordered first, and what is taken of it.
_OF_LISTS: Final[dict[str, tuple[str, bool, _Statistic]]] = {
    "mean_logprob": (_LOGPROBS, False, _mean),
    "sum_logprob": (_LOGPROBS, False, _sum),
    "min_logprob": (_LOGPROBS, True, _quantile(0.0)),
    "q10_logprob": (_LOGPROBS, True, _quantile(0.1)),
    "q25_logprob": (_LOGPROBS, True, _quantile(0.25)),
    "median_logprob": (_LOGPROBS, True, _quantile(0.5)),
    "first_logprob": (_LOGPROBS, False, _first),
    "last_logprob": (_LOGPROBS, False, _last),
    "mean_entropy": (_ENTROPIES, False, _mean),
    "q75_entropy": (_ENTROPIES, True, _quantile(0.75)),
    "max_entropy": (_ENTROPIES, True, _quantile(1.0)),
    "first_entropy": (_ENTROPIES, False, _first),
    "mean_margin": (_MARGINS, False, _mean),
    "q25_margin": (_MARGINS, True, _quantile(0.25)),
    "min_margin": (_MARGINS, True, _quantile(0.0)),
    "first_margin": (_MARGINS, False, _first),
    "max_probability": (_OPTIONS, True, _quantile(1.0)),
    "top2_margin": (_OPTIONS, True, _top2_margin),
    "option_entropy": (_OPTIONS, False, _entropy),
}

_OF_NUMBERS: Final[dict[str, tuple[str, Callable[[Floats], Floats]]]] = {
    "raw_score": ("raw_score", lambda score: score),
    "raw_score_logit": ("raw_score", logit),
    "log_prompt_tokens": ("prompt_tokens", np.log1p),
    "log_tokens": ("completion_tokens", np.log1p),
    "self_verification": ("self_verification", lambda score: score),
    "agreement": ("agreement", lambda share: share),
}

SELF_CHECKS: Final = ("self_verification", "agreement")
"""Features for which the model is asked again about its answer, by ``cascade.self_check``. They are
measured where a policy names them, or whoever records asks for them."""

FEATURES: Final[tuple[str, ...]] = (*_OF_NUMBERS, *_OF_LISTS)
"""All features of version ``FEATURES_VERSION``, in order. Log probabilities and entropies are in
nats, margins and probabilities in [0, 1]; ``q10`` is the tenth percentile, linearly interpolated;
``log_`` is ln(1 + count). ``max_probability``, ``top2_margin`` and ``option_entropy`` are of closed
sets alone, ``SELF_CHECKS`` of answers that were checked, the others of every answer with at least
one token."""


def _table(
    names: Sequence[str] | None,
    rows: int,
    numbers: Callable[[str], Floats],
    lists: Callable[[str], _Ragged],
) -> Features:
    wanted = FEATURES if names is None else tuple(names)
    check_names(wanted)
    ragged: dict[tuple[str, bool], _Ragged] = {}

    def listed(name: str, ordered: bool) -> _Ragged:
        if (name, False) not in ragged:
            ragged[name, False] = lists(name)
        if (name, ordered) not in ragged:
            ragged[name, ordered] = ragged[name, False].ordered()
        return ragged[name, ordered]

    values = np.empty((rows, len(wanted)))
    for place, name in enumerate(wanted):
        if name in _OF_NUMBERS:
            column, transform = _OF_NUMBERS[name]
            values[:, place] = transform(numbers(column))
        else:
            column, ordered, statistic = _OF_LISTS[name]
            values[:, place] = listed(column, ordered).each(statistic)
    return Features(wanted, values)
