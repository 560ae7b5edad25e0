"""The rows that a report is about: those on which the tiers that are compared can be compared.

Only choosing and checking lives here; what the rows come to is ``cascade.report.figures``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cascade.early_stop import Savings
from cascade.errors import InvalidInput, NotFound, PolicyMismatch
from cascade.policy import Policy
from cascade.records import Header, RecordSet, TierInfo
from cascade.rows import Bools, Floats
from cascade.task import Task
from cascade.verdicts import Verdicts, judge, ranked, saved


@dataclass(frozen=True, slots=True, eq=False)
class TierRows:
    """What one tier made of the rows. Arrays are float64 of shape ``[rows]``, NaN where not known.

    Arguments:
        right: 1 where the answer is right, 0 where it is wrong.
        latency_s, cost_usd, tokens: of each answer; tokens are read and written together.
    """

    info: TierInfo
    right: Floats
    latency_s: Floats
    cost_usd: Floats
    tokens: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Evaluated:
    """Rows with a scored and graded answer of the device and, if there is one, of the strong tier.

    Arguments:
        total: records in the set.
        left_out: why records are not among the rows, and how many.
        score: what the rows are ranked by, in [0, 1], shape ``[rows]``: the policy's calibrated
            confidence, 0 where the device has none, or the raw score where there is no policy.
        verdicts: what the policy does with the rows; ``None`` without one.
        saved: what its early stop saves; ``None`` without one.
        device: the tier whose answers may be kept.
        strong: the tier that is asked instead; ``None`` where the set has one tier.
        others: further tiers, for comparison; their columns may have gaps.
        groups: by name, what each row belongs to; empty where it belongs to nothing.
        documents: how many different ones the rows come from.
    """

    header: Header
    policy: Policy | None
    total: int
    left_out: Mapping[str, int]
    score: Floats
    verdicts: Verdicts | None
    saved: Savings | None
    device: TierRows
    strong: TierRows | None
    others: tuple[TierRows, ...]
    groups: Mapping[str, tuple[str, ...]]
    documents: int

    def __len__(self) -> int:
        return len(self.score)

    @property
    def score_name(self) -> str:
        """How ``score`` may be called: only a calibrated number is a confidence."""
        return "confidence" if self.policy else "raw score"

    @property
    def known(self) -> Bools:
        """Rows with a score of their own, shape ``[rows]``: calibration is about these."""
        if self.verdicts is None:
            return np.ones(len(self), np.bool_)
        return np.isfinite(self.verdicts.confidence)

    @property
    def stays(self) -> Bools:
        """Rows that stay on the device, unverified, where they are not kept: for little gain."""
        return np.zeros(len(self), np.bool_) if self.verdicts is None else self.verdicts.little_gain

    @property
    def tiers(self) -> tuple[TierRows, ...]:
        """The device's, the strong tier's, and the others."""
        return (self.device, *((self.strong,) if self.strong else ()), *self.others)


def evaluate(
    records: RecordSet, policy: Policy | None = None, *, tier: str = "", strong: str = ""
) -> Evaluated:
    """Choose the rows, and check that the policy may judge them.

    Arguments:
        tier: the device's name among the tiers; by default the first of kind ``device``.
        strong: the tier that is asked instead; by default the highest.

    Raises:
        NotFound: there is no such tier.
        PolicyMismatch: the policy is for another model or adapter than the records.
        InvalidInput: both names are the same tier, no row can be compared, a grade is neither
            right nor wrong, or the policy is for another wording or way of scoring.
    """
    names = _names(records.header, tier, strong)
    device = names[0]
    score, statuses = records.column(device, "raw_score"), records.answered(device)
    grades = {name: records.correct(name) for name in names}
    for name, grade in grades.items():
        if between := int(np.sum((grade > 0) & (grade < 1))):
            raise InvalidInput(
                f"tier {name}",
                f"{between} of its grades lie between wrong and right, which a report cannot count",
            )
    reasons = {
        f"{device} gave no answer": ~statuses,
        f"the answer of {device} was not graded": np.isnan(grades[device]),
        f"the answer of {device} has no score": np.isnan(score),
    }
    if len(names) > 1:
        reasons[f"no graded answer of {names[1]}"] = np.isnan(grades[names[1]])
    used = np.ones(len(records), np.bool_)
    left_out: dict[str, int] = {}
    for reason, where in reasons.items():
        if count := int(np.sum(where & used)):
            left_out[reason] = count
        used &= ~where
    if not used.any():
        raise InvalidInput(
            "records", f"none can be used: {', '.join(f'{n} × {r}' for r, n in left_out.items())}"
        )
    rows = records.take(used)
    if policy is not None:
        _check_policy(policy, rows, device)
    scores = rows.column(device, "raw_score")
    verdicts = judge(policy, rows, device) if policy is not None else None
    columns = [_columns(rows, name) for name in (*names, *_others(rows, names))]
    return Evaluated(
        header=records.header,
        policy=policy,
        total=len(records),
        left_out=left_out,
        score=scores if verdicts is None else ranked(verdicts.confidence),
        verdicts=verdicts,
        saved=None if policy is None or verdicts is None else saved(policy, rows, device, verdicts),
        device=columns[0],
        strong=columns[1] if len(names) > 1 else None,
        others=tuple(columns[len(names) :]),
        groups={name: tuple(rows.group(name)) for name in rows.group_names},
        documents=len(set(rows.documents)),
    )


def _names(header: Header, tier: str, strong: str) -> tuple[str, ...]:
    """The device's tier and, where there is one, the strong one."""
    known = header.tier_names
    for name in (tier, strong):
        if name and name not in known:
            raise NotFound(f"no tier {name!r}; there are {', '.join(known)}")
    on_device = [info.name for info in header.tiers if info.kind == "device"]
    device = tier or (on_device[0] if on_device else known[0])
    higher = [name for name in known if name != device]
    if strong == device:
        raise InvalidInput("strong", f"{strong} is the tier whose answers it would replace")
    return (device, strong or higher[-1]) if higher else (device,)


