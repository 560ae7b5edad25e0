"""``cascade federation``: how the rounds stand, the operator's word on what came of them, and a
device that takes part."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from cascade.cli import federation_participate
from cascade.cli.interrupt import loading

if TYPE_CHECKING:
    from cloud.federation.database import Database
    from cloud.federation.rounds import Round

_VARIABLE: Final = "CASCADE_FEDERATION_STORE"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listed = actions.add_parser("rounds", help="list the last rounds, and what was refused")
    listed.add_argument("--most", type=int, default=20, metavar="N", help="rounds (20)")
    _common(listed)
    listed.set_defaults(run=_rounds)
    shown = actions.add_parser("show", help="show one round")
    shown.add_argument("round", type=int, metavar="ROUND", help="its number")
    _common(shown)
    shown.set_defaults(run=_show)
    for name, summary in (
        ("approve", "let the candidate of a round be what devices start from"),
        ("reject", "drop the candidate of a round"),
    ):
        decided = actions.add_parser(name, help=summary)
        decided.add_argument("round", type=int, metavar="ROUND", help="its number")
        decided.add_argument("--note", default="", metavar="TEXT", help="why, for the others")
        _common(decided)
        decided.set_defaults(run=_decide, approved=name == "approve")
    federation_participate.configure(actions)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store",
        metavar="URL",
        help="federation.store of the cluster: a file, or postgresql://… "
        f"(default: {_VARIABLE}, or the one of this machine)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _rounds(args: argparse.Namespace) -> int:
    with loading():
        from cloud.federation.refusals import counters
        from cloud.federation.rounds import recent
    database = _store(args)
    try:
        found = database.do_now(lambda tx: recent(tx, max(1, args.most)))
        counts = database.do_now(counters)
    finally:
        database.close()
    if args.json:
        told = [dataclasses.asdict(each) for each in found]
        print(json.dumps({"rounds": told, "counters": counts}))
        return 0
    if not found:
        print("no round yet")
    for each in found:
        print(_line(each))
    if counts:
        print("\n" + " · ".join(f"{name} {value}" for name, value in counts.items()))
    return 0


def _show(args: argparse.Namespace) -> int:
    from cascade.errors import NotFound

    with loading():
        from cloud.federation.rounds import round_numbered
    database = _store(args)
    try:
        found = database.do_now(lambda tx: round_numbered(tx, args.round))
    finally:
        database.close()
    if found is None:
        raise NotFound(f"there is no round {args.round}; `cascade federation rounds` lists them")
    _print(found, args)
    return 0


def _decide(args: argparse.Namespace) -> int:
    with loading():
        from cloud.federation.rounds import decide
    database = _store(args)
    try:
        found = database.do_now(
            lambda tx: decide(tx, args.round, approved=args.approved, note=args.note)
        )
    finally:
        database.close()
    _print(found, args)
    return 0


def _store(args: argparse.Namespace) -> Database:
    from pathlib import Path

    from cascade.errors import NotFound

    with loading():
        from cloud.federation.config import default_store
        from cloud.federation.database import Database
        from cloud.federation.schema import migrate
    url = args.store or os.environ.get(_VARIABLE) or default_store()
    if "://" not in url and not Path(url).expanduser().is_file():
        raise NotFound(f"there is no store of federated rounds at {url}; name it with --store")
    database = Database(url)
    try:
        database.do_now(migrate)
    except BaseException:
        database.close()
        raise
    return database


def _print(found: Round, args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps(dataclasses.asdict(found)))
        return
    for line in _told(found):
        print(line)


def _line(found: Round) -> str:
    candidate = ""
    if found.candidate_digest is not None:
        candidate = f"  → {found.candidate_digest[:12]}… version {found.candidate_version}"
    return (
        f"{found.number:>5}  {found.state:<11}  {_time(found.opened_at)}  "
        f"{found.counted:>5} updates{candidate}"
    )


def _told(found: Round) -> Iterator[str]:
    yield f"round      {found.number} · {found.state}"
    yield f"starts at  {found.adapter_digest} version {found.adapter_version}"
    yield f"opened     {_time(found.opened_at)}"
    if found.closed_at is not None:
        yield f"closed     {_time(found.closed_at)} · {found.counted} updates"
    if found.candidate_digest is not None:
        yield f"candidate  {found.candidate_digest} version {found.candidate_version}"
    if found.aggregation_error is not None:
        yield f"error      {found.aggregation_error:.2g} of the aggregation, relative"
    yield f"plan       {found.plan}"
    if found.note:
        yield f"note       {found.note}"


def _time(seconds: float) -> str:
    at = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return at.isoformat(sep=" ", timespec="seconds").replace("+00:00", "Z")
