"""``python -m benchmarks.decision.naive_table [SET …]``: naive thresholds beside certified ones.

A Markdown table for people. The same draws as in the groups ``violations`` and ``coverage``, at
other alphas: those around the device's own error, where a threshold has something to choose.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import numpy as np

from benchmarks.decision.draws import DELTA, OURS, Chosen, certified, naive
from benchmarks.decision.pools import Pool, of_records
from benchmarks.decision.shipped import NAMES, records
from cascade.errors import CascadeError

ALPHAS = (0.05, 0.1, 0.15, 0.2)
SIZES = (300, 1000)
_BLOCKS = 50  # of 20 certify parts each


def main(arguments: list[str] | None = None) -> int:
    """Draw and print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decision.naive_table")
    parser.add_argument("names", nargs="*", default=["sentiment"], metavar="SET", help=str(NAMES))
    try:
        for name in parser.parse_args(arguments).names:
            for line in table(of_records(name, records(name))):
                print(line)
    except CascadeError as problem:
        print(f"naive_table: {problem}", file=sys.stderr)
        return 1
    return 0


def table(pool: Pool, *, blocks: int = _BLOCKS) -> Iterator[str]:
    """The lines of a pool's table, one row for each size and alpha."""
    yield (
        f"{pool.name}: {len(pool.confidence):,} rows, {1 - pool.correct.mean():.1%} wrong; "
        f"{20 * blocks:,} certify parts a row, delta = {DELTA:g}"
    )
    yield ""
    yield "| labels | α | naive: breaks α | keeps | certified: breaks α | keeps | in hindsight |"
    yield "|---|---|---|---|---|---|---|"
    for n in SIZES:
        tuned = naive(pool, ALPHAS, n, parts=20 * blocks)
        for alpha in ALPHAS:
            ours = certified(pool, alpha, n, blocks=blocks)[OURS]
            cells = (*_cells(tuned[alpha], alpha), *_cells(ours, alpha))
            best = f"{pool.best_coverage(alpha):.0%}"
            yield f"| {n:,} | {alpha:g} | {' | '.join(cells)} | {best} |"


def _cells(chosen: Chosen, alpha: float) -> tuple[str, str]:
    """How often the risk over the whole pool is above alpha, and the mean coverage."""
    return f"{np.mean(chosen.risk > alpha):.1%}", f"{chosen.coverage.mean():.0%}"


if __name__ == "__main__":
    sys.exit(main())
