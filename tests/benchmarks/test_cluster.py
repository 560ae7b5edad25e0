"""The cluster's cheapest group runs for real, writes rows as agreed, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.cluster.__main__ import GROUPS
from benchmarks.cluster.engine import FixedEngine, Script
from benchmarks.rows import read_rows
from cascade.request import Message
from cloud import processes
from cloud.engines import ChatRequest, Done, Piece, Started

ROOT = Path(__file__).parents[2]


def command(*arguments):
    return [sys.executable, "-m", "benchmarks.cluster", *map(str, arguments)]


def test_every_figure_of_a_cluster_has_a_group():
    groups = ["ingress", "share", "killed", "overload", "scaling", "idle", "draft"]
    assert list(GROUPS) == groups


@pytest.mark.parametrize(("per_message", "messages"), [(1, 10), (8, 2), (64, 1)])
async def test_the_fixed_engine_writes_as_its_script_says(per_message, messages, tmp_path):
    Script(per_message=per_message).save(tmp_path / "script")
    engine = FixedEngine(Script.load(tmp_path / "script"))
    request = ChatRequest((Message("user", "hello"),), max_tokens=10)
    batches = [batch async for batch in engine.stream(request)]
    assert len(batches) == messages
    events = [event for batch in batches for event in batch]
    assert events[0] == Started(1)
    assert events[-1] == Done("length", 1, 10, 0)
    assert sum(event.count for event in events if isinstance(event, Piece)) == 10


@pytest.mark.processes
def test_a_quick_run_writes_rows_and_leaves_no_process(tmp_path):
    file = tmp_path / "rows.json"
    done = subprocess.run(
        command("--quick", "--only", "overload", "--json", file),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = {row.figure: row for row in read_rows(file)}
    assert all(row.quick and row.hardware and row.how for row in rows.values())
    goodput = rows["overload: goodput of capacity"]
    assert (goodput.unit, goodput.sense, goodput.reach) == ("%", ">=", 90.0)
    assert goodput.n == 2000
    assert goodput.value > 0
    refusals = rows["overload: refusals, p95"]
    assert (refusals.unit, refusals.sense, refusals.reach) == ("ms", "<=", 100.0)
    assert 0 < refusals.n < 2000
    assert rows["overload: growth of the gateways' memory"].unit == "MB"
    assert "overload: goodput of capacity" in done.stdout


@pytest.mark.processes
def test_ctrl_c_leaves_neither_file_nor_processes(tmp_path):
    file = tmp_path / "rows.json"
    process = subprocess.Popen(
        command("--quick", "--only", "overload", "--json", file),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    family: dict[int, str | None] = {}
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
        family = {pid: processes.start_time(pid) for pid in processes.descendants(process.pid)}
        if any(processes.command_name(pid) == "raylet" for pid in family):
            break
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted; nothing was written" in errors
    assert "Traceback" not in errors
    assert not file.exists()
    assert any(family)
    assert [pid for pid, begun in family.items() if processes.start_time(pid) == begun] == []
