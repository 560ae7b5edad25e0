"""What ``cascade tune`` prints, as lines and as one JSON object."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cascade.confidence import ConfidenceModel
from cascade.early_stop import Savings
from cascade.pair import Pair
from cascade.records import RecordSet
from cascade.report.made_of import made_of
from cascade.tune import AIMS, Observed, Stopping, Tested, Tuned
from cascade.verdicts import unmeasured

_NAMED: Final = 5  # features that are listed; the policy has them all


@dataclass(frozen=True, slots=True)
class Result:
    """A policy, what the test part shows of it, and where it went."""

    tuned: Tuned
    test: Tested | None
    file: Path | None
    signed_by: str | None
    installed: Path | None


def result_object(
    rows: Mapping[str, Pair],
    results: Sequence[Result],
    delta: float,
    *,
    sizes: Mapping[str, int],
    leaky: bool,
) -> dict[str, object]:
    """Everything, as plain values.

    Arguments:
        sizes: how many rows each part has, that of an early stop included.
    """
    develop, model = rows["develop"], results[0].tuned.policy.confidence
    return {
        "tier": develop.local,
        "cloud_tier": _cloud_tier(rows),
        "delta": delta,
        "parts": dict(sizes),
        "unmeasured": {name: _missing(model, part) for name, part in rows.items()},
        "left_out": {name: part.left_out for name, part in rows.items()},
        "leaky": leaky,
        "policies": [_result_json(result) for result in results],
    }


def _cloud_tier(rows: Mapping[str, Pair]) -> str | None:
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
        "gain": policy.gain.to_json() if policy.gain else None,
        "min_gain": policy.min_gain,
        "early_stop": _stopping_json(result.tuned.stopping),
        "drafting": policy.drafting.to_json() if policy.drafting else None,
        "test": _test_json(test) if test else None,
        "file": str(result.file) if result.file else None,
        "signed_by": result.signed_by,
        "installed": str(result.installed) if result.installed else None,
    }


def _test_json(test: Tested) -> dict[str, object]:
    return {
        **dataclasses.asdict(test),
        "saved": savings_json(test.saved),
        "coverage": test.coverage,
    }


def savings_json(saved: Savings | None) -> dict[str, object] | None:
    """What an early stop saves, as plain values; ``None`` without one."""
    return {**dataclasses.asdict(saved), "saved": saved.saved} if saved else None


def _stopping_json(stopping: Stopping | None) -> dict[str, object] | None:
    if stopping is None:
        return None
    rule = stopping.rule
    certificate = rule.certificate if rule else None
    return {
        "rule": rule is not None,
        "threshold": rule.threshold if rule else None,
        "checkpoints": len(rule.checkpoints) if rule else 0,
        "certificate": certificate.to_json() if certificate else None,
        "problem": stopping.problem,
        "rows": stopping.rows,
    }


def result_lines(
    rows: Mapping[str, Pair],
    results: Sequence[Result],
    delta: float,
    *,
    sizes: Mapping[str, int],
    leaky: bool,
) -> list[str]:
    """Everything, as lines; arguments are those of ``result_object``."""
    develop, model = rows["develop"], results[0].tuned.policy.confidence
    cloud = _cloud_tier(rows)
    above = f" → {cloud}" if cloud else ""
    lines = [
        f"records     {develop.local}{above} · "
        + " · ".join(f"{name} {size}" for name, size in sizes.items())
    ]
    for name, part in rows.items():
        lines += [
            f"left out    {name}: {number} rows, {why}" for why, number in part.left_out.items()
        ]
    lines += [
        f"unmeasured  {name}: {_listed(missing)}; "
        + ("left out of the fit" if name == "develop" else "such rows are not kept")
        for name, part in rows.items()
        if (missing := _missing(model, part))
    ]
    if leaky:
        lines.append("LEAKY       the files may share inputs (--allow-leak): nothing is promised")
    for result in results:
        lines += ["", *_policy_lines(result, leaky=leaky)]
    return lines


def _policy_lines(result: Result, *, leaky: bool) -> list[str]:
    policy, refusal = result.tuned.policy, result.tuned.refusal
    lines = [
        f"policy      {policy.task.task_id}",
        f"            confidence of {made_of(policy.confidence)}",
    ]
    if policy.gain is not None:
        lines.append(f"            gain of escalating fitted{_min_gain(policy.min_gain)}")
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
            f"{certified(leaky=leaky)}{_called(promise.kind)} ≤ {promise.alpha:g} with "
            f"{1 - policy.certificate.delta:.4g} certainty · seen {promise.observed:.4g} of "
            f"{promise.rows} · bound {promise.upper:.4g}"
            for promise in policy.certificate.promises
        ]
    if result.tuned.stopping is not None:
        lines.append(f"early stop  {_stopping_line(result.tuned)}")
    if policy.drafting is not None:
        lines.append(f"drafts      {policy.drafting.words}")
    if result.test is not None:
        lines += _test_lines(result.test)
    if result.file is not None:
        lines.append(f"written     {result.file} · signed by {result.signed_by}…")
    if result.installed is not None:
        lines.append(f"installed   {result.installed}")
    return lines


def certified(*, leaky: bool) -> str:
    """What stands before a promise. Of parts that may share inputs none is worth anything."""
    return "worth none  " if leaky else "certified   "


def _test_lines(test: Tested) -> list[str]:
    lines = [f"test        keeps {test.coverage:.1%} of {test.n}"]
    if test.accuracy is not None and test.cloud_accuracy is not None:
        lines[0] += (
            f" · right {test.accuracy:.4f} (alone: {test.local_accuracy:.4f}, "
            f"cloud {test.cloud_accuracy:.4f})"
        )
    if test.unmeasured:
        lines.append(f"            {test.unmeasured} rows have no confidence; none is kept")
    if test.unverified:
        lines.append(
            f"            {test.unverified} rows stay unverified for little gain: neither kept nor "
            "escalated"
        )
    lines += [f"            {_seen(promise)}" for promise in test.promises]
    if test.saved is not None:
        lines.append(f"            early stop: {savings_line(test.saved)}")
    return lines


def missing_line(model: ConfidenceModel, records: RecordSet, tier: str) -> str:
    """Which features were not measured, and on how many rows."""
    return _listed(unmeasured(model.features, records, tier))


def savings_line(saved: Savings) -> str:
    """What an early stop saves, in words."""
    return (
        f"{saved.saved:.1%} of the local tokens of escalated answers saved ({saved.saved_tokens} "
        f"of {saved.wasted_tokens}) · {saved.stopped} stopped, {saved.wrongly} of them would have "
        "been kept"
    )


def _missing(model: ConfidenceModel, part: Pair) -> dict[str, int]:
    # Pairs have raw scores.
    return {} if model.scorer is None else unmeasured(model.features, part.records, part.local)


def _listed(missing: Mapping[str, int]) -> str:
    """Features by the number of rows that lack them, e.g. ``11 rows lack a, b``."""
    words = []
    for count in sorted(set(missing.values()), reverse=True):
        names = [name for name, number in missing.items() if number == count]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        words.append(f"{count} rows lack {', '.join(names[:_NAMED])}{more}")
    return ", ".join(words)


def _min_gain(least: float | None) -> str:
    return (
        "" if least is None else f"; unsure answers stay, unverified, where it is below {least:g}"
    )


def _stopping_line(tuned: Tuned) -> str:
    stopping = tuned.stopping
    if stopping is None or stopping.rule is None or tuned.policy.early_stop is None:
        return f"none: {stopping.problem if stopping and stopping.problem else 'nothing is kept'}"
    certificate = stopping.rule.certificate
    if certificate is None:
        return f"by the bound alone: {stopping.problem}"
    return (
        f"at most {certificate.lost:.3g} of the kept answers are lost, with "
        f"{1 - certificate.delta:.4g} certainty · seen {certificate.stopped} of "
        f"{certificate.kept} kept among {certificate.n}"
    )


def _seen(promise: Observed) -> str:
    if promise.observed is None or promise.interval is None:
        return f"{_called(promise.kind)}: no row counts"
    low, high = promise.interval
    return (
        f"{_called(promise.kind)} {promise.observed:.4g} [{low:.4g}, {high:.4g}] of {promise.rows}"
    )


def _called(kind: str) -> str:
    return next(name for name, value in AIMS.items() if value == kind)
