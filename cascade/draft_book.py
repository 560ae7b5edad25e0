"""What drafts are found to bring: a small estimate a tier that forgets, kept in one file.

``Drafting`` says what to expect of a draft before there was one. What tiers then return takes its
place, little by little, and fades again where none is sent any more: so an estimate by which no
draft is worth it does not stay for ever, and one of them goes to look.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cascade.draft import Drafting
from cascade.estimates import EstimateFile
from cascade.remote import Speed
from cascade.strict import Fields

FORMAT: Final = 1
PRIOR_TOKENS: Final = 20.0
"""What the configured numbers count as: so many tokens, judged, read and written."""
_KEPT: Final = 0.95  # what older drafts count after one more: those of twenty or so remain
_HALF_LIFE_S: Final = 6 * 3_600.0
_FORGOTTEN_S: Final = 7 * 24 * 3_600.0
_MOST: Final = 1e9


@dataclass(frozen=True, slots=True)
class DraftOutcome:
    """What became of one draft.

    Arguments:
        kept: tokens of it, from the first on, that are a part of the answer.
        refused: whether the answer went on otherwise behind them. A draft that was kept as a whole,
            or whose answer ended before it did, for want of tokens, says nothing of a next token.
        speed: of the tier; ``None`` where it does not tell.
    """

    kept: int
    refused: bool
    speed: Speed | None = None


@dataclass(frozen=True, slots=True)
class DraftEstimate:
    """Faded sums over drafts, in the words of ``Drafting``: tokens that were kept, and those behind
    them that were not; tokens read and written, and the seconds they took. All ≥ 0.

    The model is that of ``Drafting``: a token is kept with probability a if all before it were. The
    tokens of a draft that were judged, the kept ones and the first that was not, are then draws
    with that probability, so that their share is the maximum-likelihood estimate; with the prior as
    ``PRIOR_TOKENS`` more of them it is the mean of a beta posterior. Seconds a token are likewise
    all seconds over all tokens.

    Arguments:
        at_s: wall time of the last draft, in seconds since 1970.
    """

    kept: float = 0.0
    refused: float = 0.0
    read_tokens: float = 0.0
    read_s: float = 0.0
    written_tokens: float = 0.0
    written_s: float = 0.0
    at_s: float = 0.0

    def with_draft(self, outcome: DraftOutcome, now_s: float) -> DraftEstimate:
        """One more draft."""
        left = _KEPT * _faded(self.at_s, now_s)
        speed = outcome.speed or Speed(0, 0.0, 0, 0.0)
        return DraftEstimate(
            left * self.kept + outcome.kept,
            left * self.refused + outcome.refused,
            left * self.read_tokens + speed.read_tokens,
            left * self.read_s + speed.read_s,
            left * self.written_tokens + speed.written_tokens,
            left * self.written_s + speed.written_s,
            now_s,
        )

    def learned(self, prior: Drafting, now_s: float) -> Drafting:
        """``prior`` with the numbers that are now to be expected."""
        left = _faded(self.at_s, now_s)
        kept, judged = left * self.kept, left * (self.kept + self.refused)
        return dataclasses.replace(
            prior,
            acceptance=_mean(prior.acceptance, kept, judged),
            read_s=_mean(prior.read_s, left * self.read_s, left * self.read_tokens),
            write_s=_mean(prior.write_s, left * self.written_s, left * self.written_tokens),
        )


class DraftBook:
    """The estimates of one device, in one file: by cluster, by tier and by how it judges drafts.

    Arguments:
        path: the JSON file, or ``None`` to forget everything at the end of the process.
        now: the wall clock.
    """

    def __init__(self, path: Path | None = None, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._file = EstimateFile(
            path, kind="drafts", version=FORMAT, read=_read, written=self._written
        )

    def record(self, cluster: str, tier: str, drafting: Drafting, outcome: DraftOutcome) -> None:
        """A tier has looked at a draft that went to it by ``drafting``."""
        key = _prefix(cluster, drafting) + tier
        with self._lock:
            self._file.refresh()
            known = self._file.values.get(key, DraftEstimate())
            self._file.values[key] = known.with_draft(outcome, self._now())
            self._file.save()

    def learned(self, cluster: str, prior: Drafting, allowed: frozenset[str] | None) -> Drafting:
        """``prior`` with what is now expected of the tier that looked at a draft last: nobody knows
        yet which one will answer.

        Arguments:
            allowed: tiers that may answer; ``None`` for all.
        """
        prefix = _prefix(cluster, prior)
        with self._lock:
            self._file.refresh()
            known = [
                estimate
                for key, estimate in self._file.values.items()
                if key.startswith(prefix)
                and (allowed is None or key.removeprefix(prefix) in allowed)
            ]
        if not known:
            return prior
        return max(known, key=lambda each: each.at_s).learned(prior, self._now())

    def _written(self, estimate: DraftEstimate) -> dict[str, object] | None:
        # The address of a cluster that is gone must not stay for ever.
        if self._now() - estimate.at_s >= _FORGOTTEN_S:
            return None
        return dataclasses.asdict(estimate)


def _prefix(cluster: str, drafting: Drafting) -> str:
    """A tolerant tier keeps more: what is known of one tolerance says little of another."""
    return f"{cluster} {drafting.mode} {drafting.tolerance:g} "


def _mean(prior: float, total: float, count: float) -> float:
    """Per token, the prior being the mean of ``PRIOR_TOKENS`` more."""
    return (PRIOR_TOKENS * prior + total) / (PRIOR_TOKENS + count)


def _faded(at_s: float, now_s: float) -> float:
    return math.exp2(-max(0.0, now_s - at_s) / _HALF_LIFE_S)


def _read(fields: Fields) -> DraftEstimate:
    names = [field.name for field in dataclasses.fields(DraftEstimate) if field.name != "at_s"]
    sums = {name: fields.number(name, 0.0, _MOST) for name in names}
    return DraftEstimate(**sums, at_s=fields.number("at_s"))
