"""What ``cascade tune`` is asked for: its options, and what they come to."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Final, get_args

from cascade.certificate import Method
from cascade.errors import InvalidInput
from cascade.estimators import Calibrator
from cascade.features import check_names
from cascade.tune import AIMS, Aim, Modelling, estimator_named

DEFAULT_SPLIT: Final = "develop=0.3,certify=0.5,test=0.2"
STOP_SPLIT: Final = "develop=0.2,stop=0.3,certify=0.3,test=0.2"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "records",
        nargs="+",
        metavar="RECORDS",
        help="one file, to be split; or develop=FILE certify=FILE test=FILE",
    )
    parser.add_argument(
        "--target",
        action="append",
        metavar="NAME=ALPHA",
        help=f"what is to hold, e.g. risk=0.1; one of {', '.join(AIMS)}; may be repeated",
    )
    parser.add_argument(
        "--delta",
        type=float,
        default=0.1,
        metavar="D",
        help="probability with which the certificate may be wrong (default 0.1)",
    )
    parser.add_argument("--tier", metavar="NAME", help="whose answers are judged (the lowest)")
    parser.add_argument("--cloud-tier", metavar="NAME", help="where it escalates (the next one up)")
    parser.add_argument(
        "--ladder", metavar="A,B,C", help="search a ladder of these tiers, from the lowest up"
    )
    parser.add_argument(
        "--objective",
        metavar="TEXT",
        help="of a ladder: 'max accuracy s.t. cost<=0.001, p95<=2', 'min cost s.t. risk<=0.1'",
    )
    parser.add_argument("--group", metavar="GROUP", help="a policy for each value of this group")
    parser.add_argument(
        "--method", choices=get_args(Method), help="of the p-values (default: the target's own)"
    )
    parser.add_argument(
        "--confidence",
        metavar="WHAT",
        help="score: the raw score, calibrated (default); features: a logistic regression of all "
        "that was measured; best: that where develop shows that it is better; or a scikit-learn "
        "estimator of it, e.g. sklearn.ensemble.RandomForestClassifier",
    )
    parser.add_argument(
        "--params", metavar="JSON", help="of the estimator, e.g. '{\"n_estimators\": 50}'"
    )
    parser.add_argument(
        "--feature",
        action="append",
        metavar="NAME",
        help="take this feature alone, e.g. min_logprob; may be repeated",
    )
    parser.add_argument(
        "--calibrator", choices=get_args(Calibrator), default="platt", help="default platt"
    )
    parser.add_argument(
        "--gain", action="store_true", help="fit what escalating is expected to gain, too"
    )
    parser.add_argument(
        "--min-gain",
        type=float,
        metavar="G",
        help="unsure answers stay, unverified, where the gain is less; implies --gain",
    )
    parser.add_argument(
        "--early-stop",
        action="store_true",
        help="of free text: fit when to stop writing; takes a part 'stop' of its own. Not with "
        "--group or --min-gain",
    )
    parser.add_argument(
        "--drafting",
        metavar="MODE",
        help="of free text: have devices propose what they do not keep to the cluster: off, "
        "lossless or threshold=T; see docs/drafts.md. Not with --ladder or --compare",
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="tune nothing: print how confidences compare, cross-validated on develop alone",
    )
    parser.add_argument(
        "--most-usd", type=float, metavar="USD", help="what no request can cost, for limits on cost"
    )
    parser.add_argument(
        "--deadline-s", type=float, metavar="S", help="deadline target: when an answer is late"
    )
    parser.add_argument(
        "--split",
        metavar="NAME=SHARE,…",
        help=f"of the documents of one file (default {DEFAULT_SPLIT}; with --early-stop "
        f"{STOP_SPLIT})",
    )
    parser.add_argument("--seed", default="1", help="another one is another split (default 1)")
    parser.add_argument(
        "--allow-leak",
        action="store_true",
        help="take files that share inputs or documents; the result then promises nothing",
    )
    parser.add_argument("--task", metavar="ID", help="of the policy (default: the records' own)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the policy, and FILE.sig")
    parser.add_argument("--force", action="store_true", help="replace what is there")
    parser.add_argument(
        "--install", action="store_true", help="put the policy where this machine's devices look"
    )
    parser.add_argument(
        "--key", type=Path, metavar="FILE", help="sign with this key (default: this machine's own)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def may_leak(args: argparse.Namespace) -> bool:
    """Whether parts that share inputs were let through; one file is split so that none does.

    Raises:
        InvalidInput: the policy is to be installed: devices would take it for a certified one.
    """
    leaky = bool(args.allow_leak) and len(args.records) > 1
    if leaky and args.install:
        raise InvalidInput(
            "install",
            "is not for --allow-leak: a device would trust a policy that promises nothing",
        )
    return leaky


def aims_of(args: argparse.Namespace) -> tuple[Aim, ...]:
    aims = []
    for word in args.target or ():
        name, equals, alpha = word.partition("=")
        if not equals or name not in AIMS:
            raise InvalidInput(
                "target", f"{word!r} is not NAME=ALPHA, e.g. risk=0.1; names are {', '.join(AIMS)}"
            )
        aims.append(
            Aim(
                AIMS[name],
                _number("target", word, alpha),
                method=None if name in ("escalation", "deadline") else args.method,
                most_usd=args.most_usd,
                deadline_s=args.deadline_s,
            )
        )
    if not aims:
        raise InvalidInput("target", "is missing; say what is to hold, e.g. --target risk=0.1")
    return tuple(aims)


_PLAIN: Final = ("score", "features", "best")


def modelling_of(args: argparse.Namespace) -> Modelling:
    """What is to be fitted.

    Raises:
        InvalidInput: options that do not go together, or an estimator that cannot be used.
        CascadeError: scikit-learn is missing.
    """
    names = tuple(args.feature or ())
    kind = args.confidence or ("features" if names else "score")
    if kind == "score" and names:
        raise InvalidInput("feature", "is for --confidence features; the score is one by itself")
    if args.params is not None and kind in _PLAIN:
        raise InvalidInput("params", "are an estimator's; name it with --confidence")
    if args.early_stop and args.min_gain is not None:
        raise InvalidInput(
            "min-gain", "is not for --early-stop: what escalating gains is known of whole answers"
        )
    check_names(names)
    estimator = None if kind in _PLAIN else estimator_named(kind, _params(args))
    return Modelling(
        of="score" if kind == "score" else "best" if kind == "best" else "features",
        features=names,
        estimator=estimator,
        calibrator=args.calibrator,
        gain=args.gain or args.min_gain is not None,
        min_gain=args.min_gain,
    )


def _params(args: argparse.Namespace) -> dict[str, object]:
    if args.params is None:
        return {}
    try:
        given = json.loads(args.params)
    except ValueError:
        raise InvalidInput("params", 'is no JSON object, e.g. {"n_estimators": 50}') from None
    if not isinstance(given, dict):
        raise InvalidInput("params", 'is no JSON object, e.g. {"n_estimators": 50}')
    return given


def _number(field: str, word: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidInput(field, f"{word!r} has no number after =, e.g. risk=0.1") from None


def default_split(args: argparse.Namespace) -> str:
    """How one file is split unless ``--split`` says so."""
    return STOP_SPLIT if args.early_stop else DEFAULT_SPLIT
