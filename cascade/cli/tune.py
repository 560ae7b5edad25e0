"""``cascade tune``: records and targets in, a signed policy with its certificate out."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from cascade.certificate import Method
from cascade.cli import tune_ladder
from cascade.cli.tune_files import install, read_parts, refuse_existing, sign
from cascade.errors import InfeasibleTarget, InvalidInput
from cascade.pair import Pair, pair
from cascade.policy import check_task_id
from cascade.records import RecordSet
from cascade.task import Task
from cascade.tune import AIMS, Aim, Calibrator, Observed, Tested, Tuned, examine, tune, tune_groups

_DEFAULT_SPLIT = "develop=0.3,certify=0.5,test=0.2"


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
        "--calibrator", choices=get_args(Calibrator), default="platt", help="default platt"
    )
    parser.add_argument(
        "--most-usd", type=float, metavar="USD", help="what no request can cost, for limits on cost"
    )
    parser.add_argument(
        "--deadline-s", type=float, metavar="S", help="deadline target: when an answer is late"
    )
    parser.add_argument(
        "--split",
        default=_DEFAULT_SPLIT,
        metavar="NAME=SHARE,…",
        help=f"of the documents of one file (default {_DEFAULT_SPLIT})",
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
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Tune, print, write; 6 where a target could not be certified, after all else is done."""
    if args.ladder is not None:
        return tune_ladder.run(args)
    if args.objective is not None:
        raise InvalidInput("objective", "is for ladders; give --ladder device,tier1,tier2 too")
    aims = _aims(args)
    refuse_existing(args.out, force=args.force)
    parts = read_parts(args.records, args.split, args.seed, allow_leak=args.allow_leak)
    # Where nothing above is asked for, a cluster that failed costs no label; the test part shows
    # the whole cascade.
    alone = all(aim.alone for aim in aims)
    rows = {
        name: _pair(name, part, args.tier, args.cloud_tier, alone=alone and name != "test")
        for name, part in parts.items()
    }
    task = _task(args.task, rows["develop"])
    how = {"delta": args.delta, "task": task, "calibrator": args.calibrator}
    if args.group is None:
        policies: tuple[Tuned, ...] = (tune(rows["develop"], rows["certify"], aims, **how),)
    else:
        policies = tune_groups(rows["develop"], rows["certify"], aims, args.group, **how)
        for tuned in policies:
            check_task_id(tuned.policy.task.task_id)
    results = [
        Result(tuned, _tested(rows.get("test"), aims, tuned, args.group), *_written(args, tuned))
        for tuned in policies
    ]
    leaky = args.allow_leak and len(args.records) > 1
    if args.json:
        print(json.dumps(_json(args, rows, results, leaky=leaky)))
    else:
        for line in _lines(args, rows, results, leaky=leaky):
            print(line)
    return InfeasibleTarget.exit_code if any(r.tuned.refusal for r in results) else 0


@dataclass(frozen=True, slots=True)
class Result:
    """A policy, what the test part shows of it, and where it went."""

    tuned: Tuned
    test: Tested | None
    file: Path | None
    signed_by: str | None
    installed: Path | None


def _pair(name: str, part: RecordSet, tier: str | None, cloud: str | None, *, alone: bool) -> Pair:
    try:
        return pair(part, local=tier, cloud=cloud, alone=alone)
    except InvalidInput as problem:
        raise InvalidInput(f"{name}.{problem.field}", problem.problem) from None


def _aims(args: argparse.Namespace) -> tuple[Aim, ...]:
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


