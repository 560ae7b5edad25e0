"""``cascade monitor`` shows what is kept and begins anew, and names every mistake."""

from __future__ import annotations

import json

import pytest

from cascade.cli import main
from cascade.monitor import MonitorStore, State
from cascade.monitor.ledger import default_path
from tests.cascade.monitor.test_store import KEY, audit


@pytest.fixture
def store(empty_home):
    store = MonitorStore(default_path())
    for wrong in (True, False, False, False):
        audit(store, wrong)
    yield store
    store.close()


def test_status_is_a_table(store, capsys):
    assert main(["monitor", "status"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:5] == ["task", "state", "since", "audits", "wrong"]
    assert row.split()[:2] == ["mood", "certified"]
    assert "1970-01-01 00:00:01Z" in row
    assert "0.250 (0.0" in row
    assert row.endswith(KEY.policy[:12])
    assert head.index("wealth") == row.index("1.")


def test_status_as_json_has_every_number(store, capsys):
    assert main(["monitor", "status", "--json", "--task", "mood"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["task"], row["policy"], row["alpha"]) == ("mood", KEY.policy, 0.1)
    assert row["risk_low"] < row["rate"] == 0.25 < row["risk_high"]
    assert row["health"]["audits"] == {"labels": 4, "errors": 1}


def test_an_empty_home_has_nothing_to_show(empty_home, capsys):
    assert main(["monitor", "status"]) == 0
    assert "no policy is monitored" in capsys.readouterr().out
    assert main(["monitor", "log"]) == 0
    assert "nothing is logged yet; --all shows every" in capsys.readouterr().err
    assert not empty_home.exists()


def test_the_log_shows_steps_and_on_demand_all_audits(store, capsys):
    assert main(["monitor", "log"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["monitor", "log", "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "audit" in lines[0]
    assert "audits 1" in lines[0]
    assert main(["monitor", "log", "--all", "--json"]) == 0
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["evidence"]["audits"] for entry in entries] == [1, 2, 3, 4]


def test_reset_begins_anew_and_the_log_keeps_what_was(store, capsys):
    assert main(["monitor", "reset", "--task", "mood", "--why", "a test"]) == 0
    assert "mood" in capsys.readouterr().out
    (kept,) = store.monitors()
    assert (kept.health.audits.labels, kept.health.generation) == (0, 1)
    entry = store.log()[-1]
    assert (entry.kind, entry.note, entry.state) == ("reset", "a test", State.CERTIFIED)
    assert entry.evidence["audits"] == 4
    assert main(["monitor", "reset", "--policy", KEY.policy[:6], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reset"][0]["policy"] == KEY.policy


def test_reset_needs_a_name_that_exists(store, capsys):
    assert main(["monitor", "reset"]) == 2
    assert "task: is missing" in capsys.readouterr().err
    assert main(["monitor", "reset", "--task", "other"]) == 3
    assert "no such policy is monitored" in capsys.readouterr().err
    assert store.monitors()[0].health.generation == 0
