"""The options by which ``ask``, ``choose`` and ``classify`` have kept answers audited."""

from __future__ import annotations

import argparse

from cascade.errors import InvalidInput
from cascade.monitor import Monitor


def add_audit_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    audits = parser.add_argument_group("audits of kept answers (docs/monitor.md)")
    audits.add_argument(
        "--audit",
        type=float,
        metavar="SHARE",
        help="have the cluster answer this share of the kept answers, too, e.g. 0.05",
    )
    audits.add_argument(
        "--tier-error",
        type=float,
        metavar="SHARE",
        help="how often the auditing tier is wrong at most; 0 where the policy was certified for "
        "agreement with it",
    )
    audits.add_argument(
        "--grader",
        metavar="SPEC",
        help="what compares free text with the tier's: exact, normalised, numeric[:TOLERANCE], "
        "regex:EXPRESSION or python:MODULE:FUNCTION",
    )


def monitor(args: argparse.Namespace) -> Monitor | None:
    """The monitor that the options describe; ``None`` where nothing is to be audited.

    Raises:
        InvalidInput: an option is out of range, or one that belongs to it is missing.
    """
    if args.audit is None:
        for name in ("tier_error", "grader"):
            if getattr(args, name) is not None:
                raise InvalidInput("audit", f"is missing, and --{name.replace('_', '-')} is given")
        return None
    if not args.task:
        raise InvalidInput("task", "is missing; only answers under a task's policy are audited")
    if args.tier_error is None:
        raise InvalidInput(
            "tier-error", "is missing; say how often the auditing tier is wrong at most, e.g. 0.02"
        )
    if args.cloud is None and args.profile is None and not args.grader:
        raise InvalidInput("cloud", "is missing; audits ask a cluster, so give --cloud")
    return Monitor.open(tier_error=args.tier_error, share=args.audit, grader=args.grader or "")
