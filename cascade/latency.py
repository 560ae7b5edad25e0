"""How long each tier takes, as measured: a small histogram a tier that forgets, kept in one file.

The decision asks for an upper bound of the 95th percentile. What was never measured, or too long
ago, is unknown, and nothing unknown stops a request: so an estimate that keeps requests away fades,
and one of them goes to look.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from cascade.errors import InvalidInput
from cascade.estimates import EstimateFile
from cascade.rows import Floats
from cascade.strict import Fields

FORMAT: Final = 1
_SHORTEST_S: Final = 1e-3
_RATIO: Final = 1.15
# Up to 1,174 s; the last bin is open.
_BINS: Final = 101
# Upper edges; the first bin holds what is shorter.
_EDGES: Final[Floats] = _SHORTEST_S * np.power(_RATIO, np.arange(_BINS, dtype=np.float64))
# What an old measurement still counts after one more: of 100, a third is left.
_KEPT: Final = 0.99
_HALF_LIFE_S: Final = 1_800.0
_LEAST_WEIGHT: Final = 5.0
# By then less than one measurement in a thousand is left.
_FORGOTTEN_S: Final = 24 * 3_600.0


@dataclass(frozen=True, slots=True)
class LatencyHistogram:
    """Weighted counts of durations.

    Arguments:
        weights: float64, ≥ 0, shape ``[101]``, by log-spaced bins, each 15 % wider than the last.
        at_s: wall time of the last measurement, in seconds since 1970.
    """

    weights: Floats
    at_s: float

    @classmethod
    def empty(cls) -> LatencyHistogram:
        """Nothing measured yet."""
        return cls(np.zeros(_BINS), 0.0)

    def with_duration(self, seconds: float, now_s: float) -> LatencyHistogram:
        """One more measurement, ≥ 0 s."""
        weights = self.weights * (_KEPT * _faded(self.at_s, now_s))
        weights[min(int(np.searchsorted(_EDGES, seconds)), _BINS - 1)] += 1.0
        return LatencyHistogram(weights, now_s)

    def quantile(self, share: float, now_s: float) -> float | None:
        """The upper edge of the bin that holds the quantile: at most 15 % above the weighted
        quantile of what was measured, up to 1,174 s. ``None`` where fewer than about five recent
        measurements stand behind it.

        Arguments:
            share: in (0, 1].
        """
        total = float(self.weights.sum())
        if total * _faded(self.at_s, now_s) < _LEAST_WEIGHT * _KEPT**_LEAST_WEIGHT:
            return None
        place = int(np.searchsorted(np.cumsum(self.weights), share * total * (1 - 1e-12)))
        return float(_EDGES[min(place, _BINS - 1)])


class LatencyBook:
    """The histograms of one device's clusters, in one file.

    Arguments:
        path: the JSON file, or ``None`` to forget everything at the end of the process. A file that
            cannot be read counts as empty: what it holds are only estimates.
        now: the wall clock.
    """

    def __init__(self, path: Path | None = None, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._file = EstimateFile(
            path, kind="histograms", version=FORMAT, read=_read, written=self._written
        )

    def record(self, key: str, seconds: float) -> None:
        """One call to ``key`` took so long. Processes may share the file; of two measurements in
        the same millisecond one may be lost.

        Raises:
            InvalidInput: a negative duration, or none.
        """
        if not 0 <= seconds < math.inf:
            raise InvalidInput("seconds", f"{seconds} is not a duration")
        with self._lock:
            self._file.refresh()
            known = self._file.values.get(key, LatencyHistogram.empty())
            self._file.values[key] = known.with_duration(seconds, self._now())
            self._file.save()

    def p95(self, prefix: str) -> dict[str, float]:
        """What is known, by the rest of the keys that begin with ``prefix``."""
        with self._lock:
            self._file.refresh()
            now_s = self._now()
            known = {
                key.removeprefix(prefix): histogram.quantile(0.95, now_s)
                for key, histogram in self._file.values.items()
                if key.startswith(prefix)
            }
        return {key: value for key, value in known.items() if value is not None}

    def _written(self, histogram: LatencyHistogram) -> dict[str, object] | None:
        # The address of a cluster that is gone must not stay for ever.
        if self._now() - histogram.at_s >= _FORGOTTEN_S:
            return None
        weights = [round(weight, 6) for weight in histogram.weights.tolist()]
        return {"at_s": histogram.at_s, "weights": weights}


def fits(remaining_s: float, p95_s: dict[str, float], allowed: frozenset[str] | None) -> bool:
    """Whether some tier that may answer is expected to within ``remaining_s``: one whose 95th
    percentile fits, or one of which nothing is known.

    Arguments:
        p95_s: by tier, where it is known.
        allowed: tiers that may answer; ``None`` for all, of which those in ``p95_s`` count.
    """
    if remaining_s <= 0:
        return False
    tiers = p95_s.keys() if allowed is None else allowed
    return not tiers or any(p95_s.get(tier, 0.0) <= remaining_s for tier in tiers)


def _faded(at_s: float, now_s: float) -> float:
    return math.exp2(-max(0.0, now_s - at_s) / _HALF_LIFE_S)


def _read(fields: Fields) -> LatencyHistogram:
    weights = np.array(fields.numbers("weights", 0.0, 1e9))
    if weights.shape != (_BINS,):
        raise InvalidInput(fields.path("weights"), f"must have {_BINS} numbers")
    return LatencyHistogram(weights, fields.number("at_s"))
