"""``python -m benchmarks.federated``: figures of adapters that learn."""

from __future__ import annotations

import sys

from benchmarks.edge.subject import prepare
from benchmarks.federated import gradients
from benchmarks.hardware import describe
from benchmarks.run import main

GROUPS = {
    "gradients": gradients.rows,
}

if __name__ == "__main__":
    sys.exit(
        main(
            "federated",
            None,
            groups=GROUPS,
            subject=prepare,
            hardware=lambda: describe("onnxruntime", "torch"),
        )
    )
