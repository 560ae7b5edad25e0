"""``cascade ask``: one free question."""

from __future__ import annotations

import argparse
import sys

from cascade.cli.request import add_request_options, constraints, open_device, report
from cascade.errors import InvalidInput
from cascade.events import DEVICE, Final, Superseded, Token


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("prompt", help="the question; - reads standard input")
    parser.add_argument(
        "--max-tokens", type=int, default=256, metavar="N", help="longest answer (default 256)"
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before TEXT; may be repeated",
    )
    parser.add_argument(
        "--show",
        choices=("final", "provisional"),
        default="final",
        help="final: hold local text until it is accepted; provisional: stream it at once",
    )
    add_request_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer and print."""
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    if not prompt.strip():
        raise InvalidInput("prompt", "is empty; write what you want to ask")
    with open_device(args) as device:
        for event in device.ask(
            prompt,
            max_tokens=args.max_tokens,
            stop=args.stop,
            task=args.task,
            constraints=constraints(args),
            show=args.show,
            prefer=args.prefer,
        ):
            match event:
                case Token(text) if not args.json:
                    print(text, end="", flush=True)
                case Superseded(source) if not args.json:
                    print(f"\n[{_who(source)} answers instead]", flush=True)
                case Final(answer):
                    if not args.json:
                        print()
                    return report(answer, as_json=args.json)
    raise AssertionError("a request ended without Final")


def _who(source: str) -> str:
    return "the device" if source == DEVICE else source
