"""``python -m benchmarks.decision``: the decision's figures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping

from benchmarks.decision import (
    coverage,
    deciding,
    drift,
    early_stop,
    peers,
    pii,
    violations,
    workbench,
)
from benchmarks.hardware import describe
from benchmarks.rows import Row
from benchmarks.run import Run, main

GROUPS: Mapping[str, Callable[[None, Run], Iterator[Row]]] = {
    "violations": violations.rows,
    "coverage": coverage.rows,
    "drift": drift.rows,
    "deciding": deciding.rows,
    "early_stop": early_stop.rows,
    "pii": pii.rows,
    "workbench": workbench.rows,
    "peers": peers.rows,
}

if __name__ == "__main__":
    sys.exit(
        main(
            "decision",
            None,
            groups=GROUPS,
            subject=lambda run: None,
            hardware=lambda: describe("numpy", "scipy"),
        )
    )
