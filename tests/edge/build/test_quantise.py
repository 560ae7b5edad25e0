"""The quantiser keeps every weight within half a step, whatever the weights are."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from cascade.errors import InvalidInput
from edge.build.quantise import BLOCK, for_blocks, for_floats, quantise

BITS = (8, 4)
SMALLEST = 2.0**-149  # float32 goes no further
finite = st.floats(-(2.0**100), 2.0**100, width=32)
mixed = st.one_of(finite, st.floats(-1, 1, width=32), st.floats(-(2.0**-20), 2.0**-20, width=32))


def matrices(values):
    shapes = st.tuples(st.integers(1, 3), st.integers(1, 3).map(lambda blocks: blocks * BLOCK))
    return arrays(np.float32, shapes, elements=values)


@pytest.mark.parametrize("bits", BITS)
@given(weights=matrices(mixed))
def test_no_weight_is_off_by_more_than_half_a_step(bits, weights):
    """And no step is larger than its block needs, and codes stay around the zero point."""
    blocks = quantise(weights, bits)
    steps = 2 ** (bits - 1) - 1
    scale = blocks.scale.astype(np.float64)
    apart = np.abs(blocks.dequantise().astype(np.float64) - weights)
    step = np.repeat(scale, BLOCK, axis=1)
    # A scale among the smallest floats is rounded by up to half of SMALLEST, and taken up to
    # `steps` times.
    assert (apart <= step * (0.5 + 1e-5 * steps) + SMALLEST * (1 + steps / 2)).all()
    largest = np.abs(weights).reshape(len(weights), -1, BLOCK).max(axis=2).astype(np.float64)
    assert (scale <= largest / steps * (1 + 2**-5 + 1e-6) + SMALLEST).all()
    assert (blocks.bits, blocks.minimum) == (bits, None)
    assert blocks.codes.min() >= 1
    assert blocks.codes.max() <= 2**bits - 1


@pytest.mark.parametrize("bits", BITS)
def test_zeros_stay_zeros(bits):
    weights = np.zeros((2, 2 * BLOCK), np.float32)
    weights[1, 3] = 0.25
    blocks = quantise(weights, bits)
    assert np.array_equal(blocks.dequantise() == 0, weights == 0)


@pytest.mark.parametrize("bits", BITS)
def test_usual_weights_get_scales_of_two_bytes(bits):
    weights = np.random.default_rng(0).normal(0, 0.02, (64, 8 * BLOCK)).astype(np.float32)
    assert quantise(weights, bits).scale.dtype == np.float16


@pytest.mark.parametrize("size", [1e-9, 1e12])
def test_scales_beyond_two_bytes_get_four(size):
    weights = np.full((1, BLOCK), size, np.float32)
    blocks = quantise(weights, 8)
    assert blocks.scale.dtype == np.float32
    assert np.allclose(blocks.dequantise(), weights, rtol=1e-6)


def test_int8_keeps_the_signal():
    weights = np.random.default_rng(0).normal(0, 0.02, (64, 8 * BLOCK)).astype(np.float32)
    for bits, least_db in ((8, 43.0), (4, 18.0)):
        noise = quantise(weights, bits).dequantise() - weights
        assert 10 * np.log10((weights**2).mean() / (noise**2).mean()) > least_db


def test_what_goes_with_what():
    assert [for_floats(kind) for kind in ("int8", "int4", "fp32")] == ["int8", "int4", "fp32"]
    assert [for_blocks(kind) for kind in ("lossless", "fp32")] == ["lossless", "fp32"]
    for check, wrong in ((for_floats, "lossless"), (for_floats, "int2"), (for_blocks, "int8")):
        with pytest.raises(InvalidInput, match=f"quantise: {wrong}"):
            check(wrong)
