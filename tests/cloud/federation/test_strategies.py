"""What each strategy serves against the full matrices that it stands for."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.errors import InvalidInput
from cascade.federation import at_rank, flatten, shapes_of
from cascade.federation.masking import FixedPoint
from cloud.federation import (
    FRESH,
    Contribution,
    FfaLora,
    Momentum,
    MultiKrum,
    PrivateMean,
    ProductMean,
    SeparateMean,
    TrimmedMean,
    discount,
    target,
)

SIZES = {"layers.0.q_proj": (12, 9), "layers.1.v_proj": (7, 15)}
HEAD = "head.weight"


def adapter(rng, rank, *, zero_b=False):
    """As ``ProductMean`` leaves it: columns sorted by what they matter."""
    tensors = {HEAD: rng.standard_normal((3, 5)).astype(np.float32)}
    for module, (inputs, outputs) in SIZES.items():
        decay = 0.5 ** np.arange(rank)
        tensors[f"{module}.a"] = np.linalg.qr(rng.standard_normal((inputs, rank)))[0].astype("f4")
        b = rng.standard_normal((rank, outputs)) * decay[:, None] * (not zero_b)
        tensors[f"{module}.b"] = b.astype(np.float32)
    return tensors


def change(rng, start, *, b_only=False, spread=0.3):
    return {
        name: (spread * rng.standard_normal(tensor.shape)).astype(np.float32)
        for name, tensor in start.items()
        if not (b_only and name.endswith(".a"))
    }


def full(tensors, module):
    return tensors[f"{module}.a"].astype("f8") @ tensors[f"{module}.b"].astype("f8")


def plus(tensors, delta):
    return {name: tensor.astype("f8") + delta.get(name, 0) for name, tensor in tensors.items()}


def wanted(served, contributions):
    """W by full matrices, as the module's first paragraph has it."""
    total = sum(c.weight for c in contributions)
    result = {}
    for module in SIZES:
        result[module] = full(served, module)
        for c in contributions:
            moved = full(plus(c.start, c.change), module) - full(c.start, module)
            result[module] = result[module] + c.weight / total / (1 + math.sqrt(c.gap)) * moved
    return result


def error(tensors, matrices):
    over = sum(np.linalg.norm(full(tensors, m) - matrices[m]) ** 2 for m in SIZES)
    return math.sqrt(over / sum(np.linalg.norm(matrices[m]) ** 2 for m in SIZES))


@st.composite
def rounds(draw, *, ranks=(4, 4), b_only=False, late=True):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    served = adapter(rng, 4, zero_b=draw(st.booleans()))
    contributions = []
    for _ in range(draw(st.integers(1, 6))):
        start = at_rank(served, draw(st.integers(*ranks)))
        gap = draw(st.integers(0, 5 * late))
        delta = change(rng, start, b_only=b_only)
        contributions.append(Contribution(start, delta, draw(st.floats(0.1, 50)), gap))
    return served, contributions


@given(rounds(b_only=True))
@settings(deadline=None, max_examples=50)
def test_ffa_lora_is_exact(found):
    served, contributions = found
    made = FfaLora().aggregate(served, contributions)
    matrices = wanted(served, contributions)
    assert made.agg_rel_err < 1e-6
    assert error(made.tensors, matrices) == pytest.approx(made.agg_rel_err, abs=1e-12)
    for module in SIZES:
        np.testing.assert_array_equal(made.tensors[f"{module}.a"], served[f"{module}.a"])
    assert shapes_of(made.tensors) == shapes_of(served)


