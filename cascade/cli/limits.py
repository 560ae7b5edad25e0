"""The limits that ``ask``, ``choose`` and ``classify`` share: money, privacy, licence, conditions,
checks, and the file that keeps decisions.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cascade.errors import InvalidInput

if TYPE_CHECKING:
    from cascade.checks import Checks
    from cascade.decision_record import DecisionRecord
    from cascade.egress import Egress
    from cascade.privacy import Privacy

MUST_MATCH = "must_match"
"""The name of the check that ``--must-match`` makes."""


def add_limit_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    limits = parser.add_argument_group("limits on what leaves the device (docs/constraints.md)")
    limits.add_argument(
        "--max-cost", type=float, metavar="USD", help="upper bound on the price of this request"
    )
    limits.add_argument(
        "--budget-day", type=float, metavar="USD", help="spend at most this in a day (UTC)"
    )
    limits.add_argument(
        "--budget-hour",
        type=float,
        metavar="USD",
        help="spend at most this in an hour, saved up to an hour's worth",
    )
    limits.add_argument(
        "--redact",
        choices=("pii",),
        help="replace personal data before it is sent, and put it back into the answer",
    )
    limits.add_argument(
        "--never-send",
        action="append",
        default=[],
        metavar="KIND",
        help="keep requests with this kind of personal data here, e.g. CREDIT_CARD; repeatable",
    )
    limits.add_argument(
        "--commercial",
        action="store_true",
        help="use only models whose licence allows commercial use",
    )
    limits.add_argument("--residency", default="", metavar="REGION", help="stay in it, e.g. eu")
    limits.add_argument(
        "--unmetered", action="store_true", help="do not escalate over a metered connection"
    )
    limits.add_argument(
        "--min-battery",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="do not escalate below this share of the battery, e.g. 0.2, unless charging",
    )
    limits.add_argument(
        "--must-match",
        metavar="RE",
        help="do not accept the device's answer unless this expression matches it as a whole",
    )
    limits.add_argument(
        "--decisions", type=Path, metavar="FILE", help="append the decision's record to this file"
    )


def egress(args: argparse.Namespace, cluster: str) -> Egress:
    """The way out that the options describe.

    Raises:
        InvalidInput: an amount or a kind cannot be used.
    """
    from cascade.budget import MoneyLimits
    from cascade.egress import Egress

    money = None
    if args.budget_day is not None or args.budget_hour is not None:
        money = MoneyLimits(per_day_usd=args.budget_day, per_hour_usd=args.budget_hour)
    return Egress.usual(cluster, money=money, privacy=_privacy(args), commercial=args.commercial)


def checks(args: argparse.Namespace) -> Checks:
    """The checks that the options describe; each is asked for by its name.

    Raises:
        InvalidInput: the expression cannot be read.
    """
    from cascade.checks import Checks, matches

    return Checks({MUST_MATCH: matches(args.must_match)} if args.must_match is not None else {})


def asked_for(args: argparse.Namespace) -> tuple[str, ...]:
    """Names of the checks that this request has to pass."""
    return (MUST_MATCH,) if args.must_match is not None else ()


def decision_log(args: argparse.Namespace) -> Callable[[DecisionRecord], None] | None:
    """Appends records to the file of ``--decisions``."""
    path: Path | None = args.decisions
    if path is None:
        return None

    def append(record: DecisionRecord) -> None:
        try:
            with path.open("ab") as file:
                file.write(record.to_bytes())
        except OSError as problem:
            raise InvalidInput("decisions", f"cannot write {path}: {problem.strerror}") from None

    return append


def _privacy(args: argparse.Namespace) -> Privacy | None:
    if args.redact is None and not args.never_send:
        return None
    from cascade.privacy import Privacy
    from cascade.privacy.presidio import KINDS, PresidioPatterns

    for kind in args.never_send:
        if kind not in KINDS:
            raise InvalidInput("never-send", f"{kind!r} is not one of {', '.join(KINDS)}")
    return Privacy(
        PresidioPatterns(),
        redact=args.redact is not None,
        never_leave=frozenset(args.never_send),
    )
