"""Records and targets in, a policy with its certificate out: ``cascade tune`` as functions.

The way is that of the demo. *Develop* fits the calibrator and places the grid; *certify* chooses
the threshold and nothing else; *test* is looked at once, by ``examine``. What the targets mean is
``cascade.certify.targets``; ladders of more than two tiers are ``cascade.ladder``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from cascade import certify
from cascade.calibrate import fit_isotonic, fit_platt
from cascade.certificate import Certificate, Kind, Method, Refusal
from cascade.certify import Target, certify_groups, certify_targets, plan_targets
from cascade.confidence import ConfidenceModel, Feature
from cascade.errors import InfeasibleTarget, InvalidInput
from cascade.features import of_records
from cascade.metrics import clopper_pearson_interval
from cascade.pair import Pair
from cascade.policy import Policy
from cascade.rows import Bools, Floats
from cascade.selection import select_confidence
from cascade.task import Task

Calibrator = Literal["platt", "isotonic", "best"]
"""A map of the raw score; or ``best``: Platt's map or all features, see ``cascade.selection``."""

AIMS: Final[dict[str, Kind]] = {
    "risk": "selective_risk",
    "excess": "excess_error",
    "net": "net_error",
    "escalation": "escalation_share",
    "cost": "cost_usd",
    "deadline": "deadline_misses",
}
"""How targets are called on the command line."""

_LOCAL: Final = ("selective_risk", "escalation_share")
_RISKS: Final = ("selective_risk", "excess_error", "net_error")


@dataclass(frozen=True, slots=True)
class Aim:
    """A target before it meets any rows.

    Arguments:
        kind, alpha: as in ``cascade.certify``.
        method: of the p-values; ``None`` for the target's default.
        most_usd: what no request can cost; needed for ``cost_usd``.
        deadline_s: needed for ``deadline_misses``.
    """

    kind: Kind
    alpha: float
    method: Method | None = None
    most_usd: float | None = None
    deadline_s: float | None = None

    def target(self, rows: Pair) -> Target:
        """This target on these rows.

        Raises:
            InvalidInput: the rows lack what it takes, or a number is out of range.
        """
        method: dict[str, Method] = {} if self.method is None else {"method": self.method}
        if self.kind == "selective_risk":
            return certify.selective_risk(rows.correct, alpha=self.alpha, **method)
        if self.kind == "escalation_share":
            return certify.escalation_share(len(rows), alpha=self.alpha)
        cloud, cloud_correct = self._cloud(rows)
        if self.kind == "excess_error":
            return certify.excess_error(rows.correct, cloud_correct, alpha=self.alpha, **method)
        if self.kind == "net_error":
            return certify.net_error(rows.correct, cloud_correct, alpha=self.alpha, **method)
        if self.kind == "cost_usd":
            if self.most_usd is None:
                raise InvalidInput(
                    "most-usd", "is missing; a cost target needs a bound on one request"
                )
            local = rows.column(rows.local, "cost_usd")
            device = np.zeros(len(rows)) if local is None else _whole(rows.local, "cost_usd", local)
            remote = device + _measured(rows, cloud, "cost_usd")
            return certify.cost_usd(
                remote, alpha=self.alpha, most=self.most_usd, local=device, **method
            )
        if self.deadline_s is None:
            raise InvalidInput("deadline-s", "is missing; a deadline target needs the seconds")
        local_s = _measured(rows, rows.local, "latency_s")
        both_s = local_s + _measured(rows, cloud, "latency_s")
        return certify.deadline_misses(
            local_s > self.deadline_s, both_s > self.deadline_s, alpha=self.alpha
        )

    def _cloud(self, rows: Pair) -> tuple[str, Bools]:
        if rows.cloud is None or rows.cloud_correct is None:
            raise InvalidInput(
                "target",
                f"{self.name} needs a second tier, and the records have {rows.local} alone",
            )
        return rows.cloud, rows.cloud_correct

    @property
    def alone(self) -> bool:
        """Whether it asks nothing of the tiers above."""
        return self.kind in _LOCAL

    @property
    def name(self) -> str:
        """As the command line calls it."""
        return next(name for name, kind in AIMS.items() if kind == self.kind)


