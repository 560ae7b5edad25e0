"""``cascade tune --ladder``: search the thresholds of a ladder, and show what can be had."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cascade.cli.tune_arguments import default_split, may_leak
from cascade.cli.tune_files import install, read_parts, refuse_existing, sign
from cascade.cli.tune_print import certified
from cascade.errors import InfeasibleTarget, InvalidInput
from cascade.ladder import (
    LadderPolicy,
    LadderRows,
    Scored,
    Searched,
    describe,
    ladder_rows,
    read_objective,
    score,
    search,
)
from cascade.ladder.device import DeviceRung
from cascade.metrics import wilson_interval
from cascade.policy import check_task_id

_SHOWN = 12
_COLUMNS = ("accuracy", "p95", "cost", "leave")


def run(args: argparse.Namespace) -> int:
    """Search, certify, print, write; 6 where the limits could not be certified."""
    for option in ("target", "group", "method", "tier", "cloud_tier", "deadline_s"):
        if getattr(args, option) is not None:
            raise InvalidInput(
                option.replace("_", "-"), "is not for ladders; say it in --objective"
            )
    if args.drafting is not None:
        raise InvalidInput("drafting", "is not for ladders, which send no drafts; leave it out")
    for option in ("gain", "early_stop", "compare", "feature", "params", "min_gain"):
        if getattr(args, option):
            raise InvalidInput(
                option.replace("_", "-"), "is not for ladders, which go by scores alone"
            )
    if args.confidence not in (None, "score"):
        raise InvalidInput(
            "confidence",
            f"{args.confidence} is not for ladders: their tiers are compared by calibrated scores",
        )
    if args.objective is None:
        raise InvalidInput("objective", "is missing, e.g. --objective 'min cost s.t. risk<=0.1'")
    objective, leaky = read_objective(args.objective), may_leak(args)
    refuse_existing(args.out, force=args.force)
    parts = read_parts(
        args.records, args.split or default_split(args), args.seed, allow_leak=args.allow_leak
    )
    tiers = [name.strip() for name in args.ladder.split(",")]
    rows = {name: ladder_rows(part, tiers) for name, part in parts.items()}
    header = parts["develop"].header
    task_id = args.task or header.task_id or (header.wording.task_id if header.wording else "")
    if args.install:
        check_task_id(task_id)
    found = search(
        rows["develop"],
        rows["certify"],
        objective,
        delta=args.delta,
        task_id=task_id,
        most_usd=args.most_usd,
    )
    signed_by = sign(found.policy.to_bytes(), args.out, args.key) if args.out else None
    installed = _installed(found.policy, args.key) if args.install else None
    test = score(rows["test"], found.policy.follow(rows["test"])) if "test" in rows else None
    if args.json:
        written = {"installed": str(installed.path) if installed and installed.path else None}
        print(json.dumps(_json(args, rows, found, test, signed_by, leaky=leaky) | written))
    else:
        for line in _lines(args, rows, found, test, signed_by, leaky=leaky):
            print(line)
        if installed is not None:
            print(installed.line)
    return InfeasibleTarget.exit_code if found.refusal else 0


@dataclass(frozen=True, slots=True)
class _Installed:
    """Where a ladder went, and what is said of it; ``path`` is ``None`` where it went nowhere."""

    path: Path | None
    line: str


def _installed(policy: LadderPolicy, key: Path | None) -> _Installed:
    try:
        rung = DeviceRung.of(policy)
    except InvalidInput as problem:
        return _Installed(None, f"not installed: the {problem.field} {problem.problem}")
    path = install(rung, key)
    return _Installed(path, f"installed   {path}")


def _json(
    args: argparse.Namespace,
    rows: dict[str, LadderRows],
    found: Searched,
    test: dict[str, float] | None,
    signed_by: str | None,
    *,
    leaky: bool,
) -> dict[str, object]:
    certificate = found.policy.certificate
    return {
        "objective": found.policy.objective,
        "delta": args.delta,
        "parts": {name: len(part) for name, part in rows.items()},
        "left_out": {name: part.left_out for name, part in rows.items()},
        "leaky": leaky,
        "feasible": found.refusal is None,
        "refusal": found.refusal,
        "ladder": found.policy.ladder.to_json(),
        "certificate": dataclasses.asdict(certificate) if certificate else None,
        "candidates": len(found.scored),
        "develop_rows": found.rows,
        "front": [_scored_json(found.scored[place]) for place in found.front],
        "sequence": [_scored_json(found.scored[place]) for place in found.sequence],
        "test": _finite(test) if test else None,
        "test_accuracy_ci": _accuracy_interval(rows, test),
        "file": str(args.out) if args.out else None,
        "signed_by": signed_by,
    }


def _scored_json(scored: Scored) -> dict[str, object]:
    return {"ladder": scored.ladder.to_json(), "figures": _finite(dict(scored.figures))}


def _finite(figures: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def _accuracy_interval(
    rows: dict[str, LadderRows], test: dict[str, float] | None
) -> tuple[float, float] | None:
    if test is None:
        return None
    n = len(rows["test"])
    return wilson_interval(round(test["accuracy"] * n), n)


def _lines(
    args: argparse.Namespace,
    rows: dict[str, LadderRows],
    found: Searched,
    test: dict[str, float] | None,
    signed_by: str | None,
    *,
    leaky: bool,
) -> list[str]:
    lines = ["ladder      " + " · ".join(f"{name} {len(part)}" for name, part in rows.items())]
    lines += [
        f"left out    {name}: {part.left_out} rows without a graded answer of every tier"
        for name, part in rows.items()
        if part.left_out
    ]
    if leaky:
        lines.append("LEAKY       the files may share inputs (--allow-leak): nothing is promised")
    lines += [
        f"searched    {len(found.scored)} ladders on {found.rows} develop rows; "
        f"{len(found.front)} that no other beats:",
        f"            {'right':>7} {'p95 s':>8} {'$':>10} {'leave':>6}",
    ]
    shown = np.unique(np.linspace(0, len(found.front) - 1, _SHOWN).round().astype(int))
    lines += [f"            {_row(found.scored[found.front[i]])}" for i in shown]
    lines.append(f"wanted      {found.policy.objective}")
    certificate = found.policy.certificate
    if certificate is None:
        lines.append(f"refused     {found.refusal}")
        lines.append(f"            everything goes to {found.policy.ladder.tiers[-1]}")
    else:
        lines.append(f"chosen      {describe(found.policy.ladder)}")
        for bound in certificate.bounds:
            seen = f"{bound.observed:.4g}"
            if bound.alpha != bound.limit:
                seen = f"{bound.observed:.4g} of the answers later"
            lines.append(
                f"{certified(leaky=leaky)}{bound.figure} ≤ {bound.limit:g} "
                f"with {1 - certificate.delta:.4g} certainty · {seen} on {certificate.n} rows"
            )
    if test is not None:
        interval = _accuracy_interval(rows, test) or (math.nan, math.nan)
        lines.append(
            f"test        right {test['accuracy']:.4f} [{interval[0]:.4f}, {interval[1]:.4f}] · "
            f"p50 {test['p50']:.3g} s · p95 {test['p95']:.3g} s · ${test['cost']:.3g} a request · "
            f"{test['leave']:.1%} leave the device"
        )
    if args.out:
        lines.append(f"written     {args.out} · signed by {signed_by}…")
    return lines


def _row(scored: Scored) -> str:
    accuracy, p95, cost, leave = (scored.figures[name] for name in _COLUMNS)
    return f"{accuracy:7.4f} {p95:8.3f} {cost:10.3g} {leave:6.1%}  {describe(scored.ladder)}"
