"""``python -m benchmarks.decision``: the decision's figures."""

from __future__ import annotations

import sys

from benchmarks.decision import coverage, violations
from benchmarks.decision.draws import Study
from benchmarks.decision.pools import pools
from benchmarks.hardware import describe
from benchmarks.run import main

GROUPS = {
    "violations": violations.rows,
    "coverage": coverage.rows,
}

if __name__ == "__main__":
    sys.exit(
        main(
            "decision",
            None,
            groups=GROUPS,
            subject=lambda run: Study(pools(), quick=run.quick),
            hardware=lambda: describe("numpy", "scipy"),
        )
    )
