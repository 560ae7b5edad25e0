"""Signals of many answers, token by token, and what they come to while an answer grows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput
from cascade.rows import Floats

if TYPE_CHECKING:  # the device reads no records
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

SLACK: Final = 1e-4
"""A token's rounding, float32 and five decimals, in nats."""


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
            below = (sums[rows] + SLACK * (token + 1) < least_sum) & (first[rows] == 0)
            first[rows[below]] = token + 1
        return first
