"""Re-encoding a GGUF block loses nothing."""

from __future__ import annotations

import gguf
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from edge.build.blocks import BlockType, BlockWeights, decode, same_formula, stack

QUANTISED = [kind for kind in BlockType if kind.weights > 1]


def reference(raw: np.ndarray, kind: BlockType) -> np.ndarray:
    return gguf.dequantize(raw, gguf.GGMLQuantizationType(int(kind)))


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
@given(data=st.data())
def test_any_bytes_mean_the_same_weights_bit_for_bit(kind, data):
    rows, blocks = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    raw = data.draw(arrays(np.uint8, (rows, blocks * kind.bytes)))
    with np.errstate(all="ignore"):  # arbitrary bytes hold infinities and not-a-numbers, too
        expected = reference(raw, kind)
        weights = decode(raw, kind).dequantise()
    same = (weights.view(np.uint32) == expected.view(np.uint32)) | (
        np.isnan(weights) & np.isnan(expected)
    )
    assert same.all()


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_large_matrices_of_random_bytes_too(kind):
    raw = np.random.default_rng(0).integers(0, 256, (64, 3 * kind.bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        assert np.array_equal(decode(raw, kind).dequantise(), reference(raw, kind), equal_nan=True)


@pytest.mark.parametrize("kind", [BlockType.F16, BlockType.F32], ids=lambda kind: kind.name)
def test_floats_stay_what_they_are(kind):
    values = np.random.default_rng(0).normal(size=(3, 8))
    values = values.astype(np.float16 if kind is BlockType.F16 else np.float32)
    assert np.array_equal(decode(values.view(np.uint8), kind), values)


@pytest.mark.parametrize("kind", BlockType, ids=lambda kind: kind.name)
def test_block_sizes_are_those_of_ggml(kind):
    sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(int(kind))]
    assert (kind.weights, kind.bytes) == sizes


def test_four_bit_codes_pack_two_to_a_byte_first_one_low():
    codes = np.arange(16, dtype=np.uint8).reshape(1, 16)
    weights = BlockWeights(4, codes, np.ones((1, 1), np.float16))
    assert weights.packed().tolist() == [[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]]


def test_only_matrices_of_one_formula_stack():
    rng = np.random.default_rng(0)
    raw = {
        kind: rng.integers(0, 100, (2, kind.bytes), dtype=np.uint8)
        for kind in (BlockType.Q4_0, BlockType.Q4_1, BlockType.Q5_0, BlockType.Q8_0)
    }
    four, minima, five, eight = (decode(rows, kind) for kind, rows in raw.items())
    assert not same_formula([four, minima])
    assert not same_formula([four, eight])
    assert same_formula([five, eight])
    both = np.concatenate([five.dequantise(), eight.dequantise()])
    assert np.array_equal(stack([five, eight]).dequantise(), both)
