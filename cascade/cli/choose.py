"""``cascade choose``: one question with a closed set of answers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from cascade.cli.limits import asked_for
from cascade.cli.request import add_request_options, constraints, open_device, report
from cascade.errors import InvalidInput
from cascade.signals import ScoreMode


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("text", help="the input to be judged; - reads standard input")
    options = parser.add_mutually_exclusive_group(required=True)
    options.add_argument(
        "--options", metavar="A,B,…", help="the allowed answers, separated by commas"
    )
    options.add_argument(
        "--options-file",
        type=Path,
        metavar="FILE",
        help="the allowed answers, one a line, UTF-8; empty lines are skipped",
    )
    parser.add_argument(
        "--mode",
        choices=get_args(ScoreMode),
        help="exact: score every answer; search: prove the best one and bound its score (default: "
        "what the task's policy was fitted for, else exact for small sets, search for large ones)",
    )
    add_request_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer and print."""
    text = sys.stdin.read().strip() if args.text == "-" else args.text
    options = _options(args)
    with open_device(args) as device:
        answer = device.choose(
            text,
            options,
            task=args.task,
            constraints=constraints(args),
            prefer=args.prefer,
            mode=args.mode,
            checks=asked_for(args),
        )
        if not args.json:
            print(answer.text)
        return report(answer, as_json=args.json)


def _options(args: argparse.Namespace) -> tuple[str, ...]:
    if args.options_file is None:
        return tuple(option.strip() for option in args.options.split(","))
    try:
        lines = args.options_file.read_text(encoding="utf-8-sig").split("\n")
    except OSError as problem:
        raise InvalidInput("options-file", f"cannot be read ({problem.strerror})") from None
    except UnicodeDecodeError as problem:
        raise InvalidInput(
            "options-file", f"is not UTF-8 text (byte {problem.start}); save it as UTF-8"
        ) from None
    return tuple(option for line in lines if (option := line.strip()))