@given(rounds(ranks=(1, 4)))
@settings(deadline=None, max_examples=50)
def test_the_product_mean_is_the_best_of_its_rank(found):
    served, contributions = found
    made = ProductMean(4).aggregate(served, contributions)
    matrices = wanted(served, contributions)
    tail = 0.0
    for module, matrix in matrices.items():
        singular = np.linalg.svd(matrix, compute_uv=False)
        tail += float(np.sum(singular[4:] ** 2))
        np.testing.assert_allclose(
            np.linalg.svd(full(made.tensors, module), compute_uv=False)[:4],
            singular[:4],
            atol=1e-5 * (1 + singular[0]),
        )
    best = math.sqrt(tail / sum(np.linalg.norm(m) ** 2 for m in matrices.values()))
    assert made.agg_rel_err == pytest.approx(best, abs=1e-5)
    assert error(made.tensors, matrices) == pytest.approx(made.agg_rel_err, abs=1e-9)


@given(rounds(late=False))
@settings(deadline=None, max_examples=30)
def test_with_equal_ranks_the_product_mean_is_the_papers(found):
    """FlexLoRA's formula: the mean of A_i B_i, nothing subtracted."""
    served, contributions = found
    weights = np.array([c.weight for c in contributions])
    for module, matrix in target(served, contributions).items():
        products = [full(plus(c.start, c.change), module) for c in contributions]
        mean = np.average(products, axis=0, weights=weights)
        np.testing.assert_allclose(matrix.left @ matrix.right, mean, atol=1e-6)


@given(rounds(late=False))
@settings(deadline=None, max_examples=30)
def test_the_separate_mean_is_never_better_than_the_product_mean(found):
    served, contributions = found
    separate = SeparateMean().aggregate(served, contributions)
    matrices = wanted(served, contributions)
    assert error(separate.tensors, matrices) == pytest.approx(separate.agg_rel_err, abs=1e-9)
    best = ProductMean(4).aggregate(served, contributions)
    assert separate.agg_rel_err >= best.agg_rel_err - 1e-6
    if len(contributions) == 1:
        assert separate.agg_rel_err < 1e-6


def test_the_separate_mean_is_wrong():
    rng = np.random.default_rng(3)
    served = adapter(rng, 4, zero_b=True)
    contributions = [Contribution(served, change(rng, served)) for _ in range(4)]
    assert SeparateMean().aggregate(served, contributions).agg_rel_err > 0.05
    only_b = [Contribution(served, change(rng, served, b_only=True)) for _ in range(4)]
    assert FfaLora().aggregate(served, only_b).agg_rel_err < 1e-6


def test_a_device_of_low_rank_does_not_erase_what_it_cannot_hold():
    rng = np.random.default_rng(4)
    served = adapter(rng, 4)
    start = at_rank(served, 1)
    nothing = {name: np.zeros_like(tensor) for name, tensor in start.items()}
    made = ProductMean(4).aggregate(served, [Contribution(start, nothing)])
    assert made.agg_rel_err < 1e-6
    assert error(made.tensors, {m: full(served, m) for m in SIZES}) < 1e-6


def test_a_pair_of_a_lower_rank_stays_as_narrow():
    """An update's size, which says the rank of its device, must not change with the rounds."""
    rng = np.random.default_rng(6)
    wide, narrow = adapter(rng, 4), adapter(rng, 2)
    module = min(SIZES)
    served = {name: (narrow if name.startswith(module) else wide)[name] for name in wide}
    contributions = [Contribution(served, change(rng, served)) for _ in range(3)]
    made = ProductMean(4).aggregate(served, contributions).tensors
    assert shapes_of(made) == shapes_of(served)
    matrix = wanted(served, contributions)[module]
    u, singular, vt = np.linalg.svd(matrix, full_matrices=False)
    best = u[:, :2] * singular[:2] @ vt[:2]
    np.testing.assert_allclose(full(made, module), best, atol=1e-5)


def test_the_leading_columns_are_the_best_start_for_a_device_of_low_rank():
    rng = np.random.default_rng(5)
    served = adapter(rng, 4)
    made = ProductMean(4).aggregate(served, [Contribution(served, change(rng, served))]).tensors
    start = at_rank(made, 2)
    for module, (inputs, outputs) in SIZES.items():
        assert start[f"{module}.a"].shape == (inputs, 2)
        assert start[f"{module}.b"].shape == (2, outputs)
        matrix = full(made, module)
        left = np.linalg.norm(matrix - full(start, module))
        singular = np.linalg.svd(matrix, compute_uv=False)
        assert left == pytest.approx(np.linalg.norm(singular[2:]), abs=1e-5)
    np.testing.assert_array_equal(start[HEAD], made[HEAD])