def _others(rows: RecordSet, names: tuple[str, ...]) -> list[str]:
    """Further tiers that are graded right or wrong on every row: else they were not compared."""
    return [
        name
        for name in rows.tiers
        if name not in names and np.isin(rows.correct(name), (0.0, 1.0)).all()
    ]


def _columns(rows: RecordSet, name: str) -> TierRows:
    (info,) = (info for info in rows.header.tiers if info.name == name)
    return TierRows(
        info,
        right=rows.correct(name),
        latency_s=rows.column(name, "latency_s"),
        cost_usd=rows.column(name, "cost_usd"),
        tokens=rows.column(name, "prompt_tokens") + rows.column(name, "completion_tokens"),
    )


def _check_policy(policy: Policy, rows: RecordSet, device: str) -> None:
    """Refuse a policy whose confidence would mean nothing on these rows."""
    (info,) = (info for info in rows.header.tiers if info.name == device)
    for what, mine, theirs in (
        ("base model", policy.base_digest, info.base_digest),
        ("adapter", policy.adapter_digest, info.adapter_digest),
    ):
        # Without the base's digest nothing is known of what ran, and the page says so.
        if info.base_digest and mine != theirs:
            raise PolicyMismatch(
                f"the policy is for the {what} {_short(mine)}, but {device} ran {_short(theirs)}; "
                "record again with the one that the policy is for",
            )
    wording = rows.header.wording
    if not rows.header.options and wording is None and policy.task.options:
        raise InvalidInput("policy", "is for a closed set, and the records are of free text")
    if wording is not None and _on_device(wording) != _on_device(policy.task):
        raise InvalidInput(
            "policy", "is for another wording or other options than those of the records"
        )
    modes = rows.texts(device, "option_mode")
    if other := sum(mode not in ("", policy.confidence.mode) for mode in modes):
        raise InvalidInput(
            "policy",
            f"is fitted to scores of {policy.confidence.mode} mode, "
            f"but {other} records were scored in the other",
        )


def _on_device(task: Task) -> tuple[object, ...]:
    """What of a wording decides the device's scores."""
    return (
        frozenset(task.options),
        task.device_prompt,
        task.option_prefix,
        task.prior_correction,
        task.examples,
    )


def _short(digest: str) -> str:
    return f"{digest[:12]}…" if digest else "(none)"
