"""``cascade classify``: the class of one example, given as NumPy files."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cascade.cli.limits import asked_for
from cascade.cli.request import add_request_options, constraints, open_device, report
from cascade.errors import InvalidInput, NotFound


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="NAME=FILE.npy",
        help="each of the classifier's inputs, as numpy.save writes it",
    )
    add_request_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer and print."""
    if args.learn:
        raise InvalidInput("learn", "keeps texts alone; leave it out where tensors are asked about")
    tensors = dict(_read(text) for text in args.inputs)
    with open_device(args) as device:
        answer = device.classify(
            tensors,
            task=args.task,
            constraints=constraints(args),
            prefer=args.prefer,
            checks=asked_for(args),
        )
        if not args.json:
            print(answer.text)
        return report(answer, as_json=args.json)


def _read(text: str) -> tuple[str, NDArray[np.generic]]:
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise InvalidInput("inputs", f"{text!r} is not NAME=FILE.npy, e.g. pixels=image.npy")
    path = Path(file).expanduser()
    try:
        with path.open("rb") as data:
            array = np.lib.format.read_array(data, allow_pickle=False)
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None
    except (OSError, ValueError, EOFError):
        raise InvalidInput("inputs", f"{path} is no .npy file as numpy.save writes it") from None
    return name, array