@dataclass(frozen=True, slots=True)
class Observed:
    """What the test part shows of one promise.

    Arguments:
        kind, alpha: the promise's.
        rows: over which the mean goes.
        observed: the mean loss; ``None`` where no row counts.
        interval: two-sided 95 %: exact for 0/1 losses (Clopper and Pearson 1934), else the normal
            approximation. Rows are taken as independent.
    """

    kind: Kind
    alpha: float
    rows: int
    observed: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Tested:
    """A policy on the test part.

    Arguments:
        n, accepted: rows, and those answered locally.
        promises: what is seen of each target.
        accuracy, local_accuracy, cloud_accuracy: of the cascade and of each side alone; the first
            and the last ``None`` without a cloud tier.
    """

    n: int
    accepted: int
    promises: tuple[Observed, ...]
    local_accuracy: float
    accuracy: float | None
    cloud_accuracy: float | None

    @property
    def coverage(self) -> float:
        """Share answered locally."""
        return self.accepted / self.n


@dataclass(frozen=True, slots=True)
class Tuned:
    """A policy and how it came about.

    Arguments:
        policy: with a threshold and its certificate, or with neither: then everything escalates.
        refusal: why there is no threshold; ``None`` exactly where there is one.
        group: whose policy it is; ``None`` for that of all rows.
    """

    policy: Policy
    refusal: Refusal | None
    group: str | None = None


def tune(
    develop: Pair,
    fresh: Pair,
    aims: Sequence[Aim],
    *,
    delta: float,
    task: Task,
    calibrator: Calibrator = "platt",
) -> Tuned:
    """One policy for all rows.

    Arguments:
        develop, fresh: rows of the parts *develop* and *certify*, which share nothing.
        aims: what is to hold, all at once.
        delta: tolerated probability that any of it does not, in (0, 1).
        task: the wording by which the rows were made.

    Raises:
        InvalidInput: the rows cannot be used for this; what is wrong is named. A target that cannot
            be certified is not an error: the policy then keeps nothing, and ``refusal`` says why.
        CascadeError: scipy or scikit-learn is missing.
    """
    model = _calibrated(develop, fresh, calibrator)
    confidence = model.of_records(develop.records, develop.local)
    targets = [aim.target(develop) for aim in aims]
    grid = plan_targets(confidence, targets, rows=len(fresh), delta=delta, rising=goes_up(aims))
    certificate, refusal = None, None
    try:
        certificate = certify_targets(
            model.of_records(fresh.records, fresh.local),
            [aim.target(fresh) for aim in aims],
            delta=delta,
            grid=grid,
        )
    except InfeasibleTarget as problem:
        refusal = Refusal(str(problem), problem.labels_needed)
    return Tuned(_policy(develop, task, model, certificate), refusal)


def tune_groups(
    develop: Pair,
    fresh: Pair,
    aims: Sequence[Aim],
    group: str,
    *,
    delta: float,
    task: Task,
    calibrator: Calibrator = "platt",
) -> tuple[Tuned, ...]:
    """A policy for each value of a group, by name; all their promises hold at once.

    The calibrator is one, fitted on all develop rows; each group has a grid of its own, and a share
    of delta (``certify_groups``). A group's policy is for the task ``TASK.VALUE``.

    Raises:
        NotFound: no record has this group.
        InvalidInput, CascadeError: as for ``tune``.
    """
    model = _calibrated(develop, fresh, calibrator)
    confidence = model.of_records(develop.records, develop.local)
    planned, names = np.asarray(develop.records.group(group)), fresh.records.group(group)
    counts = dict(
        zip(*(each.tolist() for each in np.unique(names, return_counts=True)), strict=True)
    )
    targets = [aim.target(develop) for aim in aims]
    grids: dict[str, Floats] = {}
    for name, rows in counts.items():
        mine = np.flatnonzero(planned == name)
        # A group that develop has not seen is planned by the rows of all.
        mine = mine if len(mine) else np.arange(len(develop))
        grids[name] = plan_targets(
            confidence[mine],
            [target.take(mine) for target in targets],
            rows=rows,
            delta=delta / len(counts),
            rising=goes_up(aims),
        )
    found = certify_groups(
        model.of_records(fresh.records, fresh.local),
        [aim.target(fresh) for aim in aims],
        names,
        delta=delta,
        grids=grids,
    )
    return tuple(
        Tuned(
            _policy(
                develop,
                dataclasses.replace(task, task_id=f"{task.task_id}.{name}"),
                model,
                found.certificates.get(name),
            ),
            found.refused.get(name),
            name,
        )
        for name in counts
    )


