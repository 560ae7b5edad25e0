"""``python -m benchmarks.federated``: figures of adapters that learn."""

from __future__ import annotations

import sys

from benchmarks.edge.subject import prepare
from benchmarks.federated import aggregation, attacks, flower, gradients, learners, protocol
from benchmarks.federated.loop import figures as loop
from benchmarks.hardware import describe
from benchmarks.run import main

GROUPS = {
    "gradients": gradients.rows,
    "aggregation": aggregation.rows,
    "protocol": protocol.rows,
    "flower": flower.rows,
    "learners": learners.rows,
    "attacks": attacks.rows,
    "loop": loop.rows,
    "lora": loop.lora_rows,
    "strategies": loop.strategy_rows,
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
