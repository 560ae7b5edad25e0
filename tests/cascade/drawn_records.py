"""Records of tiers whose truth is known: drawn, not asked."""

from __future__ import annotations

import numpy as np

from cascade.files import sha256_bytes
from cascade.records import Header, RecordSet, TierInfo, from_columns
from cascade.records.record_set import outcome_column
from cascade.task import generic

OPTIONS = ("positive", "negative")
BASE = "0b" * 32


def header(*tiers: str, base: str = BASE, adapter: str = "", task_id: str = "mood") -> Header:
    return Header(
        tiers=tuple(
            TierInfo(
                name,
                f"model of {name}",
                "device" if name == "device" else "cloud",
                base_digest=base if name == "device" else "",
                adapter_digest=adapter if name == "device" else "",
            )
            for name in tiers
        ),
        task_id=task_id,
        options=OPTIONS,
        wording=generic(OPTIONS),
    )


def drawn(
    rows: int,
    *,
    tiers: tuple[str, ...] = ("device", "tier1"),
    seed: int = 1,
    name: str = "r",
    per_document: int = 1,
    head: Header | None = None,
) -> RecordSet:
    """P(right) of the device is its raw score, uniform on [.5, 1]; of tier1 .9; of tier2 .97.

    The right answer is one of two, so two tiers agree where both are right or both wrong.
    """
    rng = np.random.default_rng(seed)
    score = rng.uniform(0.5, 1, rows)
    middle = np.clip(rng.beta(9, 1, rows), 0.5, 1)
    right = {
        "device": rng.random(rows) < score,
        "tier1": rng.random(rows) < middle,
        "tier2": rng.random(rows) < 0.97,
    }
    truth = rng.integers(0, 2, rows)
    ids = [f"{name}{i}" for i in range(rows)]
    columns: dict[str, list[str] | np.ndarray] = {
        "id": ids,
        "document": [f"{name}-doc{i // per_document}" for i in range(rows)],
        "input_sha256": [sha256_bytes(each.encode()) for each in ids],
        "group.domain": [("shop", "film", "news")[i % 3] for i in range(rows)],
        outcome_column("device", "raw_score"): score,
    }
    if "tier1" in tiers:
        columns[outcome_column("tier1", "mean_logprob")] = np.log(middle)
    pace = {"device": (0.1, 0.0, 0), "tier1": (0.5, 0.001, 300), "tier2": (1.5, 0.01, 300)}
    for tier in tiers:
        seconds, dollars, sent = pace[tier]
        columns |= {
            outcome_column(tier, "correct"): right[tier].astype(np.float64),
            outcome_column(tier, "answer"): [
                OPTIONS[i] for i in np.where(right[tier], truth, 1 - truth)
            ],
            outcome_column(tier, "latency_s"): rng.gamma(16, seconds / 16, rows),
            outcome_column(tier, "cost_usd"): np.minimum(
                rng.gamma(9, dollars / 9 + 1e-12, rows), 0.05
            ),
            outcome_column(tier, "bytes_up"): np.full(rows, sent),
            outcome_column(tier, "prompt_tokens"): np.full(rows, 40),
            outcome_column(tier, "completion_tokens"): rng.integers(1, 9, rows),
        }
    return from_columns(head or header(*tiers), columns)
