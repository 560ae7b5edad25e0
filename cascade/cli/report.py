"""``cascade report``: one interactive page about a set of records and, if given, a policy."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from cascade.errors import InvalidInput, NotFound
from cascade.ladder import is_ladder
from cascade.policy import Policy


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("records", type=Path, metavar="RECORDS", help=".jsonl or .parquet")
    parser.add_argument(
        "--policy", type=Path, metavar="FILE", help="a policy (JSON): its confidence and threshold"
    )
    parser.add_argument("--tier", default="", help="whose answers may be kept (first on a device)")
    parser.add_argument(
        "--strong", default="", metavar="TIER", help="who is asked instead (the highest)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report"), metavar="DIR", help="folder (default report)"
    )
    parser.add_argument("--png", action="store_true", help="write the charts as PNG, too")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read, compute, write, and say where."""
    from cascade.records import load
    from cascade.report import report

    policy = None if args.policy is None else _policy(args.policy)
    made = report(load(args.records), policy, tier=args.tier, strong=args.strong)
    paths = made.write(args.out, png=args.png)
    if args.json:
        print(json.dumps(made.to_json(), allow_nan=False))
    else:
        print(made.summary)
        for notice in made.notices:
            if notice.kind == "warning":
                print(f"note: {notice.text}", file=sys.stderr)
    for path in paths:
        print(path, file=sys.stderr)
    return 0


def _policy(path: Path) -> Policy:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"there is no policy at {path}") from None
    except IsADirectoryError:
        raise InvalidInput("policy", f"{path} is a folder; name the JSON file in it") from None
    if is_ladder(data):
        raise InvalidInput(
            "policy", f"{path} is a ladder, and a report is of two sides; cascade replay follows it"
        )
    return Policy.from_bytes(data)
