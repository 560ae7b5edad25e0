"""A quick run writes the rows that the figures are read from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.rows import read_rows

ROOT = Path(__file__).parents[2]


def test_a_quick_run_writes_the_drift_rows(tmp_path):
    file = tmp_path / "rows.json"
    command = [sys.executable, "-m", "benchmarks.decision", "--quick", "--only", "drift"]
    done = subprocess.run(
        [*command, "--json", str(file)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = {row.figure: row for row in read_rows(file)}
    assert all(row.quick and row.hardware and row.value is not None for row in rows.values())
    for alpha in ("0.05", "0.1", "0.2"):
        alarms = rows[f"drift, alpha {alpha}, risk exactly alpha: false alarms"]
        assert (alarms.reach, alarms.sense) == (0.01, "<=")
        delay = rows[f"drift, alpha {alpha}, risk +0.1 after 500 audits: median delay"]
        assert (delay.reach, delay.sense, delay.unit) == (250.0, "<=", "audits")
        soon = rows[f"drift, alpha {alpha}, risk +0.1 after 500 audits: P(delay ≤ 300)"]
        assert 0 < soon.value <= 1
        bound = rows[f"drift, alpha {alpha}, risk +0.1: CUSUM, median delay"]
        assert bound.peer == "CUSUM told the risk after the change"
        late = rows[f"drift, alpha {alpha}, risk +0.1 after 10,000 audits: median delay"]
        # Ours is slower after so long a good time, for it promises more.
        assert bound.value < late.value
