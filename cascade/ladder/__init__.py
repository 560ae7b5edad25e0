"""Ladders of more than two tiers: who answers, searched on records and certified on others.

``policy`` says what a ladder does with a request, ``rows`` what records tell of its tiers,
``objective`` what is wanted, ``pareto`` finds it. Ladders are for analysis: a device follows
policies of two sides (``cascade.policy``).
"""

from cascade.ladder.objective import Limit, Objective, read_objective
from cascade.ladder.pareto import Scored, Searched, describe, pareto_front, score, search
from cascade.ladder.policy import Bound, Ladder, LadderCertificate, LadderPolicy, Taken, is_ladder
from cascade.ladder.rows import LadderRows, ladder_rows

__all__ = [
    "Bound",
    "Ladder",
    "LadderCertificate",
    "LadderPolicy",
    "LadderRows",
    "Limit",
    "Objective",
    "Scored",
    "Searched",
    "Taken",
    "describe",
    "is_ladder",
    "ladder_rows",
    "pareto_front",
    "read_objective",
    "score",
    "search",
]
