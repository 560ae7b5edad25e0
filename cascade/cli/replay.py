"""``cascade replay``: apply a policy to records, and print every figure with its interval."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cascade import home
from cascade.cli.tune_print import missing_line, savings_json, savings_line
from cascade.errors import NotFound, UnknownPublisher
from cascade.ladder import LadderPolicy, describe, is_ladder, ladder_rows
from cascade.pair import Pair, pair
from cascade.policy import Policy
from cascade.records import load
from cascade.replay import (
    LADDER_UNITS,
    UNITS,
    Checked,
    Interval,
    Replayed,
    check_fits,
    replay,
    replay_ladder,
)
from cascade.signing import TrustStore

_TITLES: Final[dict[str, tuple[str, ...]]] = {
    "decision": (
        *(
            "coverage",
            "unverified",
            "escalated",
            "selective_risk",
            "local_accuracy",
            "accuracy",
            "cloud_accuracy",
        ),
        *("excess_error", "net_error", "pgr"),
    ),
    "order": (
        *("auroc", "aurc", "deferral_auc", "deferral_auc_random", "deferral_auc_oracle"),
        *("deferral_auc_normalised", "deferral_auc_by_gain", "deferral_auc_by_gain_normalised"),
        *("deferral_auc_gain_lead", "apgr", "cpt_50", "cpt_80", "aiq"),
    ),
    "calibration": ("ece", "brier"),
    "time": tuple(name for name in UNITS if UNITS[name] == "s"),
    "use": tuple(name for name in UNITS if UNITS[name] in ("$", "B", "tokens", "tokens/B")),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("policy", type=Path, metavar="POLICY", help="as cascade tune wrote it")
    parser.add_argument("records", type=Path, metavar="RECORDS", help=".jsonl or .parquet")
    parser.add_argument("--tier", metavar="NAME", help="whose answers are judged (the lowest)")
    parser.add_argument("--cloud-tier", metavar="NAME", help="where it escalates (the next one up)")
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=1000,
        metavar="N",
        help="resamples by document, for the intervals; 0 for none (default 1000)",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the resamples (default 1)")
    parser.add_argument(
        "--deadline-s", type=float, metavar="S", help="what a promise on deadlines is about"
    )
    parser.add_argument(
        "--anyway",
        action="store_true",
        help="replay a policy that is for another model, adapter or wording than the records'",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Replay and print."""
    try:
        data = args.policy.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise NotFound(f"there is no policy {args.policy}") from None
    signed_by = _signed_by(args.policy, data)
    if is_ladder(data):
        return _run_ladder(args, LadderPolicy.from_bytes(data), signed_by)
    policy, records = Policy.from_bytes(data), load(args.records)
    rows = pair(records, local=args.tier, cloud=args.cloud_tier)
    if not args.anyway:
        check_fits(policy, records.header, rows)
    found = replay(
        policy, rows, replicates=args.bootstrap, seed=args.seed, deadline_s=args.deadline_s
    )
    if args.json:
        print(json.dumps(_json(policy, rows, found, signed_by)))
    else:
        for line in _lines(policy, rows, found, signed_by):
            print(line)
    return 0


def _run_ladder(args: argparse.Namespace, policy: LadderPolicy, signed_by: str | None) -> int:
    records = load(args.records)
    if not args.anyway:
        policy.check_fits(records.header)
    rows = ladder_rows(records, [tier.name for tier in policy.tiers])
    documents = rows.records.document_numbers()
    figures = replay_ladder(policy, rows, documents, replicates=args.bootstrap, seed=args.seed)
    units = {name: LADDER_UNITS.get(name, "share") for name in figures}
    if args.json:
        content = {
            "task": policy.task_id,
            "ladder": policy.ladder.to_json(),
            "signed_by": signed_by,
            "n": len(rows),
            "documents": int(documents.max()) + 1,
            "left_out": rows.left_out,
            "figures": {name: _figure_json(each, units[name]) for name, each in figures.items()},
        }
        print(json.dumps(content))
        return 0
    print(f"ladder      {describe(policy.ladder)} · {_signature(signed_by)}")
    print(f"records     {len(rows)} rows of {int(documents.max()) + 1} documents")
    if rows.left_out:
        print(f"left out    {rows.left_out} rows without a graded answer of every tier")
    for name in figures:
        print(f"  {_figure(name, figures, units[name])}")
    return 0


