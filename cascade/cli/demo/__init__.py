"""``cascade demo``: device, cascade and cloud side by side on real sentences, from one command."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cascade import home
from cascade.cli.interrupt import loading
from cascade.errors import InvalidInput


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write every figure to FILE as one object"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where picture and page go (default: demo/report under CASCADE_HOME)",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    with loading():
        import edge  # noqa: F401 — the slow import of the run, while there is nothing to stop yet
        from cascade.cli.demo.report import terminal_report, write_json, write_report
        from cascade.cli.demo.run import run_demo

    folder: Path = args.out or home.home() / "demo" / "report"
    for name, path in (("--json", args.json and args.json.parent), ("--out", args.out)):
        if path is not None and path.exists() and not path.is_dir():
            raise InvalidInput(name, f"{path} is not a folder")
    result = run_demo()
    files = write_report(result, folder)
    if args.json:
        write_json(result, args.json)
    print(terminal_report(result))
    print(f"\npage     {files.page}\npicture  {files.picture}")
    if args.json:
        print(f"figures  {args.json}", file=sys.stderr)
    return 0
