"""``python -m benchmarks.decision``: the figures of certificates and monitors."""

from __future__ import annotations

import sys

from benchmarks.decision import drift
from benchmarks.hardware import describe
from benchmarks.run import Run, main

GROUPS = {
    "drift": drift.rows,
}


def prepare(run: Run) -> None:
    """These groups draw what they measure."""
    del run


if __name__ == "__main__":
    sys.exit(
        main(
            "decision",
            None,
            groups=GROUPS,
            subject=prepare,
            hardware=lambda: describe("numpy"),
        )
    )