def test_singular_values_are_shared_out_and_no_column_vanishes():
    rng = np.random.default_rng(2)
    served = adapter(rng, 4)
    served = {name: t * 30 if name.endswith(".b") else t for name, t in served.items()}
    nothing = {name: np.zeros_like(tensor) for name, tensor in served.items()}
    made = ProductMean(4).aggregate(served, [Contribution(served, nothing)]).tensors
    lengths = []
    for module in SIZES:
        a, b = (
            np.linalg.norm(made[f"{module}.{x}"], axis=axis) for x, axis in (("a", 0), ("b", 1))
        )
        singular = np.linalg.svd(full(served, module), compute_uv=False)[:4]
        np.testing.assert_allclose(a * b, singular, rtol=1e-4)
        np.testing.assert_allclose(a, np.maximum(1, np.sqrt(singular)), rtol=1e-4)
        lengths += list(a)
    assert max(lengths) > 2
    zero = {name: t * 0 if name.endswith(".b") else t for name, t in served.items()}
    made = ProductMean(4).aggregate(zero, [Contribution(zero, nothing)]).tensors
    for module in SIZES:
        np.testing.assert_allclose(np.linalg.norm(made[f"{module}.a"], axis=0), 1, rtol=1e-5)


@pytest.mark.parametrize("strategy", [FfaLora(), ProductMean(4)])
def test_heads_are_averaged_by_weight(strategy):
    rng = np.random.default_rng(6)
    served = adapter(rng, 4)
    contributions = [
        Contribution(served, change(rng, served, b_only=True), weight) for weight in (1.0, 3.0)
    ]
    made = strategy.aggregate(served, contributions)
    mean = 0.25 * contributions[0].change[HEAD] + 0.75 * contributions[1].change[HEAD]
    np.testing.assert_allclose(made.tensors[HEAD], served[HEAD] + mean, atol=1e-6)


def test_what_is_late_counts_less_and_does_not_gain_by_being_alone():
    assert [discount(gap) for gap in (0, 1, 4)] == [1, 1 / 2, 1 / 3]
    rng = np.random.default_rng(8)
    served = adapter(rng, 4)
    delta = change(rng, served, b_only=True)
    made = FfaLora().aggregate(served, [Contribution(served, delta, 5.0, gap=4)])
    name = f"{next(iter(SIZES))}.b"
    np.testing.assert_allclose(made.tensors[name], served[name] + delta[name] / 3, atol=1e-6)
    with pytest.raises(InvalidInput, match="gap"):
        discount(-1)


@pytest.mark.parametrize(
    "strategy",
    [FfaLora(TrimmedMean(0.2)), FfaLora(MultiKrum(1, 4)), ProductMean(4, MultiKrum(1, 4))],
)
def test_a_hostile_update_does_not_get_through(strategy):
    rng = np.random.default_rng(9)
    served = adapter(rng, 4)
    contributions = [
        Contribution(served, change(rng, served, b_only=True, spread=0.05)) for _ in range(5)
    ]
    honest = FfaLora().aggregate(served, contributions)
    hostile = {name: -1000 * tensor for name, tensor in contributions[0].change.items()}
    mixed = [*contributions, Contribution(served, hostile)]
    made = strategy.aggregate(served, mixed)
    matrices = {module: full(honest.tensors, module) for module in SIZES}
    assert error(made.tensors, matrices) < 0.2
    assert np.abs(made.tensors[HEAD] - honest.tensors[HEAD]).max() < 0.2
    # The plain mean is what they were asked to leave, and they say how far they went from it.
    assert error(FfaLora().aggregate(served, mixed).tensors, matrices) > 5
    assert made.agg_rel_err > 0.5
    assert not strategy.linear


