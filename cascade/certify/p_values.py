"""P-values of "the mean loss is above alpha" for independent rows with losses in [0, 1].

Three methods, all valid for every sample size:

``clopper_pearson``: exact, for losses of 0 and 1 only. P(Bin(n, alpha) ≤ k).
``hoeffding_bentkus``: any loss in [0, 1]; needs only the sum. Bates et al. 2021 (arXiv 2101.02703,
    theorem 3), Learn then Test (arXiv 2110.01052, proposition 2).
``betting``: any loss in [0, 1]; adapts to the variance of the losses, so it is the strongest where
    they vary little. Waudby-Smith and Ramdas 2020 (arXiv 2010.09686). It reads the rows in order,
    and the order must not depend on the losses.

The first two take sums and counts of any shape, elementwise. Needs scipy (``tune`` extra).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from cascade.binomial import binomial_tail
from cascade.rows import Floats

_BET_LEVEL = 0.1  # bets are sized for a test at this level; they are valid at every other
_MOST_BET = 0.99


def clopper_pearson(total: ArrayLike, rows: ArrayLike, alpha: float) -> Floats:
    """P(Bin(rows, alpha) ≤ total); 1 where there is no row. ``total`` counts losses of 1."""
    return binomial_tail(total, rows, alpha)


def hoeffding_bentkus(total: ArrayLike, rows: ArrayLike, alpha: float) -> Floats:
    """min(exp(-n·kl(min(mean, alpha), alpha)), e · P(Bin(n, alpha) ≤ ⌈total⌉)), at most 1.

    Arguments:
        total: sums of losses, 0 … rows.
        rows: how many losses each sum has; the p-value is 1 where there is none.
        alpha: in (0, 1).
    """
    sums, n = np.asarray(total, np.float64), np.asarray(rows, np.float64)
    mean = np.minimum(sums / np.maximum(n, 1), alpha)
    hoeffding = np.exp(-n * _bernoulli_kl(mean, alpha))
    bentkus = np.e * binomial_tail(np.ceil(sums), n, alpha)
    return np.minimum(1.0, np.minimum(hoeffding, bentkus))


def betting(losses: Floats, alpha: float) -> float:
    """1 / the largest wealth that betting on "the mean is at most alpha" reaches (Ville).

    Wealth starts at 1 and is multiplied by 1 + bet · (alpha - loss) at every row. The bet is fixed
    before the row is seen, from mean and variance of the rows before it (the predictable plug-in of
    section 3.2, one-sided), and stays below 1, which keeps wealth positive and lets the p-value
    fall as alpha rises. While the mean is above alpha, wealth is a supermartingale.

    Arguments:
        losses: in [0, 1], in an order that does not depend on them, shape ``[rows]``; may be empty.
        alpha: in (0, 1).
    """
    if not len(losses):
        return 1.0
    count = np.arange(1, len(losses) + 1)
    mean = (0.5 + np.cumsum(losses)) / (count + 1)
    variance = (0.25 + np.cumsum((losses - mean) ** 2)) / (count + 1)
    before = np.concatenate([[0.25], variance[:-1]])
    bet = np.sqrt(2 * np.log(1 / _BET_LEVEL) / (len(losses) * before))
    wealth = np.cumsum(np.log1p(np.minimum(bet, _MOST_BET) * (alpha - losses)))
    return float(np.exp(-max(wealth.max(), 0.0)))


def _bernoulli_kl(a: Floats, b: float) -> Floats:
    """Relative entropy of Bernoulli(a) to Bernoulli(b), for a ≤ b."""
    left = np.where(a > 0, a * np.log(np.where(a > 0, a, 1.0) / b), 0.0)
    rest = 1 - a
    right = np.where(rest > 0, rest * np.log(np.where(rest > 0, rest, 1.0) / (1 - b)), 0.0)
    return left + right
