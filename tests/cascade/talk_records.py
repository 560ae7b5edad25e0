"""Records of free answers whose truth is known, with signals of every token: drawn, not asked."""

from __future__ import annotations

import numpy as np

from cascade.files import sha256_bytes
from cascade.records import Header, RecordSet, TierInfo, from_columns

BASE = "0b" * 32
MAX_TOKENS = 64


def talk(rows: int, *, seed: int = 1, empty: int = 0, per_document: int = 1) -> RecordSet:
    """A question's difficulty shows in every token. Where it is highest neither tier is right, so
    that escalating gains nothing there.

    Arguments:
        empty: every so many answers one has no token, hence no signals; 0 for none.
    """
    rng = np.random.default_rng(seed)
    hard = rng.normal(0, 1, rows)
    length = 4 + rng.poisson(12 * np.exp(0.4 * hard))
    length = np.minimum(length, MAX_TOKENS)
    if empty:
        length[::empty] = 0
    logprobs = [
        -np.exp(0.7 * h + rng.normal(size=n) - 2) for h, n in zip(hard, length, strict=True)
    ]
    ids = [f"q{seed}-{row}" for row in range(rows)]
    device = rng.random(rows) < 1 / (1 + np.exp(2.5 * hard - 1.5))
    cloud = rng.random(rows) < np.where(hard > 1.2, 0.15, 0.95)
    columns = {
        "id": ids,
        "document": [f"d{seed}-{row // per_document}" for row in range(rows)],
        "input_sha256": [sha256_bytes(each.encode()) for each in ids],
        "tier.device.token_logprobs": logprobs,
        "tier.device.token_entropies": [-each for each in logprobs],
        "tier.device.token_margins": [np.exp(each) for each in logprobs],
        "tier.device.raw_score": np.array(
            [np.exp(each.mean()) if len(each) else 1.0 for each in logprobs]
        ),
        "tier.device.prompt_tokens": np.full(rows, 20),
        "tier.device.completion_tokens": length,
        "tier.device.latency_s": 0.1 + 0.02 * length,
        "tier.device.correct": device.astype(np.float64),
        "tier.tier1.correct": cloud.astype(np.float64),
        "tier.tier1.latency_s": rng.gamma(4, 0.2, rows),
        "tier.tier1.cost_usd": rng.gamma(4, 0.0001, rows),
    }
    tiers = (
        TierInfo("device", "small", "device", base_digest=BASE),
        TierInfo("tier1", "large", "cloud"),
    )
    return from_columns(Header(tiers=tiers, task_id="talk", max_tokens=MAX_TOKENS), columns)
