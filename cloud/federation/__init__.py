"""The coordinator's mathematics: from a round's updates to the next adapter, and what it cost.

``strategies`` is the seam, ``low_rank`` the algebra below it; ``robust`` and ``optimisers`` may
take the place of the mean and of the plain step; ``privacy`` is noise and its account. No I/O.
"""

from cloud.federation.optimisers import FRESH, Adam, Momentum, Plain, ServerOptimiser, State
from cloud.federation.privacy import (
    Cost,
    NoisedRounds,
    PrivateMean,
    cost_of_next,
    epsilon,
    usual_delta,
)
from cloud.federation.robust import Median, MultiKrum, Rule, TrimmedMean, WeightedMean, bound_norms
from cloud.federation.strategies import (
    Aggregate,
    Contribution,
    FfaLora,
    ProductMean,
    SeparateMean,
    Strategy,
    discount,
    relative_error,
    target,
)

__all__ = [
    "FRESH",
    "Adam",
    "Aggregate",
    "Contribution",
    "Cost",
    "FfaLora",
    "Median",
    "Momentum",
    "MultiKrum",
    "NoisedRounds",
    "Plain",
    "PrivateMean",
    "ProductMean",
    "Rule",
    "SeparateMean",
    "ServerOptimiser",
    "State",
    "Strategy",
    "TrimmedMean",
    "WeightedMean",
    "bound_norms",
    "cost_of_next",
    "discount",
    "epsilon",
    "relative_error",
    "target",
    "usual_delta",
]
