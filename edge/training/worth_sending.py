"""Whether an adapter that was trained here is better than its parent, and so worth sending.

Both answer the examples that were kept aside. The rule is a paired sign-flip (permutation) test of
the mean difference of their losses (Fisher 1935, §21): under "no better", each difference is as
likely to have the other sign, so the share of sign patterns with a mean at most as low as the one
seen is a valid p-value. At most ``level`` of the adapters that are no better than their parents are
sent, if nothing about them was chosen by these examples. A device's head is the best of three there
(``edge.federation.head_trainer.learned``): up to three times ``level`` of such heads are sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike

from cascade.errors import InvalidInput
from cascade.rows import Floats, numbers, same_length

_EXACT: Final = 12  # so many differences have 4,096 patterns, which are all looked at
_DRAWS: Final = 4_095
_TIES: Final = 1e-12

Word = Literal["better", "worse", "not_shown_better", "too_few", "not_finite"]


@dataclass(frozen=True, slots=True)
class Worth:
    """The verdict.

    Arguments:
        send: whether to send it.
        word: why.
        n: examples that were compared.
        gain: mean of the parent's loss less the adapter's, > 0 where the adapter is better; NaN
            where that cannot be told.
        p: p-value of "the adapter is no better".
    """

    send: bool
    word: Word
    n: int
    gain: float
    p: float


def worth_sending(
    parent_losses: ArrayLike,
    adapter_losses: ArrayLike,
    *,
    level: float = 0.5,
    least: int = 1,
    seed: int = 0,
) -> Worth:
    """Compare an adapter with its parent.

    Arguments:
        parent_losses, adapter_losses: of the same examples in the same order, shape ``[examples]``.
        level: see above, in (0, 0.5]. At 0.5 only what is worse stays: a weak adapter costs a round
            little, for the cluster averages many and tests the result, and on a device's few
            examples kept aside hardly anything can be shown.
        least: with fewer examples nothing is sent, ≥ 1.
        seed: of the sign patterns that are drawn where there are too many for all.

    Raises:
        InvalidInput: the lengths differ, or an argument is out of range.
    """
    if not 0 < level <= 0.5:
        raise InvalidInput("level", f"{level} is not in (0, 0.5]")
    if least < 1:
        raise InvalidInput("least", f"{least} is below 1")
    if not np.size(parent_losses) and not np.size(adapter_losses):
        return Worth(False, "too_few", 0, float("nan"), 1.0)
    parent = numbers("parent_losses", parent_losses)
    adapter = numbers("adapter_losses", adapter_losses)
    same_length("parent_losses", parent, "adapter_losses", adapter)
    n = len(parent)
    if not (np.isfinite(parent).all() and np.isfinite(adapter).all()):
        return Worth(False, "not_finite", n, float("nan"), 1.0)
    difference = adapter - parent
    gain = -float(difference.mean())
    p = sign_flip_p(difference, seed=seed)
    if n < least:
        return Worth(False, "too_few", n, gain, p)
    if gain <= 0:
        return Worth(False, "worse" if gain < 0 else "not_shown_better", n, gain, p)
    send = p <= level
    return Worth(send, "better" if send else "not_shown_better", n, gain, p)


def sign_flip_p(difference: Floats, *, seed: int = 0) -> float:
    """P(mean at most as low as that of ``difference`` | each sign is as likely as the other).

    Of up to 12 differences exact; of more, from 4,095 drawn patterns and the one seen, which keeps
    it valid (Phipson and Smyth 2010).
    """
    n = len(difference)
    if n <= _EXACT:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        drawn = np.random.default_rng(seed).integers(0, 2, (_DRAWS, n))
        signs = np.vstack([np.ones(n), 1.0 - 2.0 * drawn])
    sums = signs @ difference
    slack = _TIES * float(np.abs(difference).sum())
    return float((sums <= difference.sum() + slack).mean())
