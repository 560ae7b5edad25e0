"""What an escalated request costs: as recorded, or by a price that the reader of the page sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cascade.report.evaluated import Evaluated, TierRows
from cascade.rows import Floats

Basis = Literal["recorded", "tokens", "requests"]


@dataclass(frozen=True, slots=True, eq=False)
class Pricing:
    """How costs come about; ``price`` times ``unit_cost`` is dollars.

    Arguments:
        basis: ``"recorded"``: the price is a factor on the costs in the records; ``"tokens"``:
            dollars for a million tokens, read or written; ``"requests"``: for 1,000 requests.
        price: where the page starts: 1. Unless costs were recorded it is an assumption, and is
            called one.
        device_usd: what each row costs on the device, which the price leaves alone; 0 where it is
            not known.
    """

    basis: Basis
    price: float
    device_usd: Floats

    def unit_cost(self, tier: TierRows) -> Floats:
        """Dollars of each row at a price of 1; NaN where that cannot be told."""
        if self.basis == "recorded":
            return tier.cost_usd
        if self.basis == "tokens":
            return tier.tokens / 1e6
        return np.full(len(tier.right), 1e-3)

    def cost_usd(self, tier: TierRows) -> Floats:
        """Dollars of each row at the price."""
        return self.price * self.unit_cost(tier)


def pricing(rows: Evaluated) -> Pricing:
    """Recorded costs where every row has one and not all are 0; else tokens; else requests."""
    strong = rows.strong
    basis: Basis = "requests"
    if strong is not None:
        if np.nansum(strong.cost_usd) > 0 and not np.isnan(strong.cost_usd).any():
            basis = "recorded"
        elif np.nansum(strong.tokens) > 0 and not np.isnan(strong.tokens).any():
            basis = "tokens"
    return Pricing(basis, 1.0, np.nan_to_num(rows.device.cost_usd, nan=0.0))