def _signed_by(path: Path, data: bytes) -> str | None:
    """Who signed, ``""`` for somebody who is not pinned here, ``None`` without a signature.

    Raises:
        Tampered: the signature does not fit.
    """
    try:
        signature = path.with_suffix(".sig").read_bytes()
    except FileNotFoundError:
        return None
    try:
        return TrustStore(home.trust_dir()).verify(data, signature, what=path.name)
    except UnknownPublisher:
        return ""


def _json(policy: Policy, rows: Pair, found: Replayed, signed_by: str | None) -> dict[str, object]:
    return {
        "task": policy.task.task_id,
        "tier": rows.local,
        "cloud_tier": rows.cloud,
        "signed_by": signed_by,
        "threshold": policy.threshold,
        "n": found.n,
        "accepted": found.accepted,
        "unverified": found.unverified,
        "unmeasured": found.unmeasured,
        "min_gain": policy.min_gain,
        "early_stop": savings_json(found.saved),
        "documents": found.documents,
        "left_out": rows.left_out,
        "figures": {name: _figure_json(each, _unit(name)) for name, each in found.figures.items()},
        "promises": [dataclasses.asdict(checked) for checked in found.promises],
        "reliability": [
            {name: _finite(value) for name, value in dataclasses.asdict(bar).items()}
            for bar in found.diagram
        ],
    }


def _figure_json(interval: Interval, unit: str) -> dict[str, object]:
    both = interval.low is not None
    return {
        "value": _finite(interval.value),
        "ci": [interval.low, interval.high] if both else None,
        "unit": unit,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _signature(signed_by: str | None) -> str:
    if signed_by is None:
        return "not signed"
    return f"signed by {signed_by or 'a publisher that is not pinned here'}"


def _unit(name: str) -> str:
    return UNITS.get(name, "share")


def _lines(policy: Policy, rows: Pair, found: Replayed, signed_by: str | None) -> list[str]:
    threshold = (
        "keeps nothing" if policy.threshold is None else f"keeps from {policy.threshold:.4f}"
    )
    above = f" → {rows.cloud}" if rows.cloud else ""
    lines = [
        f"policy      {policy.task.task_id} · {threshold} · {_signature(signed_by)}",
        f"records     {rows.local}{above} · {found.n} rows of {found.documents} documents",
        *(f"left out    {number} rows: {why}" for why, number in rows.left_out.items()),
    ]
    if found.unmeasured:
        lines.append(
            f"unmeasured  {found.unmeasured} rows have no confidence, so they are not kept: "
            + missing_line(policy.confidence, rows.records, rows.local)
        )
    if policy.min_gain is not None:
        lines.append(
            f"little gain {found.unverified} of {found.n} rows stay unverified: escalating them is "
            f"expected to gain less than {policy.min_gain:g}; neither kept nor escalated"
        )
    if found.saved is not None:
        lines.append(f"early stop  {savings_line(found.saved)}")
    lines += [f"promise     {_promise(checked)}" for checked in found.promises]
    handoffs = tuple(name for name in found.figures if name not in UNITS)
    for title, names in ({**_TITLES, "order": (*_TITLES["order"], *handoffs)}).items():
        shown = [name for name in names if name in found.figures]
        lines += ["", title] if shown else []
        lines += [f"  {_figure(name, found.figures, _unit(name))}" for name in shown]
    return lines


def _figure(name: str, figures: Mapping[str, Interval], unit: str) -> str:
    each = figures[name]
    if math.isnan(each.value):
        return f"{name:<30} –"
    interval = "" if each.low is None else f"  [{each.low:.4g}, {each.high:.4g}]"
    return f"{name:<30} {each.value:<10.4g} {unit:<9}{interval}".rstrip()


def _promise(checked: Checked) -> str:
    promise, seen = checked.promise, checked.observed
    text = f"{promise.kind} ≤ {promise.alpha:g}"
    if seen is None:
        return f"{text}: the records do not show it (a deadline needs --deadline-s)"
    if seen.observed is None or seen.interval is None:
        return f"{text}: no row counts"
    low, high = seen.interval
    verdict = "kept here"
    if checked.violated:
        verdict = "above it here"
    if checked.refuted:
        verdict = "REFUTED here: these inputs are not those it was certified for"
    return f"{text}: {seen.observed:.4g} [{low:.4g}, {high:.4g}] of {seen.rows} · {verdict}"
