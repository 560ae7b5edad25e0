"""How much of a small synthetic sample of personal data the extra ``pii`` finds.

The sample was at hand when the library was chosen; of texts that it has not seen, expect less.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.decision.pii_sample import MARKED, PLAIN, marked
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate
from cascade.metrics import wilson_interval
from cascade.privacy.detector import merged
from cascade.privacy.presidio import KINDS, PresidioPatterns

_MIN_SCORE = 0.4


def rows(subject: object, run: Run) -> Iterator[Row]:
    """Recall by kind, and the share of plain texts in which something is found; ``subject`` is not
    looked at."""
    detector = PresidioPatterns()
    for kind, texts in MARKED.items():
        hits = sum(_covered(detector, text) for text in texts)
        looked_for = "" if kind in KINDS else ", which it does not look for"
        yield run.row(
            f"recall of {kind}",
            _share(hits, len(texts)),
            "share",
            f"synthetic texts of benchmarks/decision/pii_sample.py{looked_for}; a hit covers every "
            "character",
            sense=">=",
        )
    alarms = sum(bool(merged(text, detector.find(text), _MIN_SCORE)) for text in PLAIN)
    yield run.row(
        "plain texts in which personal data is found",
        _share(alarms, len(PLAIN)),
        "share",
        "numbers, dates and versions that are none; benchmarks/decision/pii_sample.py",
    )


def _covered(detector: PresidioPatterns, text: str) -> bool:
    plain, start, end = marked(text)
    spans = merged(plain, detector.find(plain), _MIN_SCORE)
    return all(any(each.start <= at < each.end for each in spans) for at in range(start, end))


def _share(hits: int, of: int) -> Estimate:
    return Estimate(hits / of, of, wilson_interval(hits, of))
