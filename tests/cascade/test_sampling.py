"""Sampling parameters are checked by name; greedy is the default."""

from __future__ import annotations

import dataclasses
import math

import pytest

from cascade.errors import InvalidInput
from cascade.request import Message, Request
from cascade.sampling import GREEDY, Sampling


def test_the_default_is_greedy_and_keeps_everything() -> None:
    Sampling().check()
    assert Sampling() == GREEDY
    assert GREEDY.greedy
    assert GREEDY.keeps_all
    assert GREEDY.seed is None


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", [-0.1, 2.1, math.nan, math.inf]),
        ("top_p", [0.0, -0.5, 1.1, math.nan]),
        ("top_k", [-1, 2**31]),
        ("min_p", [-0.1, 1.1, math.nan]),
        ("repetition_penalty", [0.0, -1.0, 2.5, math.nan]),
        ("seed", [-1, 2**32 - 1]),
    ],
)
def test_what_is_out_of_range_is_refused_by_its_name(field: str, values: list[float]) -> None:
    for value in values:
        sampling = dataclasses.replace(GREEDY, **{field: value})
        request = Request((Message("user", "hello"),), sampling=sampling)
        with pytest.raises(InvalidInput) as refused:
            request.check()
        assert refused.value.field == field
        with pytest.raises(InvalidInput, match=rf"sampling\.{field}: "):
            sampling.check("sampling.")


def test_the_ends_of_the_ranges_are_allowed() -> None:
    Sampling(2.0, 1e-6, 2**31 - 1, 1.0, 2.0, 2**32 - 2).check()
    Sampling(0.0, 1.0, 0, 0.0, 1e-6, 0).check()
