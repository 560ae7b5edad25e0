"""``cascade choose``: one question with a closed set of answers."""

from __future__ import annotations

import argparse
import sys

from cascade.cli.request import add_request_options, constraints, open_device, report


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("text", help="the input to be judged; - reads standard input")
    parser.add_argument(
        "--options", required=True, metavar="A,B,…", help="the allowed answers, separated by commas"
    )
    add_request_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer and print."""
    text = sys.stdin.read().strip() if args.text == "-" else args.text
    options = tuple(option.strip() for option in args.options.split(","))
    with open_device(args) as device:
        answer = device.choose(
            text, options, task=args.task, constraints=constraints(args), prefer=args.prefer
        )
    if not args.json:
        print(answer.text)
    return report(answer, as_json=args.json)
