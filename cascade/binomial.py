"""Exact binomial statistics: tail, bounds, and what a sample lets one expect of the next.

Needs scipy (the ``tune`` extra), imported on the first call: a device can do without.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import ArrayLike

from cascade.errors import CascadeError, InvalidInput
from cascade.rows import Floats


def binomial_tail(successes: ArrayLike, trials: ArrayLike, rate: float) -> Floats:
    """P(Bin(trials, rate) ≤ successes), elementwise, float64; 1 where successes ≥ trials.

    By the regularised incomplete beta function I₁₋ᵣ(n - k, k + 1) (Abramowitz and Stegun 26.5.24).

    Raises:
        CascadeError: scipy is not installed.
    """
    k, n = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    some = k < n
    tail = _special().betainc(np.where(some, n - k, 1.0), k + 1, 1 - rate)
    return np.where(some, tail, 1.0)


def upper_bound(successes: int, trials: int, delta: float) -> float:
    """One-sided 1 - delta upper bound of a rate (Clopper and Pearson 1934), in (0, 1].

    It is at most r exactly when ``binomial_tail(successes, trials, r) ≤ delta``.

    Raises:
        CascadeError: scipy is not installed.
    """
    if successes >= trials:
        return 1.0
    return float(_special().betaincinv(successes + 1, trials - successes, 1 - delta))


def clopper_pearson_interval(
    successes: int, trials: int, level: float = 0.95
) -> tuple[float, float]:
    """Exact two-sided interval of a rate (Clopper and Pearson 1934), within [0, 1].

    Arguments:
        successes, trials: counts, 0 ≤ successes ≤ trials, trials ≥ 1.
        level: confidence level in (0, 1).

    Raises:
        InvalidInput: counts or level out of range.
        CascadeError: scipy is not installed.
    """
    check_counts(successes, trials)
    check_level("level", level)
    tail = (1 - level) / 2
    lower = 1 - upper_bound(trials - successes, trials, tail)
    return lower, upper_bound(successes, trials, tail)


def predicted_tail(
    at_most: int,
    trials: int,
    *,
    seen_successes: int,
    seen_trials: int,
    prior: tuple[float, float] = (1.0, 1.0),
) -> float:
    """P(at most ``at_most`` successes in ``trials`` new ones | what was seen).

    The number of successes is beta-binomial with a = seen successes + prior[0], b = seen failures
    + prior[1] (Gelman et al., Bayesian Data Analysis, 3rd ed., §2.3); the prior is uniform unless
    another beta distribution is given. 0 for ``at_most`` below 0.

    Raises:
        CascadeError: scipy is not installed.
    """
    betaln = _special().betaln
    k = np.arange(min(at_most, trials) + 1)
    a, b = seen_successes + prior[0], seen_trials - seen_successes + prior[1]
    log_choose = -np.log(trials + 1) - betaln(trials - k + 1, k + 1)
    log_mass = log_choose + betaln(k + a, trials - k + b) - betaln(a, b)
    return min(1.0, float(np.exp(log_mass).sum()))


def check_counts(successes: int, trials: int) -> None:
    """Raise ``InvalidInput`` unless 0 ≤ successes ≤ trials and trials ≥ 1."""
    if trials < 1:
        raise InvalidInput("trials", f"{trials} is below 1")
    if not 0 <= successes <= trials:
        raise InvalidInput("successes", f"{successes} is not in 0 … {trials}")


def check_level(field: str, value: float) -> None:
    """Raise ``InvalidInput`` unless ``value`` lies strictly between 0 and 1."""
    if not 0 < value < 1:
        raise InvalidInput(field, f"{value} is not between 0 and 1")


def _special() -> ModuleType:
    try:
        from scipy import special
    except ImportError:
        raise CascadeError("this needs scipy: pip install 'edge-cloud-cascade[tune]'") from None
    return special  # type: ignore[no-any-return]
