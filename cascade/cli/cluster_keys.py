"""``cascade cluster key``: who may call this machine's cluster, changed while it runs."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cascade.cli.interrupt import loading
from cascade.errors import InvalidInput, NotFound
from cascade.wire import ClientProfile, KeyRing, editing_keys, new_key

if TYPE_CHECKING:
    from argparse import ArgumentParser, _SubParsersAction

    from cascade.wire import ApiKey

# The cluster gives these two to itself.
_RESERVED: Final = ("local", "warm-up")
_MOST_DAYS: Final = 36_500.0


def configure(actions: _SubParsersAction[ArgumentParser]) -> None:
    """Add the verb to those of ``cascade cluster``."""
    key = actions.add_parser("key", help="let callers in, and shut them out, while it runs")
    verbs = key.add_subparsers(dest="verb", metavar="VERB", required=True)
    add = verbs.add_parser("add", help="make a key and print it, once")
    add.add_argument("name", metavar="NAME", help="the caller, for logs and quotas")
    add.add_argument("--expires-days", type=float, metavar="N", help="good for so long")
    add.add_argument(
        "--overlap-hours",
        type=float,
        metavar="N",
        default=0.0,
        help="earlier keys of NAME stay good for so long (0: replaced at once)",
    )
    add.add_argument("--profile", type=Path, metavar="FILE", help="also write a client profile")
    add.add_argument("--json", action="store_true", help="print one JSON object")
    add.set_defaults(run=_add)
    listed = verbs.add_parser("list", help="show whose keys are good, and until when")
    listed.add_argument("--json", action="store_true", help="print one JSON object")
    listed.set_defaults(run=_list)
    revoke = verbs.add_parser("revoke", help="refuse all keys of a caller from now on")
    revoke.add_argument("name", metavar="NAME", help="the caller")
    revoke.set_defaults(run=_revoke)


def _add(args: argparse.Namespace) -> int:
    if args.name in _RESERVED:
        raise InvalidInput("name", f"{args.name} is a key of the cluster itself; take another")
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    expires = None if args.expires_days is None else now + _days(args.expires_days, "expires-days")
    overlap = _days(args.overlap_hours / 24, "overlap-hours") if args.overlap_hours else None
    # Read first: a profile that cannot be written must not leave a key behind.
    own = ClientProfile.load() if args.profile is not None else None
    key, path = new_key(), _path()
    with editing_keys(path) as ring:
        until = None if overlap is None else now + overlap
        ring.with_key(args.name, key, expires=expires, others_until=until).save(path)
    if own is not None:
        replace(own, api_key=key, certificate_pem=None, key_pem=None).save(args.profile)
    end = None if expires is None else expires.isoformat()
    if args.json:
        print(json.dumps({"name": args.name, "key": key, "expires": end}))
        return 0
    print(key)
    print(
        f"this key of {args.name} is shown once; the cluster keeps its sha256 alone"
        + ("" if end is None else f"; good until {end}"),
        file=sys.stderr,
    )
    return 0


def _list(args: argparse.Namespace) -> int:
    ring = KeyRing.load(_path())
    now = datetime.datetime.now(datetime.UTC)
    if args.json:
        print(json.dumps({"keys": [_json(key, now) for key in ring.keys]}))
        return 0
    for key in ring.keys:
        state = "expired" if key.expired(now) else "good"
        until = "" if key.expires is None else f" · until {key.expires.isoformat()}"
        print(f"{key.name:<16} {key.shown} · {state}{until}")
    if not ring.keys:
        print("no keys; `cascade cluster up` makes one for this machine")
    return 0


def _revoke(args: argparse.Namespace) -> int:
    path = _path()
    with editing_keys(path) as ring:
        gone = [key for key in ring.keys if key.name == args.name]
        if not gone:
            names = sorted({key.name for key in ring.keys})
            raise NotFound(
                f"there is no key of {args.name}; keys of: {', '.join(names) or 'nobody'}"
            )
        ring.without(args.name).save(path)
    print(f"revoked {len(gone)} {'key' if len(gone) == 1 else 'keys'} of {args.name}")
    return 0


def _json(key: ApiKey, now: datetime.datetime) -> dict[str, object]:
    return {
        "name": key.name,
        "sha256": key.sha256,
        "expires": None if key.expires is None else key.expires.isoformat(),
        "expired": key.expired(now),
    }


def _days(count: float, name: str) -> datetime.timedelta:
    if not 0 < count <= _MOST_DAYS:
        raise InvalidInput(name, f"{count:g} days is not above 0 and at most {_MOST_DAYS:g}")
    return datetime.timedelta(days=count)


def _path() -> Path:
    with loading():
        from cloud.session import api_keys_path

    return api_keys_path()