def _number(field: str, word: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidInput(field, f"{word!r} has no number after =, e.g. risk=0.1") from None


def _task(task_id: str | None, develop: Pair) -> Task:
    """The wording that the policy is for.

    Raises:
        InvalidInput: the records do not say what a policy must be bound to.
    """
    header = develop.records.header
    (tier,) = (tier for tier in header.tiers if tier.name == develop.local)
    if header.wording is None:
        raise InvalidInput(
            "records", "have no wording of a closed set, and a policy is for one; record --options"
        )
    if not tier.base_digest:
        raise InvalidInput("records", f"do not say which model {tier.name} was (base_digest)")
    name = task_id or header.task_id or header.wording.task_id
    if not name:
        raise InvalidInput("task", "is not named by the records; give --task ID")
    check_task_id(name)
    return dataclasses.replace(header.wording, task_id=name)


def _tested(
    rows: Pair | None, aims: Sequence[Aim], tuned: Tuned, group: str | None
) -> Tested | None:
    if rows is None:
        return None
    if group is not None:
        mine = np.flatnonzero(np.asarray(rows.records.group(group)) == tuned.group)
        if not len(mine):
            return None
        rows = rows.take(mine)
    return examine(rows, aims, tuned.policy)


def _written(args: argparse.Namespace, tuned: Tuned) -> tuple[Path | None, str | None, Path | None]:
    """The policy's file, who signed it, and where it is installed."""
    file, signed_by, installed = None, None, None
    if args.out is not None:
        file = args.out
        if tuned.group is not None:
            file = file.with_name(f"{file.stem}-{tuned.group}{file.suffix}")
        signed_by = sign(tuned.policy.to_bytes(), file, args.key)
    if args.install:
        installed = install(tuned.policy, args.key)
    return file, signed_by, installed


def _json(
    args: argparse.Namespace, rows: dict[str, Pair], results: Sequence[Result], *, leaky: bool
) -> dict[str, object]:
    develop = rows["develop"]
    return {
        "tier": develop.local,
        "cloud_tier": _cloud_tier(rows),
        "delta": args.delta,
        "parts": {name: len(part) for name, part in rows.items()},
        "left_out": {name: part.left_out for name, part in rows.items()},
        "leaky": leaky,
        "policies": [_result_json(result) for result in results],
    }


def _cloud_tier(rows: dict[str, Pair]) -> str | None:
    return next((part.cloud for part in rows.values() if part.cloud), None)


def _result_json(result: Result) -> dict[str, object]:
    policy, refusal, test = result.tuned.policy, result.tuned.refusal, result.test
    return {
        "task": policy.task.task_id,
        "group": result.tuned.group,
        "feasible": refusal is None,
        "threshold": policy.threshold,
        "confidence": policy.confidence.to_json(),
        "certificate": policy.certificate.to_json() if policy.certificate else None,
        "refusal": dataclasses.asdict(refusal) if refusal else None,
        "test": {**dataclasses.asdict(test), "coverage": test.coverage} if test else None,
        "file": str(result.file) if result.file else None,
        "signed_by": result.signed_by,
        "installed": str(result.installed) if result.installed else None,
    }


def _lines(
    args: argparse.Namespace, rows: dict[str, Pair], results: Sequence[Result], *, leaky: bool
) -> list[str]:
    develop = rows["develop"]
    cloud = _cloud_tier(rows)
    above = f" → {cloud}" if cloud else ""
    lines = [
        f"records     {develop.local}{above} · "
        + " · ".join(f"{name} {len(part)}" for name, part in rows.items())
    ]
    for name, part in rows.items():
        lines += [
            f"left out    {name}: {number} rows, {why}" for why, number in part.left_out.items()
        ]
    if leaky:
        lines.append("LEAKY       the files may share inputs (--allow-leak): nothing is promised")
    for result in results:
        lines += ["", *_result_lines(result, args.delta)]
    return lines


def _result_lines(result: Result, delta: float) -> list[str]:
    policy, refusal = result.tuned.policy, result.tuned.refusal
    lines = [f"policy      {policy.task.task_id}"]
    if policy.certificate is None:
        lines.append("            keeps nothing: everything escalates")
        if refusal is not None:
            lines.append(f"refused     {refusal.reason}")
    else:
        lines.append(
            f"            keep answers of confidence {policy.threshold:.4f} and above: "
            f"{policy.certificate.coverage:.1%} of the certify part"
        )
        lines += [
            f"certified   {_called(promise.kind)} ≤ {promise.alpha:g} with "
            f"{1 - policy.certificate.delta:.4g} certainty · seen {promise.observed:.4g} of "
            f"{promise.rows} · bound {promise.upper:.4g}"
            for promise in policy.certificate.promises
        ]
    if result.test is not None:
        lines += _test_lines(result.test)
    if result.file is not None:
        lines.append(f"written     {result.file} · signed by {result.signed_by}…")
    if result.installed is not None:
        lines.append(f"installed   {result.installed}")
    return lines


def _test_lines(test: Tested) -> list[str]:
    lines = [f"test        keeps {test.coverage:.1%} of {test.n}"]
    if test.accuracy is not None and test.cloud_accuracy is not None:
        lines[0] += (
            f" · right {test.accuracy:.4f} (alone: {test.local_accuracy:.4f}, "
            f"cloud {test.cloud_accuracy:.4f})"
        )
    return [*lines, *(f"            {_seen(promise)}" for promise in test.promises)]


def _seen(promise: Observed) -> str:
    if promise.observed is None or promise.interval is None:
        return f"{_called(promise.kind)}: no row counts"
    low, high = promise.interval
    return (
        f"{_called(promise.kind)} {promise.observed:.4g} [{low:.4g}, {high:.4g}] of {promise.rows}"
    )


def _called(kind: str) -> str:
    return next(name for name, value in AIMS.items() if value == kind)
