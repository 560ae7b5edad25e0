"""What a set of records comes to, tier by tier."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from cascade.metrics import percentile, wilson_interval
from cascade.records.outcome import OK
from cascade.records.record_set import RecordSet
from cascade.rows import Floats


@dataclass(frozen=True, slots=True)
class TierSummary:
    """One tier. Means are over the outcomes that have the number, ``None`` where none has.

    Arguments:
        answered: records with an answer of this tier; ``failed`` those with another status, by
            status; ``missing`` those in which it was not asked.
        graded: answers that are known to be right or wrong, or in between.
        accuracy: mean grade. ``accuracy_ci``: its 95 % Wilson interval, ``None`` where a grade lies
            between 0 and 1.
        cost_usd: of all answers together.
    """

    name: str
    model: str
    answered: int
    failed: dict[str, int]
    missing: int
    graded: int
    accuracy: float | None
    accuracy_ci: tuple[float, float] | None
    mean_latency_s: float | None
    p95_latency_s: float | None
    mean_prompt_tokens: float | None
    mean_completion_tokens: float | None
    mean_bytes_up: float | None
    cost_usd: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """A set of records.

    Arguments:
        documents, inputs: how many different ones there are.
        groups: for each group, how many records have which value.
    """

    n: int
    documents: int
    inputs: int
    task_id: str
    grader: str
    groups: dict[str, dict[str, int]]
    tiers: tuple[TierSummary, ...]


def summarise(records: RecordSet) -> Summary:
    """Count and average."""
    return Summary(
        n=len(records),
        documents=len(set(records.documents)),
        inputs=len(set(records.inputs)),
        task_id=records.header.task_id,
        grader=records.header.grader,
        groups={
            name: dict(sorted(Counter(records.group(name)).items())) for name in records.group_names
        },
        tiers=tuple(_tier(records, tier.name, tier.model) for tier in records.header.tiers),
    )


def _tier(records: RecordSet, name: str, model: str) -> TierSummary:
    statuses = Counter(records.texts(name, "status"))
    answered, missing = statuses.pop(OK, 0), statuses.pop("", 0)
    grades = _known(records.correct(name))
    latencies = _known(records.column(name, "latency_s")[records.answered(name)])
    costs = _known(records.column(name, "cost_usd"))
    return TierSummary(
        name=name,
        model=model,
        answered=answered,
        failed=dict(sorted(statuses.items())),
        missing=missing,
        graded=len(grades),
        accuracy=_mean(grades),
        accuracy_ci=_interval(grades),
        mean_latency_s=_mean(latencies),
        p95_latency_s=percentile(latencies, 95) if len(latencies) else None,
        mean_prompt_tokens=_mean(_known(records.column(name, "prompt_tokens"))),
        mean_completion_tokens=_mean(_known(records.column(name, "completion_tokens"))),
        mean_bytes_up=_mean(_known(records.column(name, "bytes_up"))),
        cost_usd=float(costs.sum()) if len(costs) else None,
    )


def _interval(grades: Floats) -> tuple[float, float] | None:
    if not len(grades) or not np.isin(grades, (0.0, 1.0)).all():
        return None
    return wilson_interval(int(grades.sum()), len(grades))


def _known(values: Floats) -> Floats:
    return values[~np.isnan(values)]


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None
