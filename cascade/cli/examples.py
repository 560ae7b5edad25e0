"""``cascade examples``: what this device may learn from: look at it, judge it, forget it, take it
away."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cascade.cli.interrupt import loading
from cascade.cli.learning import add_store_options, cipher
from cascade.errors import InvalidInput, NotFound
from cascade.files import write_whole

if TYPE_CHECKING:
    from edge.examples import Example, ExampleStore
    from edge.examples.stats import ExampleStats, TaskStats

_WIDTH = 48


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="one line for each example, oldest first")
    listing.add_argument("--last", type=int, metavar="N", help="only the newest N")
    listing.set_defaults(run=_list)
    stats = actions.add_parser(
        "stats", help="what would be learned from, and why the rest is left out"
    )
    stats.set_defaults(run=_stats)
    judge = actions.add_parser("judge", help="say whether an answer was right")
    judge.add_argument("request_id", metavar="REQUEST", help="request id of the answer")
    word = judge.add_mutually_exclusive_group(required=True)
    word.add_argument("--right", action="store_true", help="it was")
    word.add_argument("--wrong", action="store_true", help="it was not")
    word.add_argument("--correction", metavar="TEXT", help="it was not, and this would have been")
    judge.set_defaults(run=_judge)
    forget = actions.add_parser("forget", help="remove examples and their bytes for good")
    which = forget.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--request", action="append", default=[], metavar="ID", help="this one; may be repeated"
    )
    which.add_argument("--mentioning", metavar="TEXT", help="all in which this text occurs")
    which.add_argument("--task", metavar="ID", help="all of this task")
    which.add_argument("--all", action="store_true", help="all, and a damaged store itself")
    forget.set_defaults(run=_forget)
    export = actions.add_parser("export", help="write examples as JSON Lines")
    export.add_argument("out", type=Path, metavar="FILE", help="readable by you alone; must be new")
    export.add_argument(
        "--curated", action="store_true", help="only what would be learned from, as weighted"
    )
    export.set_defaults(run=_export)
    consent = actions.add_parser("consent", help="when learning was agreed to, and on which terms")
    change = consent.add_mutually_exclusive_group()
    change.add_argument("--give", action="store_true", help="agree to it, on the usual terms")
    change.add_argument(
        "--withdraw", action="store_true", help="keep and learn nothing from now on"
    )
    consent.set_defaults(run=_consent)
    for name, action in actions.choices.items():
        if name in ("list", "stats", "export"):
            action.add_argument("--task", metavar="ID", help="only this task")
        add_store_options(action)
        action.add_argument("--json", action="store_true", help="print one JSON object")


def _list(args: argparse.Namespace) -> int:
    with _store(args) as store:
        found = store.examples(task=args.task)
    if args.last is not None:
        if args.last < 1:
            raise InvalidInput("last", f"{args.last} is below 1")
        found = found[-args.last :]
    if args.json:
        print(json.dumps({"examples": [each.to_json() for each in found]}))
        return 0
    if not found:
        print("nothing is kept to learn from; ask with --learn", file=sys.stderr)
    for each in found:
        print(_line(each))
    return 0


def _stats(args: argparse.Namespace) -> int:
    from edge.examples import curate
    from edge.examples.stats import summarise

    with _store(args) as store:
        found, consent, size = store.examples(task=args.task), store.consent(), store.size()
    stats = summarise(found, curate(found, consent))
    if args.json:
        terms = json.loads(consent.to_text()) if consent else None
        print(json.dumps({**dataclasses.asdict(stats), "bytes": size, "consent": terms}))
        return 0
    _print_stats(stats, size, consented=consent is not None)
    return 0


def _judge(args: argparse.Namespace) -> int:
    with _store(args) as store:
        judged = store.judge(args.request_id, correct=args.right, correction=args.correction)
    if args.json:
        print(json.dumps(judged.to_json()))
    else:
        print(_line(judged))
    return 0


def _forget(args: argparse.Namespace) -> int:
    if args.mentioning is not None and not args.mentioning.strip():
        raise InvalidInput("mentioning", "is empty, and would match everything; use --all")
    with _store(args, sealed=not args.all) as store:
        if args.all:
            count = store.forget_all()
        else:
            count = store.forget(
                request_ids=args.request, task=args.task, mentioning=args.mentioning or ""
            )
    if args.json:
        print(json.dumps({"forgotten": count}))
    else:
        print(f"{count} forgotten")
    return 0


def _export(args: argparse.Namespace) -> int:
    from cascade.request import is_unicode
    from edge.examples import curate

    if not is_unicode(str(args.out)):
        raise InvalidInput("out", "is not valid Unicode (lone surrogate); choose another name")
    if args.out.exists():
        raise InvalidInput("out", f"{args.out} is there already; choose another name")
    with _store(args) as store:
        found, consent = store.examples(task=args.task), store.consent()
    rows = [each.to_json() for each in found]
    if args.curated:
        chosen = curate(found, consent)
        rows = [
            {**each.example.to_json(), "weight": each.weight}
            for each in (*chosen.learn, *chosen.held_out)
        ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_whole(args.out, text.encode(), private=True)
    if args.json:
        print(json.dumps({"exported": len(rows), "file": str(args.out)}))
    else:
        print(f"{len(rows)} written to {args.out}")
    return 0


def _consent(args: argparse.Namespace) -> int:
    from edge.examples import Consent

    with _store(args) as store:
        if args.withdraw:
            if not store.consents():
                raise NotFound("nobody consented to learning on this device")
            store.withdraw()
        if args.give:
            store.grant(Consent())
        entries = store.consents()
    if args.json:
        log = [
            {"at_s": each.at_s, "terms": json.loads(each.terms.to_text()) if each.terms else None}
            for each in entries
        ]
        print(json.dumps({"consents": log}))
        return 0
    if not entries:
        print("nobody consented to learning on this device", file=sys.stderr)
    for each in entries:
        print(f"{_time(each.at_s)}  {each.terms.to_text() if each.terms else 'withdrawn'}")
    return 0


@contextmanager
def _store(args: argparse.Namespace, *, sealed: bool = True) -> Iterator[ExampleStore]:
    with loading():
        from edge.examples import ExampleStore
    with ExampleStore(args.examples, cipher=cipher(args) if sealed else None) as store:
        yield store


def _print_stats(stats: ExampleStats, size: int, *, consented: bool) -> None:
    if not stats.examples:
        print("nothing is kept to learn from; ask with --learn", file=sys.stderr)
        return
    sources = ", ".join(f"{name} {count}" for name, count in stats.sources.items())
    print(f"{stats.examples} examples · {size / 1e3:.1f} kB · {sources}")
    if not consented:
        print("learning is not agreed to: nothing would be learned")
    for task in stats.tasks:
        _print_task(task)


def _print_task(task: TaskStats) -> None:
    from edge.examples.curate import REASONS

    print(f"\n{task.task or '(no task)'}: {task.learn} to learn, {task.held_out} kept aside")
    for each in task.classes:
        print(f"  {_short(each.answer)}: {each.learn}, weight {each.weight:.1f}")
    if task.noise is not None:
        print(
            f"  {task.doubted} doubted; at most about {task.noise:.0%} of all labels are wrong, "
            "if the device is right when it is sure"
        )
    if task.rehearsal:
        print(
            f"  {task.rehearsal} of the device's own answers are rehearsed beside them, by a head"
        )
    for reason, count in task.left_out.items():
        print(f"  {count} left out: {REASONS[reason]}")


def _line(example: Example) -> str:
    flags = " rejected" if example.rejected else ""
    aside = " aside" if example.held_out else ""
    return (
        f"{example.request_id}  {_time(example.at_s)}  {example.task_id or '-':<12} "
        f"{example.source.value:<12} {_short(example.messages[-1].content)} -> "
        f"{_short(example.answer)}{flags}{aside}"
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
