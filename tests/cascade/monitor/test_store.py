"""What was written stays, whatever happens to the process or the file."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from cascade.errors import CascadeError
from cascade.monitor import Entry, Health, Key, Label, Limits, MonitorStore, State
from cascade.monitor.health import after_audit

KEY = Key("mood", "ab" * 32, "", "cd" * 32)
LIMITS = Limits(0.1)
ROOT = Path(__file__).parents[3]


def audit(store: MonitorStore, wrong: bool = False, key: Key = KEY) -> Health:
    """One more audit, with its line in the log."""

    def step(found, _):
        health, _ = after_audit(
            found or Health(opened=1.0, since=1.0), LIMITS, Label(wrong, "tier", 0.5), 2.0
        )
        numbers = {"audits": health.audits.labels, "wealth": health.detector.wealth}
        return health, [Entry(2.0, key, "audit", health.state, "tier", numbers)]

    return store.update(key, LIMITS, step)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "monitor" / "monitor.sqlite"


def test_nothing_is_created_by_reading(path):
    store = MonitorStore(path)
    assert not store.exists
    assert (store.standing(KEY), store.monitors(), store.log()) == (None, [], [])
    assert not path.parent.exists()


def test_a_new_process_goes_on_where_the_last_one_stopped(path):
    first = MonitorStore(path)
    kept = [audit(first, wrong) for wrong in (True, False, True)][-1]
    first.close()
    second = MonitorStore(path)
    assert second.standing(KEY) == (State.CERTIFIED, 0)
    assert second.monitors()[0].health == kept
    assert audit(second).audits.labels == 4
    assert [entry.number for entry in second.log()] == [1, 2, 3, 4]
    second.close()


_WRITER = """
import sys
from pathlib import Path
from cascade.monitor import MonitorStore
from tests.cascade.monitor.test_store import audit
store = MonitorStore(Path(sys.argv[1]))
while True:
    print(audit(store, wrong=False).audits.labels, flush=True)
"""


def test_a_killed_process_loses_nothing_that_it_was_told_is_kept(path):
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    said = [writer.stdout.readline() for _ in range(50)]
    os.kill(writer.pid, signal.SIGKILL)
    said += writer.stdout.read().splitlines(keepends=True)
    writer.wait()
    writer.stdout.close()
    promised = max(int(line) for line in said if line.endswith("\n"))
    store = MonitorStore(path)
    (kept,) = store.monitors()
    assert kept.health.audits.labels >= promised >= 50
    # The state and the log tell the same.
    assert [entry.evidence["audits"] for entry in store.log()] == list(
        range(1, kept.health.audits.labels + 1)
    )
    assert store.log()[-1].evidence["wealth"] == kept.health.detector.wealth
    store.close()


def test_a_half_written_end_is_dropped_and_the_rest_stays_consistent(path, tmp_path):
    """As after a power cut: the file beside its journal, the journal cut anywhere."""
    store = MonitorStore(path)
    for _ in range(20):
        audit(store)
    journal = path.with_name(path.name + "-wal").read_bytes()
    main = path.read_bytes()
    store.close()
    lengths = []
    for cut in range(0, len(journal), len(journal) // 23):
        copy = tmp_path / f"cut-{cut}" / path.name
        copy.parent.mkdir()
        copy.write_bytes(main)
        copy.with_name(copy.name + "-wal").write_bytes(journal[:cut])
        found = MonitorStore(copy)
        logged = [entry.evidence["audits"] for entry in found.log()]
        assert logged == list(range(1, len(logged) + 1))
        assert [kept.health.audits.labels for kept in found.monitors()] == logged[-1:]
        lengths.append(len(logged))
        assert audit(found).audits.labels == len(logged) + 1
        found.close()
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


def test_two_processes_take_turns(path):
    stores = [MonitorStore(path), MonitorStore(path)]
    for turn in range(10):
        audit(stores[turn % 2])
    assert stores[0].monitors()[0].health.audits.labels == 10
    assert len(stores[1].log()) == 10
    for store in stores:
        store.close()


def test_a_step_that_fails_leaves_everything_as_it_was(path):
    store = MonitorStore(path)
    before = audit(store)

    def step(found, _):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.update(KEY, LIMITS, step)
    assert store.monitors()[0].health == before
    assert audit(store).audits.labels == 2
    store.close()


@pytest.mark.parametrize("statement", ["DELETE FROM log", "UPDATE log SET kind = 'reset'"])
def test_the_log_is_only_appended_to(path, statement):
    store = MonitorStore(path)
    audit(store)
    store.close()
    connection = sqlite3.connect(path)
    with pytest.raises(sqlite3.DatabaseError, match="append-only"):
        connection.execute(statement)
    connection.close()


def test_a_file_that_is_something_else_is_named(path):
    path.parent.mkdir()
    path.write_bytes(b"not a database, but long enough to be looked at as one" * 50)
    store = MonitorStore(path)
    with pytest.raises(CascadeError, match=r"monitor\.sqlite cannot be used .* move it away"):
        store.standing(KEY)


def test_policies_are_kept_apart_and_the_last_one_is_known(path):
    store = MonitorStore(path)
    audit(store)
    newer = Key(KEY.task, KEY.base, "ef" * 32, "01" * 32)
    seen = []

    def step(found, before):
        seen.append((found, before))
        return Health(opened=3.0, since=3.0), []

    store.update(newer, LIMITS, step)
    assert seen == [(None, KEY)]
    assert [kept.key for kept in store.monitors()] == [KEY, newer]
    store.close()