def examine(rows: Pair, aims: Sequence[Aim], policy: Policy) -> Tested:
    """What a policy does on rows that had no part in it."""
    accepted = keeps(policy, rows)
    cloud = rows.cloud_correct
    return Tested(
        n=len(rows),
        accepted=int(accepted.sum()),
        promises=tuple(observe(aim.target(rows), accepted) for aim in aims),
        local_accuracy=float(rows.correct.mean()),
        accuracy=None if cloud is None else float(np.where(accepted, rows.correct, cloud).mean()),
        cloud_accuracy=None if cloud is None else float(cloud.mean()),
    )


def keeps(policy: Policy, rows: Pair) -> Bools:
    """Which local answers a policy accepts, shape ``[rows]``."""
    if policy.threshold is None:
        return np.zeros(len(rows), np.bool_)
    accepted: Bools = policy.confidence.of_records(rows.records, rows.local) >= policy.threshold
    return accepted


def observe(target: Target, accepted: Bools) -> Observed:
    """The mean loss when just these rows are answered locally, with its interval."""
    losses = (
        target.local[accepted]
        if target.accepted_only
        else np.where(accepted, target.local, target.escalated)
    )
    n = len(losses)
    if not n:
        return Observed(target.kind, target.alpha, 0, None, None)
    mean = float(losses.mean())
    if target.low == 0 and ((losses == 0) | (losses == 1)).all():
        interval = clopper_pearson_interval(int(losses.sum()), n)
    else:
        half = 1.96 * float(losses.std()) / math.sqrt(n)
        interval = (max(target.low, mean - half), min(target.high, mean + half))
    return Observed(target.kind, target.alpha, n, mean, interval)


def goes_up(aims: Sequence[Aim]) -> bool:
    """Whether thresholds are tested from the lowest up: where no target bounds an error, the most
    escalation is wanted that the others allow."""
    return not any(aim.kind in _RISKS for aim in aims)


def _calibrated(develop: Pair, fresh: Pair, calibrator: Calibrator) -> ConfidenceModel:
    if develop.mode() != fresh.mode():
        raise InvalidInput(
            "records",
            f"develop has {develop.mode()} scores, certify {fresh.mode()}; record both alike",
        )
    fit = fit_isotonic if calibrator == "isotonic" else fit_platt
    feature: Feature = "search_bound" if develop.mode() == "search" else "raw_score"
    try:
        if calibrator == "best":
            documents = develop.records.documents
            features = of_records(develop.records, develop.local).complete()
            return select_confidence(
                features, develop.correct, feature=feature, documents=documents
            ).model
        return fit(develop.score, develop.correct, feature=feature)
    except InvalidInput as problem:
        raise InvalidInput(f"develop.{problem.field}", problem.problem) from None


def _policy(
    develop: Pair, task: Task, model: ConfidenceModel, certificate: Certificate | None
) -> Policy:
    (tier,) = (tier for tier in develop.records.header.tiers if tier.name == develop.local)
    return Policy(
        task=task,
        base_digest=tier.base_digest,
        adapter_digest=tier.adapter_digest,
        confidence=model,
        threshold=certificate.threshold if certificate else None,
        certificate=certificate,
    )


def _measured(rows: Pair, tier: str, name: str) -> Floats:
    values = rows.column(tier, name)
    if values is None:
        raise InvalidInput("target", f"needs {name} of {tier}, which the records do not have")
    return _whole(tier, name, values)


def _whole(tier: str, name: str, values: Floats) -> Floats:
    if missing := int(np.isnan(values).sum()):
        raise InvalidInput("target", f"needs {name} of {tier}, and {missing} records lack it")
    return values
