"""``python -m benchmarks.cluster``: the cluster's figures."""

from __future__ import annotations

import sys

from benchmarks.cluster import draft, idle, ingress, killed, overload, scaling, share
from benchmarks.hardware import describe
from benchmarks.run import main

GROUPS = {
    "ingress": ingress.rows,
    "share": share.rows,
    "killed": killed.rows,
    "overload": overload.rows,
    "scaling": scaling.rows,
    "idle": idle.rows,
    "draft": draft.rows,
}

if __name__ == "__main__":
    sys.exit(
        main(
            "cluster",
            None,
            groups=GROUPS,
            subject=lambda run: None,
            hardware=lambda: describe("ray", "grpcio"),
        )
    )
