"""Ladders of more than two tiers: who answers, searched on records and certified on others.

``rungs`` says what follows an answer; ``policy`` is the signed file, ``rows`` what records tell of
its tiers, ``objective`` what is wanted, ``pareto`` finds it. Followed at run time by the same rule:
``step`` takes one request up, ``device`` is its lowest rung on a device.
"""

from cascade.ladder.objective import Limit, Objective, read_objective
from cascade.ladder.pareto import Scored, Searched, describe, pareto_front, score, search
from cascade.ladder.policy import Bound, LadderCertificate, LadderPolicy, is_ladder
from cascade.ladder.rows import LadderRows, ladder_rows
from cascade.ladder.rungs import Ladder, Taken
from cascade.ladder.step import Heard, Step, confidence_in, next_step

__all__ = [
    "Bound",
    "Heard",
    "Ladder",
    "LadderCertificate",
    "LadderPolicy",
    "LadderRows",
    "Limit",
    "Objective",
    "Scored",
    "Searched",
    "Step",
    "Taken",
    "confidence_in",
    "describe",
    "is_ladder",
    "ladder_rows",
    "next_step",
    "pareto_front",
    "read_objective",
    "score",
    "search",
]
