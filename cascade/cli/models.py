"""``cascade models``: what can be downloaded, and downloading it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from cascade import catalog, download
from cascade.cli.progress import ProgressLine


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="list models and data sets")
    listing.set_defaults(run=_list)
    pull = actions.add_parser("pull", help="download one, with its sha256 checked")
    pull.add_argument("name", help="name from: cascade models list")
    pull.set_defaults(run=_pull)
    for action in actions.choices.values():
        action.add_argument("--json", action="store_true", help="print JSON")


def pull_with_progress(name: str) -> Path:
    """The file of a catalog entry, downloaded unless it is here."""
    entry = catalog.entry(name)
    found = download.cached(entry)
    if found is not None:
        return found
    line = ProgressLine(f"pull {name}", entry.bytes, "B")

    def show(progress: download.Progress) -> None:
        if progress.stage == "failed":
            line.abandon()
            print(f"pull {name}: {progress.source}: {progress.note}", file=sys.stderr)
        elif progress.stage == "fetching":
            line.resize(progress.total_bytes)
            line.update(progress.done_bytes, f"from {progress.source}")
        else:
            line.update(progress.done_bytes, progress.note or progress.stage)

    try:
        path = download.pull(entry, progress=show)
    except BaseException:
        line.abandon()
        raise
    line.done(f"{entry.bytes / 1e6:.0f} MB, sha256 checked")
    return path


def _list(args: argparse.Namespace) -> int:
    rows = [(entry, download.cached(entry)) for entry in catalog.entries()]
    if args.json:
        print(
            json.dumps(
                [
                    dataclasses.asdict(entry)
                    | {
                        "sources": [str(source) for source in entry.sources],
                        "path": str(path) if path else None,
                    }
                    for entry, path in rows
                ]
            )
        )
        return 0
    for entry, path in rows:
        size = f"{entry.parameters / 1e6:.0f} M" if entry.parameters else "–"
        here = "here" if path else "not here"
        print(
            f"{entry.name:<36} {entry.kind:<8} {size:>6}  {entry.bytes / 1e6:>6.0f} MB  "
            f"{entry.licence:<11} {here}"
        )
    return 0


def _pull(args: argparse.Namespace) -> int:
    path = pull_with_progress(args.name)
    print(json.dumps({"name": args.name, "path": str(path)}) if args.json else path)
    return 0
