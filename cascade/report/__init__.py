"""What a set of records and a policy come to: figures, one interactive page, pictures.

The page is one file that needs nothing else. What it shows beside its sliders is computed here, by
``cascade.metrics``, on all rows; its script recomputes the same as sliders move. Needs the ``tune``
extra (scipy; matplotlib for the pictures).

Example:
    >>> from cascade.records import load
    >>> made = report(load(Path("records.parquet")), policy)
    >>> made.write(Path("report"))
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from cascade.files import write_whole
from cascade.policy import Policy
from cascade.records import RecordSet
from cascade.report import page, pictures
from cascade.report.evaluated import Evaluated, TierRows, evaluate
from cascade.report.figures import Figures, compute
from cascade.report.notices import Notice, notices_about

__all__ = ["Evaluated", "Figures", "Notice", "Report", "TierRows", "evaluate", "report"]


@dataclass(frozen=True, slots=True)
class Report:
    """A report, ready to be written.

    Arguments:
        rows: what it is about.
        figures: in numbers. ``notices``: what to know before believing them.
    """

    rows: Evaluated
    figures: Figures
    notices: tuple[Notice, ...]

    @property
    def summary(self) -> str:
        """The main figures in two sentences."""
        return page.summary(self.rows, self.figures)

    def html(self) -> str:
        """The page."""
        return page.html_page(self.rows, self.figures, self.notices)

    def to_json(self) -> dict[str, object]:
        """The figures as plain values; what cannot be told is null."""
        value: dict[str, object] = {
            "tiers": [tier.info.name for tier in self.rows.tiers],
            "score": self.rows.score_name,
            "total": self.rows.total,
            "left_out": dict(self.rows.left_out),
            "notices": [dataclasses.asdict(notice) for notice in self.notices],
            **dataclasses.asdict(self.figures),
        }
        return {name: _finite(item) for name, item in value.items()}

    def write(self, folder: Path, *, png: bool = False) -> tuple[Path, ...]:
        """Write ``report.html`` and, where asked for, a PNG of each chart; each whole.

        Returns:
            the files, the page first.

        Raises:
            CascadeError: PNGs are wanted and matplotlib is not installed.
        """
        files = {"report.html": self.html().encode()}
        if png:
            files |= pictures.pngs(self.rows, self.figures)
        for name, content in files.items():
            write_whole(folder / name, content)
        return tuple(folder / name for name in files)


def report(
    records: RecordSet, policy: Policy | None = None, *, tier: str = "", strong: str = ""
) -> Report:
    """Compute a report. Arguments and refusals are those of ``evaluate``.

    Raises:
        CascadeError: scipy is not installed.
    """
    rows = evaluate(records, policy, tier=tier, strong=strong)
    computed = compute(rows)
    return Report(rows, computed, notices_about(rows, computed))


def _finite(value: object) -> object:
    """With null for NaN, which JSON does not have: the means of an empty bin."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
