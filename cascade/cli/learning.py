"""The options by which ``ask``, ``choose`` and ``classify`` keep answers to learn from, and those
that find and open the store of examples."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cascade.errors import InvalidInput

if TYPE_CHECKING:
    from edge.examples import Cipher, Learning


def add_learning_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a request."""
    learning = parser.add_argument_group("examples to learn from (docs/examples.md)")
    learning.add_argument(
        "--learn", action="store_true", help="keep this answer to learn from, on this device alone"
    )
    learning.add_argument(
        "--never-train", action="store_true", help="keep nothing of this request to learn from"
    )
    add_store_options(learning)


def add_store_options(parser: argparse._ActionsContainer) -> None:
    """Where the store is, and how to read it."""
    parser.add_argument(
        "--examples", type=Path, metavar="FILE", help="the store (default: under CASCADE_HOME)"
    )
    parser.add_argument(
        "--examples-key",
        type=Path,
        metavar="FILE",
        help="encrypt it with the key in this file, which is made if need be",
    )


def cipher(args: argparse.Namespace, *, create: bool = False) -> Cipher | None:
    """What ``--examples-key`` names; ``None`` leaves texts in clear.

    Raises:
        NotFound: there is no such file, and none is to be made.
        InvalidInput: it holds no key.
    """
    from edge.examples import AesGcm

    path: Path | None = args.examples_key
    return None if path is None else AesGcm.from_file(path, create=create)


def learning(args: argparse.Namespace) -> Learning | None:
    """What keeps answers; ``None`` where that was not asked for.

    Raises:
        InvalidInput: the store was written with another key, or consent was withdrawn.
    """
    if not args.learn:
        return None
    from edge.examples import Learning

    learning = Learning.open(args.examples, cipher=cipher(args, create=True))
    if learning.store.exists and learning.store.consent() is None:
        learning.close()
        raise InvalidInput(
            "learn", "needs consent, which was withdrawn; cascade examples consent --give gives it"
        )
    return learning
