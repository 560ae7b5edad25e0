"""The cheapest groups run for real, and write rows as agreed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.rows import read_rows

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.models


@pytest.fixture
def home_with_model(model_path, tmp_path, monkeypatch):
    """A home that has the model, as after ``cascade models pull``."""
    gguf = model_path("smollm2-135m-instruct-q4_1")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / gguf.name).symlink_to(gguf)
    monkeypatch.setenv("CASCADE_HOME", str(tmp_path))
    return tmp_path


def command(*arguments):
    return [sys.executable, "-m", "benchmarks.edge", *map(str, arguments)]


def test_a_quick_run_writes_rows(home_with_model):
    file = home_with_model / "rows.json"
    done = subprocess.run(
        command("--quick", "--only", "size", "--only", "overhead", "--json", file),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = {row.figure: row for row in read_rows(file)}
    assert all(row.quick and row.hardware and row.how for row in rows.values())
    assert all(row.value is not None and row.value > 0 for row in rows.values())
    size = rows["bundle size"]
    assert (size.unit, size.sense, size.reach) == ("MB", "<=", 105.0)
    assert 50 < size.value < 200
    assert "runtime overhead a token over the bare session runs" in rows
    assert "bundle size" in done.stdout


def test_ctrl_c_leaves_neither_file_nor_children(home_with_model):
    file = home_with_model / "rows.json"
    process = subprocess.Popen(
        command("--only", "overhead", "--json", file),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    children: list[int] = []
    deadline = time.monotonic() + 120
    while not children and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
        children = engines_of(process.pid)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; nothing was written" in errors
    assert "Traceback" not in errors
    assert not file.exists()
    assert children
    assert not any(Path("/proc", str(child)).exists() for child in children)


def engines_of(parent: int) -> list[int]:
    """Process ids of the engine children of ``parent``."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
            named = b"benchmarks.edge.engine" in (status.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == parent and named:
            found.append(int(status.parent.name))
    return found