def test_a_hostile_head_alone_is_seen_by_krum():
    rng = np.random.default_rng(10)
    served = adapter(rng, 4)
    contributions = [Contribution(served, change(rng, served, spread=0.05)) for _ in range(5)]
    hostile = {**contributions[0].change, HEAD: np.full((3, 5), 1e6, np.float32)}
    made = ProductMean(4, MultiKrum(1, 4)).aggregate(
        served, [*contributions, Contribution(served, hostile)]
    )
    assert np.abs(made.tensors[HEAD]).max() < 10


def test_a_masked_sum_serves_what_the_plain_mean_would_within_a_step():
    rng = np.random.default_rng(11)
    served = adapter(rng, 4)
    contributions = [Contribution(served, change(rng, served, b_only=True)) for _ in range(4)]
    fixed = FixedPoint.choose(4, bound=2.0, levels=1 << 20)
    total = sum(fixed.encode(flatten(c.change), rng) for c in contributions)
    strategy = FfaLora()
    assert strategy.linear
    shapes = shapes_of(contributions[0].change)
    plain = strategy.aggregate(served, contributions)
    masked = strategy.from_mean(served, fixed.decode(total) / 4, shapes)
    assert masked.agg_rel_err < 1e-6
    for name, tensor in plain.tensors.items():
        np.testing.assert_allclose(masked.tensors[name], tensor, atol=2 * fixed.step)


def test_the_optimiser_bends_the_step_and_not_the_reported_error():
    rng = np.random.default_rng(12)
    served = adapter(rng, 4)
    contributions = [Contribution(served, change(rng, served, b_only=True)) for _ in range(3)]
    strategy = FfaLora(optimiser=Momentum(rate=1.0, beta=0.9))
    first = strategy.aggregate(served, contributions)
    second = strategy.aggregate(first.tensors, contributions, first.state)
    assert second.agg_rel_err < 1e-6
    name = HEAD
    step = second.tensors[name] - first.tensors[name]
    np.testing.assert_allclose(step, 1.9 * (first.tensors[name] - served[name]), atol=1e-5)
    assert FRESH.first == {}


def test_noise_takes_the_place_of_the_mean():
    rng = np.random.default_rng(13)
    served = adapter(rng, 4)
    contributions = [Contribution(served, change(rng, served, b_only=True)) for _ in range(4)]
    seeded = [PrivateMean(1.0, 0.5, 4.0, np.random.default_rng(1)) for _ in range(2)]
    first, again = (FfaLora(rule).aggregate(served, contributions) for rule in seeded)
    np.testing.assert_array_equal(flatten(first.tensors), flatten(again.tensors))
    assert first.agg_rel_err > 0.01


@pytest.mark.parametrize(
    ("strategy", "fields", "problem"),
    [
        (FfaLora(), {"weight": 0.0}, "weight"),
        (FfaLora(), {"weight": math.nan}, "weight"),
        (ProductMean(4), {"weight": math.inf}, "weight"),
        (FfaLora(), {"change": {}}, "missing"),
        (ProductMean(4), {"change": {}}, "missing"),
        (FfaLora(), {"gap": -1}, "gap"),
    ],
)
def test_a_contribution_that_does_not_fit_is_refused(strategy, fields, problem):
    rng = np.random.default_rng(14)
    served = adapter(rng, 4)
    good = Contribution(served, change(rng, served, b_only=True))
    with pytest.raises(InvalidInput, match=problem):
        strategy.aggregate(served, [dataclasses.replace(good, **fields)])
    with pytest.raises(InvalidInput, match="updates"):
        strategy.aggregate(served, [])


def test_ffa_lora_refuses_a_trained_a():
    rng = np.random.default_rng(15)
    served = adapter(rng, 4)
    with pytest.raises(InvalidInput, match=r"\.a: is not part of the plan"):
        FfaLora().aggregate(served, [Contribution(served, change(rng, served))])
