"""The decision's cheap groups run for real, and write rows as agreed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.decision.pii_sample import MARKED
from benchmarks.rows import read_rows

ROOT = Path(__file__).parents[2]


def test_a_quick_run_writes_rows(tmp_path):
    file = tmp_path / "rows.json"
    words = ["--quick", "--only", "deciding", "--only", "pii", "--json", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.decision", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = {row.figure: row for row in read_rows(file)}
    assert all(row.quick and row.hardware and row.how for row in rows.values())
    assert rows["decide(), Platt, wall time"].value > 0
    assert rows["decide(), Platt, CPU time"].reach == 50.0
    assert {f"recall of {kind}" for kind in MARKED} <= rows.keys()
    assert rows["recall of PERSON"].value == 0.0
    assert "decide(), Platt" in done.stdout


def test_deciding_needs_numpy_and_no_statistics_package():
    code = (
        "import sys, cascade.policy, cascade.constraints\n"
        "assert not sys.modules.keys() & {'scipy', 'sklearn', 'grpc', 'onnxruntime', 'jsonschema'}"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
