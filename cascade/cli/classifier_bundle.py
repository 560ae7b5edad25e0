"""``cascade bundle build --classifier``: a bundle from an ONNX classifier and its labels."""

from __future__ import annotations

import argparse
from pathlib import Path

from cascade import home
from cascade.cli.interrupt import loading
from cascade.errors import InvalidInput, NotFound
from cascade.signing import SigningKey, TrustStore

_PUBLISHER = "this-machine"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that make ``build`` take a classifier."""
    group = parser.add_argument_group("classifiers")
    group.add_argument(
        "--classifier", type=Path, metavar="ONNX", help="make a bundle of this classifier instead"
    )
    group.add_argument(
        "--labels", type=Path, metavar="FILE", help="its classes, one a line, in its order"
    )
    group.add_argument(
        "--preprocessor", type=Path, metavar="ONNX", help="graph that is run before it"
    )
    group.add_argument(
        "--scores",
        choices=("probabilities", "logits"),
        help="what it gives (default: told by its last operator)",
    )
    group.add_argument("--output", metavar="NAME", help="its output with the scores")


def wanted(args: argparse.Namespace) -> bool:
    """Whether ``build`` is to make a bundle of a classifier.

    Raises:
        InvalidInput: it is not, but one of the options that only classifiers have is given.
    """
    if args.classifier is not None:
        return True
    for option in ("labels", "preprocessor", "scores", "output"):
        if getattr(args, option) is not None:
            raise InvalidInput(f"--{option}", "is for classifiers; give --classifier too")
    return False


def build(args: argparse.Namespace) -> Path:
    """Build, sign, and pin this machine's key unless another one was given; the bundle's folder.

    Raises:
        InvalidInput: ``--labels`` is missing, or the graph and the other options do not fit.
        NotFound: one of the files is not there.
    """
    with loading():
        from edge.build import build_classifier

    if args.labels is None:
        raise InvalidInput("--labels", "is missing; name the classes in a file, one a line")
    for option in ("path", "quantise", "context", "chat_template", "export", "base_model"):
        if getattr(args, option):
            flag = "from" if option == "path" else option.replace("_", "-")
            raise InvalidInput(f"--{flag}", "is for language models; leave it out of --classifier")
    # Own weights are their owner's, unless a licence is named.
    licence = (
        {"licence": args.licence, "commercial_use": args.commercial_use} if args.licence else {}
    )
    signer = (
        SigningKey.load(args.key)
        if args.key
        else SigningKey.load_or_create(home.keys_dir() / "publisher.key")
    )
    target: Path = args.out or home.bundles_dir() / (args.name or args.classifier.stem)
    build_classifier(
        args.classifier,
        target,
        labels=_labels(args.labels),
        signing_key=signer,
        preprocessor=args.preprocessor,
        scores=args.scores,
        output=args.output,
        name=args.name,
        overwrite=args.force,
        **licence,
    )
    if args.key is None:
        TrustStore(home.trust_dir()).pin(_PUBLISHER, signer.public)
    return target


def _labels(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise NotFound(f"there is no labels file {path}") from None
    except (OSError, UnicodeDecodeError):
        raise InvalidInput("--labels", f"{path} is not a text file in UTF-8") from None
