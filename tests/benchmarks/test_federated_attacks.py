"""The attack matrix: what is malformed never counts, and what lies is not served for long."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.federated import attacks, hostile
from cloud.federation import TrimmedMean, WeightedMean


def test_every_malformed_update_is_refused_and_none_is_counted() -> None:
    outcomes = asyncio.run(hostile.refused(1))
    assert outcomes.pop("counted") == (0, 0)
    assert {name for name, (refused, sent) in outcomes.items() if refused != sent} == set()
    assert len(outcomes) == len(hostile.MALFORMED) + 2


@pytest.mark.parametrize("lie", attacks.LIES)
def test_a_robust_rule_with_a_gate_serves_nothing_much_worse(lie: str) -> None:
    """At 30 % attackers, on other rows than the gate's: never more than 2 points in one round."""
    found = attacks.attacked(TrimmedMean(0.3), lie, 0.3, 0, gated=True, honest=8, rounds=5)
    assert max(found.drops) <= 2.0, found
    assert found.start - found.served[-1] <= 2.0, found


def test_without_either_a_sign_flip_is_served() -> None:
    """What the matrix would show of a system that had neither."""
    bare = attacks.attacked(
        WeightedMean(), "sign flip x10", 0.3, 0, gated=False, honest=8, rounds=5
    )
    gated = attacks.attacked(
        WeightedMean(), "sign flip x10", 0.3, 0, gated=True, honest=8, rounds=5
    )
    assert bare.start - bare.served[-1] > 5.0, bare
    assert gated.start - gated.served[-1] <= 2.0, gated
