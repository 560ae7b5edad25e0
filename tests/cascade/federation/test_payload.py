"""Counts of a head's rows behind an update, and the vector that masks are put on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from cascade.errors import InvalidInput
from cascade.federation import Expected, clip_to_norm
from cascade.federation.masked_plan import MaskedPlan
from cascade.federation.payload import (
    decode_payload,
    encode_payload,
)
from cascade.federation.plan import RoundPlan
from cascade.federation.tensors import elements

PLAN = RoundPlan(layers=1, bits=32, clip_norm=2.0, max_examples=50, rows=True)
ADAPTER = {
    "layers.0.q_proj.a": (8, 2),
    "layers.0.q_proj.b": (2, 8),
    "head.weight": (3, 4),
    "head.bias": (3,),
    "head.mean": (4,),
    "head.scale": (4,),
}
SHAPES = PLAN.shapes(ADAPTER)


def expected(plan: RoundPlan) -> Expected:
    (only,) = plan.updates(ADAPTER).values()
    return only


def drawn(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    return clip_to_norm(made, PLAN.clip_norm)


def test_what_standardises_features_does_not_travel() -> None:
    assert sorted(SHAPES) == ["head.bias", "head.weight", "layers.0.q_proj.b"]
    assert PLAN.head_rows(SHAPES) == 3
    assert RoundPlan.from_bytes(PLAN.to_bytes()) == PLAN
    assert PLAN.payload_format == "cascade-update-2"
    with pytest.raises(InvalidInput, match="different numbers of rows"):
        PLAN.head_rows({"head.weight": (3, 4), "head.bias": (2,)})


def test_counts_travel_behind_the_update_and_are_bounded() -> None:
    change, counts = drawn(0), np.array([3, 0, 1000])
    data = encode_payload(PLAN, change, counts, np.random.default_rng(0))
    assert len(data) == PLAN.payload_bytes(ADAPTER)
    read, weights = decode_payload(PLAN, data, expected(PLAN))
    for name, tensor in change.items():
        np.testing.assert_array_equal(read[name], tensor)
    assert {name: each.tolist() for name, each in weights.items()} == {
        "head.bias": [3, 0, 50],
        "head.weight": [3, 0, 50],
    }


@pytest.mark.parametrize(
    ("spoiled", "field"),
    [
        (lambda data: data[:-4], "update.counts"),
        (lambda data: data + b"\0", "update.counts"),
        (lambda data: data[:-21] + b"ECCX" + data[-17:], "update.counts.magic"),
        (lambda data: data[:-16] + (2).to_bytes(4, "little") + data[-12:], "update.counts.rows"),
    ],
)
def test_counts_are_read_strictly(spoiled, field) -> None:
    data = encode_payload(PLAN, drawn(0), np.array([1, 2, 3]), np.random.default_rng(0))
    with pytest.raises(InvalidInput) as caught:
        decode_payload(PLAN, spoiled(data), expected(PLAN))
    assert caught.value.field.startswith(field)


@pytest.mark.parametrize("counts", [[1, 2], [1, 2, -1], []])
def test_counts_that_are_none_do_not_travel(counts) -> None:
    given = np.array(counts, np.int64)
    with pytest.raises(InvalidInput, match="3 whole numbers"):
        encode_payload(PLAN, drawn(0), given, np.random.default_rng(0))


def test_under_masks_nothing_says_which_answers_a_device_has_seen() -> None:
    """Of an answer that one device alone has, counts beside the sum would be that device's."""
    masked = MaskedPlan(4, 3, 1023, 1.0)
    with pytest.raises(InvalidInput, match="left out under masks") as caught:
        replace(PLAN, masked=masked)
    assert caught.value.field == "plan.rows"
    asked = json.loads(PLAN.to_bytes()) | {"masked": masked.to_json()}
    with pytest.raises(InvalidInput, match="left out under masks"):  # by whoever leads the round
        RoundPlan.from_bytes(json.dumps(asked).encode())
    plan = replace(PLAN, rows=False, masked=masked)
    assert plan.payload_format == "cascade-masked-1"
    assert plan.payload_bytes(ADAPTER) == 2 * elements(SHAPES)
