"""Server optimisers against the papers' recursions, in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cascade.errors import InvalidInput
from cloud.federation import FRESH, Adam, Momentum, Plain

CHANGES = [0.5, -1.0, 0.25, 2.0]


def steps(optimiser):
    state, found = FRESH, []
    for change in CHANGES:
        step, state = optimiser.step({"x": np.array([change, 0.0], np.float32)}, state)
        assert step["x"].dtype == np.float32
        assert step["x"][1] == 0
        found.append(float(step["x"][0]))
    return found


def test_plain_scales():
    assert steps(Plain(2.0)) == [2 * change for change in CHANGES]


def test_momentum_is_fed_avg_m():
    v, expected = 0.0, []
    for change in CHANGES:
        v = 0.9 * v + change
        expected.append(0.5 * v)
    assert steps(Momentum(0.5, 0.9)) == pytest.approx(expected, rel=1e-6)


def test_adam_is_fed_adam():
    rate, b1, b2, tau = 0.1, 0.9, 0.99, 0.01
    m, v, expected = 0.0, tau**2, []
    for change in CHANGES:
        m = b1 * m + (1 - b1) * change
        v = b2 * v + (1 - b2) * change**2
        expected.append(rate * m / (math.sqrt(v) + tau))
    assert steps(Adam(rate, b1, b2, tau)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Plain(0.0),
        lambda: Plain(math.nan),
        lambda: Momentum(beta=1.0),
        lambda: Adam(tau=0.0),
        lambda: Adam(beta2=-0.1),
    ],
)
def test_settings_that_mean_nothing_are_refused(make):
    with pytest.raises(InvalidInput):
        make()
