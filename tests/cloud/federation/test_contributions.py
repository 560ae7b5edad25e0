"""What a round's updates hold, against each of them read and clipped by itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cascade.federation import Expected, clip_to_norm, decode, encode, flatten, norm
from cascade.federation.plan import RoundPlan
from cloud.federation.contributions import contributions, stacked
from cloud.federation.rounds import StoredUpdate

SHAPES = {"layers.0.q_proj.b": (2, 9), "layers.0.v_proj.b": (2, 5)}
UNTOUCHED = {"layers.1.q_proj.b": np.zeros((2, 9), np.float32)}
STARTS = {version: {"layers.0.q_proj.b": np.full((2, 9), version, "f4")} for version in (3, 4, 5)}


def like(bits: int) -> dict[int, Expected]:
    expected = Expected.of(SHAPES, bits)  # type: ignore[arg-type]
    return {expected.size: expected}


def sent(seed: int, length: float, bits: int, version: int = 5, examples: int = 2) -> StoredUpdate:
    rng = np.random.default_rng(seed)
    update = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    scaled = {name: (each * (length / norm(update))).astype("f4") for name, each in update.items()}
    return StoredUpdate(
        f"lease-{seed}",
        f"{seed:064x}",
        version,
        examples,
        encode(scaled, bits, rng),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_updates_are_clipped_as_each_would_be(bits: int) -> None:
    plan = RoundPlan(layers=1, bits=bits, clip_norm=1.0, max_examples=3)  # type: ignore[arg-type]
    # Shorter than the bound, as long as it, a hair longer, and far longer.
    lengths = [0.1, 1.0, 1.0 + 1e-7, 1e6, 0.0, 0.999999]
    updates = [sent(seed, length, bits) for seed, length in enumerate(lengths)]
    given = contributions(plan, like(plan.bits), updates, STARTS.get, untouched=UNTOUCHED)
    rows = stacked(given, SHAPES)
    for update, one, row in zip(updates, given, rows, strict=True):
        alone = clip_to_norm(decode(update.payload, SHAPES), 1.0)
        assert one.change.keys() == SHAPES.keys() | UNTOUCHED.keys()
        for name, tensor in alone.items():
            np.testing.assert_array_equal(one.change[name], tensor)
        np.testing.assert_array_equal(row, flatten(alone))
        assert norm({name: one.change[name] for name in SHAPES}) <= 1.0
        assert not one.change["layers.1.q_proj.b"].any()


def test_each_starts_from_its_own_version_and_weighs_no_more_than_it_may() -> None:
    plan = RoundPlan(layers=1, bits=8, clip_norm=1.0, max_examples=3)
    late = dataclasses.replace(sent(1, 0.5, 8, version=3, examples=9), gap=1)
    updates = [late, sent(2, 0.5, 8, version=5, examples=1)]
    given = contributions(plan, like(8), updates, STARTS.get, untouched=UNTOUCHED)
    assert [(each.weight, each.gap) for each in given] == [(3, 1), (1, 0)]
    assert [each.start for each in given] == [STARTS[3], STARTS[5]]


def test_what_can_be_read_counts_and_nothing_else() -> None:
    plan = RoundPlan(layers=1, bits=8, clip_norm=1.0)
    lost, other_bits = sent(4, 0.5, 8), sent(2, 0.5, 4)
    lost = dataclasses.replace(lost, payload=lost.payload[:-1])
    updates = [sent(1, 0.5, 8), other_bits, lost, sent(3, 0.5, 8)]
    given = contributions(plan, like(8), updates, STARTS.get, untouched=UNTOUCHED)
    rows = stacked(given, SHAPES)
    assert len(given) == len(rows) == 3
    for row, update in zip(rows, [updates[0], other_bits, updates[3]], strict=True):
        np.testing.assert_array_equal(row, flatten(decode(update.payload, SHAPES)))
