"""``cascade monitor``: where each monitored policy stands, how that came about, starting anew."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from cascade.errors import InvalidInput, NotFound
from cascade.monitor import Entry, Kept, MonitorStore
from cascade.monitor.evidence import evidence, reset
from cascade.monitor.ledger import default_path

_STEPS = frozenset({"opened", "recertified", "watch", "cleared", "demoted", "reset"})
_HEAD = ("task", "state", "since", "audits", "wrong", "risk (95 %)", "promised", "wealth", "policy")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    status = actions.add_parser("status", help="one line for each monitored policy")
    status.set_defaults(run=_status)
    log = actions.add_parser("log", help="what happened, oldest first")
    log.add_argument("--all", action="store_true", help="every audit and report, too")
    log.set_defaults(run=_log)
    anew = actions.add_parser("reset", help="begin a policy's monitor anew, as certified")
    anew.add_argument("--policy", metavar="DIGEST", help="only this one; its first digits will do")
    anew.add_argument("--why", metavar="TEXT", help="for the log", default="by hand")
    anew.set_defaults(run=_reset)
    for action in actions.choices.values():
        action.add_argument("--task", metavar="ID", help="only this task")
        action.add_argument("--json", action="store_true", help="print JSON")


def _status(args: argparse.Namespace) -> int:
    found = _found(_store(), args.task, None)
    if args.json:
        print(json.dumps([_as_json(kept) for kept in found]))
        return 0
    if not found:
        print("no policy is monitored; ask with --audit, or open a device with a Monitor")
        return 0
    _table(_HEAD, [_row(kept) for kept in found])
    return 0


def _log(args: argparse.Namespace) -> int:
    entries = _store().log(task=args.task)
    if not args.all:
        entries = [entry for entry in entries if entry.kind in _STEPS]
    if not entries and not args.json:
        more = "" if args.all else "; --all shows every audit and report"
        print(f"nothing is logged yet{more}", file=sys.stderr)
    for entry in entries:
        print(json.dumps(dataclasses.asdict(entry)) if args.json else _line(entry))
    return 0


def _reset(args: argparse.Namespace) -> int:
    if not args.task and not args.policy:
        raise InvalidInput("task", "is missing; name a task, or a policy by its digest")
    store = _store()
    found = _found(store, args.task, args.policy)
    if not found:
        raise NotFound("no such policy is monitored; see: cascade monitor status")
    for kept in found:
        reset(store, kept, args.why, now=time.time())
    if args.json:
        print(json.dumps({"reset": [dataclasses.asdict(kept.key) for kept in found]}))
    else:
        for kept in found:
            print(f"{kept.key.task} ({kept.key.policy[:12]}): certified, with no audits yet")
    return 0


def _store() -> MonitorStore:
    return MonitorStore(default_path())


def _found(store: MonitorStore, task: str | None, policy: str | None) -> list[Kept]:
    return [
        kept
        for kept in store.monitors()
        if task in (None, kept.key.task) and kept.key.policy.startswith(policy or "")
    ]


def _row(kept: Kept) -> tuple[str, ...]:
    health = kept.health
    low, high = health.risk(kept.limits)
    rate = health.audits.rate
    risk = f"{low:.3f} … {high:.3f}" if rate is None else f"{rate:.3f} ({low:.3f} … {high:.3f})"
    return (
        kept.key.task,
        health.state.value,
        _time(health.since),
        str(health.audits.labels),
        str(health.audits.errors),
        risk,
        f"{kept.limits.alpha:g}",
        f"{health.detector.wealth:.3g}",
        kept.key.policy[:12],
    )


def _as_json(kept: Kept) -> dict[str, object]:
    health = kept.health
    return {
        **dataclasses.asdict(kept.key),
        **evidence(health, kept.limits),
        "state": health.state.value,
        "since": health.since,
        "health": health.to_json(),
    }


def _line(entry: Entry) -> str:
    numbers = entry.evidence
    told = [
        f"{name} {_short(numbers[name])}"
        for name in ("audits", "errors", "wealth", "scores_wealth", "reported", "wrong", "request")
        if numbers.get(name) is not None
    ]
    return (
        f"{entry.number:>5}  {_time(entry.at)}  {entry.key.task:<16} {entry.kind:<11} "
        f"{entry.state.value:<9}  {entry.note} ({', '.join(told)})"
    )


def _short(value: float | int | str | None) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
