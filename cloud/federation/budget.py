"""A budget of ε: no round is opened that would spend more than it.

The coordinator decides, because it alone knows the history; it notes in the store why it stands
still, for the gateways, which tell devices, and for the operator. What a round costs is
``account``'s.
"""

from __future__ import annotations

from typing import Final

from cloud.federation.database import Transaction
from cloud.federation.privacy import NoisedRounds, epsilon

MOST_ROUNDS: Final = 10_000
"""Nobody counts further."""
_FACT: Final = "privacy_budget_spent"


def exceeded(after: float | None, most: float | None) -> str | None:
    """Why no further round may be opened, in a line; ``None`` where one may.

    Arguments:
        after: ε of the fleet once that round has ended; ``None`` where it cannot be told.
        most: the budget; ``None`` for none.
    """
    if most is None or (after is not None and after <= most):
        return None
    if after is None:
        return "ε cannot be told (that takes the extra privacy), and most_epsilon is set"
    return f"one more round would make ε {after:.3g}, and most_epsilon is {most:g}"


def note(tx: Transaction, why: str | None) -> bool:
    """Keep why no round is opened, or that nothing stands in the way; whether that is news."""
    if why == standing_still(tx):
        return False
    tx.run("DELETE FROM facts WHERE name = ?", _FACT)
    if why is not None:
        tx.run("INSERT INTO facts VALUES (?, ?)", _FACT, why)
    return True


def standing_still(tx: Transaction) -> str | None:
    """Why the coordinator opens no round, if that is for the budget."""
    row = tx.one("SELECT value FROM facts WHERE name = ?", _FACT)
    return None if row is None else str(row[0])


def rounds_within(most: float, noise_multiplier: float, delta: float) -> int:
    """How many rounds of this noise a new store's budget is good for, up to ``MOST_ROUNDS``.

    Raises:
        CascadeError: as ``epsilon``.
    """

    def fits(rounds: int) -> bool:
        return epsilon([NoisedRounds(rounds, noise_multiplier)], delta) <= most

    good, bad = 0, 1
    while bad <= MOST_ROUNDS and fits(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, MOST_ROUNDS + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good
