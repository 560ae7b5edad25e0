"""The command line, ``cascade``: one file a verb, loaded only when it is used.

Answers go to standard output, everything else to standard error. Exit codes are those of
``cascade.errors``; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from cascade.cli.interrupt import EXIT_CODE, loading
from cascade.errors import CascadeError

_VERBS = {
    "ask": "ask for free text: on the device, by the cluster when unsure",
    "choose": "ask for one of a closed set of answers",
    "classify": "ask which class an image, a sound or sensor readings belong to",
    "record": "ask tiers about a whole data set and keep every outcome",
    "records": "show, convert and split files of records",
    "report": "write one interactive page about a set of records and a policy",
    "suite": "record many data sets, as they are and perturbed, and print the matrix",
    "tune": "choose a certified threshold from records, and sign the policy",
    "replay": "apply a policy to records: every figure, with intervals",
    "models": "list and download model files",
    "adapters": "train an adapter from your own examples, and compare it with its parent",
    "bundle": "build, inspect and verify device bundles",
    "cluster": "start, show and stop the local cluster",
    "setup": "install what a cluster's channel has for this device, or update it",
    "registry": "publish what devices run, promote it and roll it back",
    "federation": "take part in federated rounds, show them, approve or reject what came of them",
    "fleet": "simulate a fleet that learns from what it escalates",
    "monitor": "show which policies still hold, and why not",
    "examples": "look at, judge and forget what this device may learn from",
    "demo": "device, cascade and cloud side by side on real sentences",
}


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments of one command; ``run`` among them carries it out.

    Raises:
        SystemExit: there is no such command or option, or help was asked for.
    """
    parser = argparse.ArgumentParser(
        prog="cascade",
        description="Local-first AI that escalates only what it must.",
        epilog="Files are kept in one folder; set CASCADE_HOME to choose it.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    wanted = next((word for word in words if word in _VERBS), None)
    for name, summary in _VERBS.items():
        verb = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:])
        if name == wanted:
            with loading():
                importlib.import_module(f"cascade.cli.{name}").configure(verb)
    return parser.parse_args(words)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = parse(sys.argv[1:] if argv is None else argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except CascadeError as problem:
        if getattr(args, "json", None) is True:
            fields = {"kind": type(problem).__name__, "message": str(problem)}
            print(json.dumps({"error": fields}))
        print(f"cascade {args.verb}: {problem}", file=sys.stderr)
        return problem.exit_code
    except KeyboardInterrupt:
        print(f"\ncascade {args.verb}: interrupted", file=sys.stderr)
        return EXIT_CODE
    except BrokenPipeError:
        # The reader left (`| head`); give the interpreter nothing to flush into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as problem:
        if problem.filename is None:
            raise
        print(f"cascade {args.verb}: {problem.filename}: {problem.strerror}", file=sys.stderr)
        return CascadeError.exit_code


class _Version(argparse.Action):
    """Prints the version; looks it up only then, which takes longer than all other start-up."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import version

        parser.exit(message=f"cascade {version('edge-cloud-cascade')}\n")
