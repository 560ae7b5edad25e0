"""What the rounds of a store have spent of differential privacy, and what the next one will have.

Every round whose result was published counts, whatever the gate said of it, and so does one that
was abandoned while it was aggregated: its result may have been. One that was abandoned before that
has told nobody anything. Devices come when they like, so each round counts in full
(``sampling="none"``). A round without noise promises nothing of those who took part in it, and no
later noise makes up for it: such rounds are counted apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cascade.errors import CascadeError
from cloud.federation.database import Transaction
from cloud.federation.privacy import Cost, NoisedRounds, epsilon

_PUBLISHED = (
    "(state IN ('waiting', 'approved', 'rejected') OR (state = 'abandoned' AND counted > 0))"
)


@dataclass(frozen=True, slots=True)
class Account:
    """A store's history.

    Arguments:
        noised: rounds that were published with noise, or may have been.
        bare: how many without.
        multiplier, delta: of the round that was opened last; ``None`` where it has no noise.
    """

    noised: tuple[NoisedRounds, ...]
    bare: int
    multiplier: float | None
    delta: float | None

    def spent(self) -> float | None:
        """ε of all that was published with noise, at ``delta``; ``None`` where there is no δ."""
        return None if self.delta is None else epsilon(self.noised, self.delta)

    def next(self) -> Cost | None:
        """ε before and after one more round like the last."""
        if self.multiplier is None or self.delta is None:
            return None
        return _cost(self.noised, self.multiplier, self.delta)


def account(tx: Transaction) -> Account:
    """The store's."""
    rows = tx.all(
        "SELECT noise_multiplier, COUNT(*) FROM rounds "
        f"WHERE {_PUBLISHED} GROUP BY noise_multiplier ORDER BY noise_multiplier"
    )
    noised = tuple(NoisedRounds(int(n), float(z)) for z, n in rows if z is not None)
    bare = sum(int(n) for z, n in rows if z is None)
    last = tx.one("SELECT noise_multiplier, delta FROM rounds ORDER BY number DESC LIMIT 1")
    multiplier, delta = (None, None) if last is None else last
    return Account(
        noised,
        bare,
        None if multiplier is None else float(multiplier),
        None if delta is None else float(delta),
    )


def cost(history: Account, multiplier: float | None, delta: float) -> Cost | None:
    """What a round with so much noise makes of ε; ``None`` without noise, or where it cannot be
    told: without the extra ``privacy``, above all."""
    if multiplier is None:
        return None
    try:
        return _cost(history.noised, multiplier, delta)
    except CascadeError:
        return None


@lru_cache(maxsize=16)
def _cost(noised: tuple[NoisedRounds, ...], multiplier: float, delta: float) -> Cost:
    """Kept, because a coordinator that may open no round asks twice a second."""
    before = tuple(each for each in noised if each.noise_multiplier != multiplier)
    alike = sum(each.rounds for each in noised if each.noise_multiplier == multiplier)
    # Rounds alike as one entry: composed one by one, the last digits differ, and a budget that is
    # good for N rounds by `rounds_within` would stop before the last of them.
    after = epsilon((*before, NoisedRounds(alike + 1, multiplier)), delta)
    return Cost(epsilon(noised, delta), after, delta)
