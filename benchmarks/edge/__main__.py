"""``python -m benchmarks.edge``: the edge engine's figures."""

from __future__ import annotations

import sys

from benchmarks.edge import choosing, fidelity, footprint, runtime, size, speed
from benchmarks.edge.subject import prepare
from benchmarks.hardware import describe
from benchmarks.run import main

GROUPS = {
    "fidelity": fidelity.rows,
    "size": size.rows,
    "speed": speed.rows,
    "overhead": runtime.overhead,
    "adapters": runtime.adapters,
    "footprint": footprint.rows,
    "choose": choosing.rows,
}

if __name__ == "__main__":
    sys.exit(
        main(
            "edge",
            None,
            groups=GROUPS,
            subject=prepare,
            hardware=lambda: describe("onnxruntime", "numpy"),
        )
    )
