"""Figures on weighted rows are those of ``cascade.metrics`` on rows that are really repeated."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade import metrics
from cascade.errors import InvalidInput
from cascade.pair import Pair, pair
from cascade.records import from_columns, input_sha256
from cascade.replay import UNITS, Figures
from tests.cascade.drawn_records import drawn, header

drawn_rows = st.lists(
    st.tuples(
        st.sampled_from([0.1, 0.3, 0.5, 0.55, 0.9]),
        st.booleans(),
        st.booleans(),
        st.sampled_from([0.5, 1.0, 2.0]),
        st.integers(0, 4),
    ),
    min_size=1,
    max_size=25,
).filter(lambda rows: any(row[-1] for row in rows))


def two_tiers(score: list[float], weak: list[bool], strong: list[bool], cost: list[float]) -> Pair:
    ids = [str(i) for i in range(len(score))]
    columns = {
        "device.raw_score": score,
        "device.correct": weak,
        "tier1.correct": strong,
        "tier1.cost_usd": cost,
        "device.latency_s": cost,
        "tier1.latency_s": cost[::-1],
        "device.completion_tokens": [2] * len(score),
        "tier1.completion_tokens": [3] * len(score),
        "tier1.prompt_tokens": [10] * len(score),
        "tier1.bytes_up": [100] * len(score),
    }
    arrays = {f"tier.{name}": np.array(each, np.float64) for name, each in columns.items()}
    counts = ("completion_tokens", "prompt_tokens", "bytes_up")
    arrays = {
        name: each.astype(np.int64) if name.rpartition(".")[2] in counts else each
        for name, each in arrays.items()
    }
    shas = [input_sha256(each) for each in ids]
    return pair(
        from_columns(header("device", "tier1"), {"id": ids, "input_sha256": shas, **arrays})
    )


@given(drawn_rows)
def test_a_weight_is_a_repetition(values: list[tuple[float, bool, bool, float, int]]) -> None:
    score, weak, strong, cost, often = (list(column) for column in zip(*values, strict=True))
    rows = two_tiers(score, weak, strong, cost)
    accepted = rows.score >= 0.5
    weighted = Figures(rows, rows.score, accepted, {"tier1": np.array(strong, np.float64)})
    found = {name: float(each[0]) for name, each in weighted.of(np.array([often])).items()}

    again = np.repeat(np.arange(len(score)), often)
    confidence, right, cloud = rows.score[again], np.array(weak)[again], np.array(strong)[again]
    kept = accepted[again]
    curve = metrics.deferral_curve(confidence, right, cloud)
    expected: dict[str, float | None] = {
        "coverage": kept.mean(),
        "selective_risk": 1 - right[kept].mean() if kept.any() else None,
        "accuracy": np.where(kept, right, cloud).mean(),
        "excess_error": np.mean(kept & ~right & cloud),
        "aurc": metrics.aurc(confidence, right),
        "ece": metrics.ece(confidence, right),
        "brier": metrics.brier(confidence, right),
        "auroc": metrics.auroc(confidence, right) if 0 < right.sum() < len(right) else None,
        "deferral_auc": curve.auc,
        "deferral_auc_normalised": curve.normalised_auc,
        "deferral_auc_oracle": metrics.deferral_curve(
            # An oracle's confidence: low where escalation gains, high where it loses.
            (1 + right.astype(float) - cloud) / 2,
            right,
            cloud,
        ).auc,
        "apgr": curve.apgr,
        "cpt_50": curve.call_share(0.5),
        "cpt_80": curve.call_share(0.8),
        "handoff_to_match.tier1": curve.share_to_match(cloud.mean()),
        "cost_usd": (np.array(cost)[again] * ~kept).mean(),
        "wasted_local_tokens": 2 * (~kept).mean(),
        "cloud_tokens": 13 * (~kept).mean(),
        "bytes_up": 100 * (~kept).mean(),
    }
    for name, value in expected.items():
        if value is None:
            assert math.isnan(found[name]), name
        else:
            assert found[name] == pytest.approx(value, abs=1e-9), name


def test_by_hand() -> None:
    # Confident and right; confident and wrong; unsure and wrong, and the cloud right; both wrong.
    rows = two_tiers(
        [0.9, 0.8, 0.3, 0.2], [True, False, False, False], [True, True, True, False], [1, 1, 1, 1]
    )
    figures = Figures(rows, rows.score, rows.score >= 0.5)
    found = {name: float(each[0]) for name, each in figures.of(np.ones((1, 4), int)).items()}
    assert found["coverage"] == 0.5
    assert found["selective_risk"] == 0.5
    assert (found["local_accuracy"], found["accuracy"], found["cloud_accuracy"]) == (
        0.25,
        0.5,
        0.75,
    )
    assert found["excess_error"] == 0.25
    assert found["pgr"] == 0.5
    assert (found["cost_usd"], found["cloud_only_cost_usd"]) == (0.5, 1.0)
    assert found["cloud_tokens_saved_per_byte"] == pytest.approx((13 - 6.5) / 50)
    # Shares 0 … 1 cost as much and give .25 .25 .5 .75 .75; the hull goes straight to (.75, .75).
    assert found["aiq"] == pytest.approx(0.75 * (0.25 + 0.75) / 2 + 0.25 * 0.75, abs=2e-3)
    assert set(found) <= set(UNITS)


def test_random_confidence_recovers_half() -> None:
    rows = pair(drawn(40_000, seed=5))
    luck = np.random.default_rng(99).random(len(rows))
    found = Figures(rows, luck, luck > 0.5).of(np.ones((1, len(rows)), np.int64))
    assert found["apgr"][0] == pytest.approx(0.5, abs=0.02)
    assert found["deferral_auc_normalised"][0] == pytest.approx(0, abs=0.02)
    assert found["auroc"][0] == pytest.approx(0.5, abs=0.02)


def test_without_a_second_tier_there_is_nothing_to_compare() -> None:
    rows = pair(drawn(50, tiers=("device",)))
    found = Figures(rows, rows.score, rows.score > 0.7).of(np.ones((1, 50), np.int64))
    assert "accuracy" not in found
    assert "cost_usd" not in found
    assert {"coverage", "auroc", "aurc", "ece"} <= found.keys()


def test_a_mix_of_scoring_modes_is_refused() -> None:
    rows = drawn(4)
    ids, shas = rows.ids, rows.inputs
    mixed = from_columns(
        header("device"),
        {
            "id": ids,
            "input_sha256": shas,
            "tier.device.raw_score": np.array([0.5, 0.6, 0.7, 0.8]),
            "tier.device.correct": np.array([0.0, 1, 1, 1]),
            "tier.device.option_mode": ["exact", "search", "exact", "exact"],
            "tier.device.option_unexplored": np.zeros(4),
            **{
                f"tier.device.option_{name}": [[0.0, 0.0]] * 4
                for name in ("logprobs", "priors", "probabilities")
            },
        },
    )
    with pytest.raises(InvalidInput, match="device scored 1 of 4 rows in search mode"):
        pair(mixed).mode()
