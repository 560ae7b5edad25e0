"""What ``cascade cluster status`` shows, once and again and again."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import cloud
from cascade.cli.cluster_status import as_object, lines, watch
from cloud.control import AdapterStatus, ClusterStatus, GatewayStatus, TierStatus
from cloud.figures import Figures

BUSY = Figures(2, 1, 3, 60.0, 120, 4, (0.2, 0.3, 2.5), 600, 0.123456)
READY = ClusterStatus(
    "ready",
    42,
    "127.0.0.1:7443",
    "SERVING",
    (
        TierStatus("tier1", "small", "SERVING", BUSY),
        TierStatus("large", "big", "NOT_SERVING"),
    ),
    ("127.0.0.1:9464",),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def times(count: int) -> Callable[[float], None]:
    """A pause that Ctrl-C ends at the ``count``-th look."""
    left = [count]

    def pause(seconds: float) -> None:
        assert 0 <= seconds <= 1
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    return pause


def test_a_row_has_what_is_known_of_a_tier() -> None:
    head, metrics, names, small, large = lines(READY)
    assert head == "cluster  ready · SERVING · 127.0.0.1:7443 · pid 42"
    assert metrics == "metrics  http://127.0.0.1:9464/metrics"
    assert names.split()[:5] == ["tier", "health", "replicas", "answering", "queued"]
    assert small.split() == [
        *("tier1", "SERVING", "2", "3", "1", "2.00", "300", "ms", "2.5", "s"),
        *("10.0", "4", "0.1235", "small"),
    ]
    assert large.split() == ["large", "NOT_SERVING", *["–"] * 9, "big"]
    assert len({line.rstrip().rfind(" ") for line in (small, large)}) == 1  # one column


def test_adapters_of_a_registry_are_shown_as_they_are_served() -> None:
    tax = AdapterStatus("tuned", "tax", "tax@stable", "9a1ee6807ed4aa", 4, "")
    gone = AdapterStatus("tuned", "law", "law@beta", "", 2, "tier tuned: adapter law: is gone")
    fixed = AdapterStatus("tuned", "old", "6781696e24b3", "6781696e24b3", 0, "")
    later = replace(tax, digest="0" * 64, revision=5)  # one gateway has looked before the other
    gateways = (GatewayStatus(1, 0, "", (tax, gone, fixed)), GatewayStatus(2, 0, "", (later, gone)))
    shown = [line for line in lines(replace(READY, gateways=gateways)) if "adapter  " in line]
    assert shown == [
        "adapter  tax of tuned · tax@stable · 9a1ee6807ed4 · revision 4",
        "adapter  law of tuned · law@beta · withheld: tier tuned: adapter law: is gone",
        "adapter  old of tuned · 6781696e24b3 · 6781696e24b3",
        "adapter  tax of tuned · tax@stable · 000000000000 · revision 5",
    ]


def test_programs_get_the_same_and_the_keys_that_were_there() -> None:
    told = json.loads(json.dumps(as_object(READY)))
    assert set(told) == {"stage", "pid", "address", "health", "tiers", "metrics", "gateways"}
    small, large = told["tiers"]
    assert (small["name"], small["model"], small["health"]) == ("tier1", "small", "SERVING")
    assert small["figures"]["requests_per_s"] == 2.0
    assert (small["figures"]["p50_s"], small["figures"]["p95_s"]) == (0.3, 2.5)
    assert small["figures"]["cost_today_usd"] == 0.123456
    assert large["figures"] is None


def test_a_terminal_shows_one_look_at_a_time() -> None:
    out = Terminal()
    assert watch(lambda: READY, 1.0, out, pause=times(3)) == 0
    text = out.getvalue()
    assert text.startswith("\x1b[2J\x1b[H")
    assert text.count("\x1b[H") == 3
    assert text.count("\x1b[J") == 3


def test_without_a_terminal_looks_follow_each_other() -> None:
    out = io.StringIO()
    assert watch(lambda: READY, 1.0, out, pause=times(2)) == 0
    assert "\x1b" not in out.getvalue()
    assert out.getvalue() == "\n".join([*lines(READY), "", *lines(READY), "", ""])


def test_programs_get_a_line_a_look() -> None:
    out = Terminal()
    assert watch(lambda: READY, 1.0, out, as_json=True, pause=times(2)) == 0
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [
        json.loads(json.dumps(as_object(READY)))
    ] * 2


def test_a_cluster_that_comes_up_meanwhile_is_seen() -> None:
    states = iter([ClusterStatus("stopped"), READY])
    out = io.StringIO()
    assert watch(lambda: next(states), 0.5, out, pause=times(2)) == 0
    assert out.getvalue().startswith("no cluster is running")
    assert "tier1" in out.getvalue()


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "1e9"])
def test_a_period_that_makes_no_sense_is_refused(seconds: str, empty_home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cascade.cli", "cluster", "status", f"--watch={seconds}"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "watch" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_interrupt_on_a_real_terminal_is_an_orderly_end(empty_home: Path) -> None:
    terminal, its_end = pty.openpty()
    command = [sys.executable, "-m", "cascade.cli", "cluster", "status", "--watch", "0.1"]
    watching = subprocess.Popen(command, stdout=its_end, stderr=subprocess.STDOUT)
    os.close(its_end)
    shown = b""
    while shown.count(b"no cluster is running") < 3:
        shown += os.read(terminal, 65536)
    watching.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # the other end is gone
        while chunk := os.read(terminal, 65536):
            shown += chunk
    os.close(terminal)
    assert watching.wait() == 0
    assert b"Traceback" not in shown
    assert shown.startswith(b"\x1b[2J\x1b[H")


def test_the_figures_do_not_make_one_status_differ_from_another() -> None:
    idle = TierStatus("tier1", "small", "SERVING", Figures())
    assert idle == TierStatus("tier1", "small", "SERVING", BUSY)
    assert cloud.TierStatus is TierStatus
