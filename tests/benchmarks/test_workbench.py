"""The workbench group writes rows as agreed, and leaves no key of its own behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.rows import read_rows

ROOT = Path(__file__).parents[2]


def test_a_quick_run_writes_rows(tmp_path: Path) -> None:
    file, home = tmp_path / "rows.json", tmp_path / "home"
    command = [sys.executable, "-m", "benchmarks.decision", "--quick", "--json", str(file)]
    done = subprocess.run(
        [*command, "--only", "workbench"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CASCADE_HOME": str(home)},
    )
    assert done.returncode == 0, done.stderr
    rows = {row.figure: row for row in read_rows(file)}
    assert set(rows) == {
        f"{verb} on 50,000 records, 2 tiers, {clock} time"
        for verb in ("tune", "replay")
        for clock in ("wall", "CPU")
    }
    # A short run judges nothing.
    assert all(row.quick and row.reach is None and row.value is not None for row in rows.values())
    assert not home.exists()
