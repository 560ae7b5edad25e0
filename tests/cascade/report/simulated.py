"""A record set whose every figure can be recomputed: two tiers, two groups, costs and latencies."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from cascade.calibrate import fit_platt
from cascade.certify import certify, plan_grid
from cascade.errors import InfeasibleTarget
from cascade.policy import Policy
from cascade.records import Header, RecordSet, TierInfo, from_columns
from cascade.task import Task

HOSTILE = "</script><script>document.title='caught'</script><b>&amp;${title}"
BASE, ADAPTER = "ab" * 32, "cd" * 32
TASK = Task("mood", ("good", "bad"), "{input}\nMood:", " ", "{input}")


def header(*names: str) -> Header:
    """Of a device and cloud tiers."""
    return Header(
        tiers=tuple(
            TierInfo(name, f"model of {name}", "cloud")
            if place
            else TierInfo(name, "a small model", "device", "ef" * 32, BASE, ADAPTER)
            for place, name in enumerate(names)
        ),
        task_id="mood",
        options=TASK.options,
        wording=TASK,
        grader="choice",
        data_sha256="12" * 32,
        description="simulated moods",
        licence="CC0",
        created=datetime(2026, 1, 31, 12, 0, 5, tzinfo=UTC),
    )


def columns(n: int, seed: int = 1) -> dict[str, list[str] | NDArray[np.generic]]:
    """Rows on which the device is right as often as its score says, but for one group."""
    rng = np.random.default_rng(seed)
    score = np.round(rng.uniform(0.5, 1.0, n), 3)  # rounded: there are ties
    domain = rng.choice(["film", "shop", "tweet"], n)
    skill = score - 0.15 * (domain == "tweet")
    return {
        "id": [f"row {i}" for i in range(n)],
        "document": [f"document {i // 2}" for i in range(n)],
        "input_sha256": [f"{i:064x}" for i in range(n)],
        "group.domain": list(domain),
        "tier.device.raw_score": score,
        "tier.device.correct": (rng.random(n) < skill).astype(float),
        "tier.device.latency_s": rng.gamma(9, 0.01, n),
        "tier.tier1.correct": (rng.random(n) < 0.92).astype(float),
        "tier.tier1.latency_s": rng.gamma(4, 0.1, n),
        "tier.tier1.cost_usd": rng.gamma(4, 0.00005, n),
        "tier.tier1.prompt_tokens": rng.integers(40, 120, n),
        "tier.tier1.completion_tokens": rng.integers(1, 5, n),
    }


def moods(n: int = 600, seed: int = 1, **changed: object) -> RecordSet:
    """The rows as records; ``changed`` columns replace (None: drop) those of ``columns``."""
    given = columns(n, seed) | {name.replace("__", "."): value for name, value in changed.items()}
    return from_columns(
        header("device", "tier1"), {k: v for k, v in given.items() if v is not None}
    )


def policy_of(records: RecordSet, alpha: float = 0.15) -> Policy:
    """A policy that was calibrated and certified on these records, a third and two thirds."""
    score, right = records.column("device", "raw_score"), records.correct("device")
    third = len(records) // 3
    model = fit_platt(score[:third], right[:third])
    confidence = model.batch(score)
    grid = plan_grid(
        confidence[:third], right[:third], rows=len(records) - third, alpha=alpha, delta=0.1
    )
    try:
        certificate = certify(confidence[third:], right[third:], alpha=alpha, delta=0.1, grid=grid)
    except InfeasibleTarget:
        return Policy(TASK, BASE, ADAPTER, model, None, None)
    return Policy(TASK, BASE, ADAPTER, model, certificate.threshold, certificate)


def hostile(records: RecordSet) -> RecordSet:
    """The same records with markup wherever a name can be free."""
    described = replace(
        records.header,
        description=HOSTILE,
        licence=HOSTILE,
        grader=HOSTILE,
        tiers=tuple(replace(tier, model=HOSTILE) for tier in records.header.tiers),
    )
    return RecordSet.of(
        described,
        (
            replace(record, id=f"{HOSTILE}{record.id}", groups={HOSTILE: HOSTILE, **record.groups})
            for record in records
        ),
    )
