"""A policy applied to records, offline: every figure of it, with intervals by document.

``figures`` says what is computed, ``bootstrap`` how sure that is, ``apply`` puts them together.
"""

from cascade.replay.apply import Checked, Replayed, check_fits, replay
from cascade.replay.bootstrap import Interval, intervals
from cascade.replay.figures import UNITS, Figures
from cascade.replay.ladder import LADDER_UNITS, replay_ladder

__all__ = [
    "LADDER_UNITS",
    "UNITS",
    "Checked",
    "Figures",
    "Interval",
    "Replayed",
    "check_fits",
    "intervals",
    "replay",
    "replay_ladder",
]
