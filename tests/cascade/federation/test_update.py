"""Updates as bytes: every update comes back, on average as it was; nothing else is taken."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cascade.errors import InvalidInput
from cascade.federation import (
    Expected,
    clip_to_norm,
    decode,
    encode,
    encoded_size,
    flatten,
    norm,
    shapes_of,
    unflatten,
)

B = "layers.0.q_proj.b"
SHAPES = {B: (2, 5), "layers.0.q_proj.a": (7, 2), "head.bias": (3,)}

finite = st.floats(-(2.0**96), 2.0**96, width=32)
shapes = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: len(name.encode(errors="replace")) < 40),
    st.one_of(
        st.tuples(st.integers(1, 9)),
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
    ),
    min_size=1,
    max_size=4,
).filter(lambda found: all(name.isprintable() for name in found))


@st.composite
def updates(draw):
    return {
        name: draw(arrays.arrays(np.float32, shape, elements=finite))
        for name, shape in draw(shapes).items()
    }


def drawn(seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    return {
        name: (spread * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


@given(updates(), st.sampled_from([4, 8, 32]))
@settings(max_examples=150, deadline=None)
def test_an_update_comes_back_within_a_step_of_its_row(update, bits):
    data = encode(update, bits, np.random.default_rng(1))
    assert len(data) == encoded_size(shapes_of(update), bits)
    back = decode(data, shapes_of(update))
    for name, tensor in update.items():
        if bits == 32:
            np.testing.assert_array_equal(back[name], tensor)
            continue
        assert back[name].shape == tensor.shape
        assert back[name].dtype == np.float32
        axis = None if tensor.ndim == 1 else int(tensor.shape[0] <= tensor.shape[1])
        most = np.abs(tensor.astype(np.float64)).max(axis=axis, keepdims=True)
        step = most / {4: 7, 8: 127}[bits]
        assert (np.abs(back[name].astype(np.float64) - tensor) <= step * 1.0001 + 1e-44).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_is_unbiased(bits):
    update = drawn()
    draws = 3000
    rng = np.random.default_rng(5)
    flat = np.stack([flatten(decode(encode(update, bits, rng), SHAPES)) for _ in range(draws)])
    error = flat.mean(axis=0) - flatten(update)
    spread = flat.std(axis=0) / math.sqrt(draws)
    # 27 means: chance passes 5 standard errors in 1 of 60,000 runs, and the seed is fixed.
    assert (np.abs(error) <= 5 * spread + 1e-6).all()
    # Rounding to the nearest would fail this: its error does not shrink with more draws.
    nearest = np.abs(flat - flatten(update)).max()
    assert np.abs(error).max() < nearest / 10


def test_the_same_seed_gives_the_same_bytes():
    first, again, other = (encode(drawn(), 4, np.random.default_rng(s)) for s in (3, 3, 4))
    assert first == again != other


def test_int4_costs_less_than_a_seventh_of_float32():
    shapes = {f"layers.{i}.q_proj.b": (8, 576) for i in range(4)}
    assert encoded_size(shapes, 32) / encoded_size(shapes, 4) > 7


def test_a_row_of_tiny_numbers_is_not_lost():
    update = {B: np.full((1, 4), 3e-45, np.float32)}
    assert decode(encode(update, 4, np.random.default_rng(0)), {B: (1, 4)})[B].any()


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_every_cut_and_every_byte_more_is_refused(bits):
    data = encode(drawn(), bits, np.random.default_rng(0))
    for size in range(len(data)):
        with pytest.raises(InvalidInput, match="update"):
            decode(data[:size], SHAPES)
    with pytest.raises(InvalidInput, match="bytes; this plan's updates have"):
        decode(data + b"\0", SHAPES)


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_a_flipped_bit_is_refused_or_gives_finite_numbers(bits):
    data = encode(drawn(), bits, np.random.default_rng(0))
    refused = 0
    for bit in range(8 * len(data)):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        try:
            back = decode(bytes(broken), SHAPES)
        except InvalidInput:
            refused += 1
        else:
            assert shapes_of(back) == SHAPES
            assert np.isfinite(flatten(back)).all()
            # One update, one encoding: other bytes are another update.
            assert (flatten(back) != flatten(decode(data, SHAPES))).any()
    assert refused > 8 * 60  # every bit of the names and shapes, at least


def wrong(**shapes):
    return encode(
        {n: np.ones(s, np.float32) for n, s in shapes.items()}, 8, np.random.default_rng()
    )


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (wrong(b=(2, 4)), "update"),  # another size in all
        (wrong(c=(2, 3)), "update.b.name"),
        (wrong(b=(3, 2)), "update.b.shape"),  # the same number of bytes
        (b"", "update.magic"),
        (b"ECCU\x02\x08\x01\x00", "update.version"),
        (b"ECCU\x01\x07\x01\x00", "update.bits"),
        (b"ECCU\x01\x08\xff\xff" + bytes(25), "update.tensors"),
        # A rank bomb: the right number of bytes, but a shape of 2^32 - 1 rows.
        (
            wrong(b=(2, 3)).replace(b"\2\0\0\0\3\0\0\0", b"\xff\xff\xff\xff\3\0\0\0"),
            "update.b.shape",
        ),
    ],
)
def test_what_is_not_of_the_plan_is_refused_by_field(data, field):
    with pytest.raises(InvalidInput) as refusal:
        decode(data, {"b": (2, 3)})
    assert refusal.value.field == field


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e31])
def test_numbers_that_are_none_are_refused_on_both_sides(value):
    update = {B: np.array([[1, 2, 3], [1, 2, 3]], np.float32)}
    data = encode(update, 32, np.random.default_rng())
    bad = data[:-4] + np.float32(value).tobytes()
    with pytest.raises(InvalidInput, match=B):
        decode(bad, {B: (2, 3)})
    update[B][0, 0] = value
    with pytest.raises(InvalidInput, match=B):
        encode(update, 8, np.random.default_rng())
    scaled = bytearray(encode({B: np.ones((1, 1), np.float32)}, 8, np.random.default_rng()))
    scaled[-5:-1] = np.float32(value).tobytes()
    with pytest.raises(InvalidInput, match="scales"):
        decode(bytes(scaled), {B: (1, 1)})


@pytest.mark.parametrize(
    ("shapes", "problem"),
    [
        ({}, "0 tensors"),
        ({"b": (1 << 30, 8)}, "elements"),
        ({"b": (2, 0)}, "one or two axes"),
        ({"b": (2, 2, 2)}, "one or two axes"),
        ({"x" * 256: (1, 1)}, "name"),
        ({f"{i}": (1, 1) for i in range(4097)}, "4097 tensors"),
    ],
)
def test_a_plan_that_no_update_may_have_is_refused(shapes, problem):
    with pytest.raises(InvalidInput, match=problem):
        decode(b"ECCU", shapes)


@given(updates(), st.floats(1e-3, 1e3))
@settings(max_examples=150, deadline=None)
def test_clipping_keeps_the_bound_exactly_and_the_direction(update, bound):
    clipped = clip_to_norm(update, bound)
    length = norm(update)
    assert norm(clipped) <= bound
    if length <= bound:
        np.testing.assert_array_equal(flatten(clipped), flatten(update))
    else:
        assert norm(clipped) == pytest.approx(bound, rel=1e-4)
        np.testing.assert_allclose(
            flatten(clipped), flatten(update) * (bound / length), atol=bound * 1e-6
        )


def test_clipping_to_almost_nothing_ends():
    assert norm(clip_to_norm(drawn(), 2e-45)) <= 2e-45


def test_clipping_refuses_what_has_no_length():
    with pytest.raises(InvalidInput, match="NaN"):
        clip_to_norm({B: np.array([[math.nan]], np.float32)}, 1.0)
    with pytest.raises(InvalidInput, match="bound"):
        clip_to_norm(drawn(), 0.0)


@given(updates())
@settings(max_examples=50, deadline=None)
def test_a_flat_vector_holds_everything(update):
    back = unflatten(flatten(update), shapes_of(update))
    assert list(back) == sorted(update)
    for name, tensor in update.items():
        np.testing.assert_array_equal(back[name], tensor)
    with pytest.raises(InvalidInput, match="elements"):
        unflatten(np.zeros(flatten(update).size + 1), shapes_of(update))


@given(updates(), st.sampled_from([4, 8, 32]), st.data())
@settings(max_examples=150, deadline=None)
def test_a_glance_takes_what_reading_takes(update, bits, data):
    shapes = shapes_of(update)
    sent = bytearray(encode(update, bits, np.random.default_rng(1)))
    for _ in range(data.draw(st.integers(0, 2))):
        sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    expected = Expected.of(shapes, bits)
    assert expected.size == encoded_size(shapes, bits)
    read = problem_of(decode, bytes(sent), shapes)
    assert problem_of(expected.check, bytes(sent)) == read
    if read is None:
        quick, slow = expected.decode(bytes(sent)), decode(bytes(sent), shapes)
        for name in shapes:
            np.testing.assert_array_equal(quick[name], slow[name], strict=True)
    else:
        assert problem_of(expected.decode, bytes(sent)) == read


def problem_of(work, *given):
    try:
        work(*given)
    except InvalidInput as problem:
        return str(problem)
    return None


@pytest.mark.parametrize("bits", [4, 8, 32])
@pytest.mark.parametrize("value", [math.nan, math.inf, -0.0, -1.0, 1e31])
def test_a_glance_sees_numbers_that_are_none(bits, value):
    data = bytearray(encode(drawn(), bits, np.random.default_rng(0)))
    at = Expected.of(SHAPES, bits)
    where = (at.codes if bits == 32 else at.scales)[-1].start
    data[where : where + 4] = np.float32(value).tobytes()
    found = problem_of(at.check, bytes(data))
    assert found == problem_of(decode, bytes(data), SHAPES)
    assert (found is None) == (bits == 32 and value in (0.0, -1.0))


@given(st.lists(st.integers(0, 99), min_size=0, max_size=5), shapes, st.sampled_from([4, 8, 32]))
@settings(max_examples=150, deadline=None)
def test_many_updates_are_read_as_each_of_them_is(seeds, shapes, bits):
    expected, sent = Expected.of(shapes, bits), []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        # Some rows are zeros, whose scale is.
        update = {
            name: (rng.standard_normal(shape) * rng.integers(0, 2)).astype(np.float32)
            for name, shape in shapes.items()
        }
        sent.append(encode(update, bits, rng))
    rows = expected.rows(sent)
    assert rows.dtype == np.float32
    assert rows.shape == (len(sent), sum(math.prod(shape) for shape in shapes.values()))
    for row, data in zip(rows, sent, strict=True):
        np.testing.assert_array_equal(row, flatten(decode(data, shapes)))
