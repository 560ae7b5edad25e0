"""``cascade ask``: one free question."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from cascade.cli.limits import asked_for
from cascade.cli.request import (
    add_length,
    add_request_options,
    constraints,
    open_device,
    report,
)
from cascade.draft import Drafting
from cascade.errors import InvalidInput
from cascade.events import DEVICE, Answer, Event, Final, Superseded, Token

_SAMPLING: tuple[tuple[str, float, str, str], ...] = (
    ("--temperature", 0.0, "T", "0 is greedy (default); up to 2"),
    ("--top-p", 1.0, "P", "keep the fewest tokens with this share of the probability (1: all)"),
    ("--top-k", 0, "N", "keep the N most probable tokens (0: all)"),
    ("--min-p", 0.0, "P", "keep tokens with this share of the largest probability (0: all)"),
    ("--repetition-penalty", 1.0, "X", "above 1 makes tokens rarer that occurred already (1: off)"),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("prompt", help="the question; - reads standard input")
    add_length(parser)
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before TEXT; may be repeated",
    )
    _add_sampling(parser)
    parser.add_argument(
        "--json-schema",
        metavar="FILE|TEXT",
        help="answer with a JSON document that satisfies this JSON Schema",
    )
    parser.add_argument(
        "--regex", metavar="RE", help="answer with text that this expression matches as a whole"
    )
    parser.add_argument(
        "--show",
        choices=("final", "provisional"),
        default="final",
        help="final: hold local text until it is accepted; provisional: stream it at once",
    )
    parser.add_argument(
        "--draft",
        metavar="off|lossless|threshold=T",
        help="propose an answer that is not kept to the cluster (default: by the policy, or off)",
    )
    add_request_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer and print."""
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    if not prompt.strip():
        raise InvalidInput("prompt", "is empty; write what you want to ask")
    schema = _schema_text(args.json_schema)
    drafting = None if args.draft is None else Drafting.parse(args.draft)
    with open_device(args) as device:
        events = device.ask(
            prompt,
            max_tokens=args.max_tokens,
            stop=args.stop,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            min_p=args.min_p,
            repetition_penalty=args.repetition_penalty,
            seed=args.seed,
            json_schema=schema,
            regex=args.regex,
            task=args.task,
            constraints=constraints(args),
            show=args.show,
            prefer=args.prefer,
            checks=asked_for(args),
            drafting=drafting,
        )
        return report(_shown(events, quiet=args.json), as_json=args.json)


def _shown(events: Iterator[Event], *, quiet: bool) -> Answer:
    """Print the text as it comes; the answer at the end of it."""
    answer: Answer | None = None
    for event in events:
        match event:
            case Token(text) if not quiet:
                print(text, end="", flush=True)
            case Superseded(source) if not quiet:
                print(f"\n[{_who(source)} answers instead]", flush=True)
            case Final(found):
                answer = found
    if answer is None:
        raise AssertionError("a request ended without Final")
    if not quiet:
        print()
    return answer


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    for name, default, metavar, meaning in _SAMPLING:
        parser.add_argument(
            name, type=type(default), default=default, metavar=metavar, help=meaning
        )
    parser.add_argument("--seed", type=int, metavar="N", help="draw the same tokens every time")


def _schema_text(given: str | None) -> str | None:
    """The schema itself where ``given`` begins like one, else what is in the file of that name."""
    if given is None or given.lstrip().startswith("{"):
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8 text"
        raise InvalidInput(
            "json_schema", f"cannot read {given}: {reason}; give a file or {{…}} itself"
        ) from None


def _who(source: str) -> str:
    return "the device" if source == DEVICE else source
