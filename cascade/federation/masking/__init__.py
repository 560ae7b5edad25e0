"""Secure aggregation: the server learns the sum of the devices' vectors, and of no one's its own.

The protocol of Bonawitz et al. 2017 (https://doi.org/10.1145/3133956.3133982; its first version is
arXiv 1611.04482) with double masks, for a server that follows it but is curious. ``README.md``
beside this file has the picture, the costs and what it does not protect from. No network here:
messages are values with bytes.
"""

from cascade.federation.masking.collector import Collector, Phase
from cascade.federation.masking.fixed_point import FixedPoint, WordBits, Words
from cascade.federation.masking.member import Member
from cascade.federation.masking.messages import (
    MAX_COHORT,
    SESSION_BYTES,
    Dealt,
    Delivered,
    Keys,
    Parcel,
    Revealed,
    Roster,
    Survivors,
)

__all__ = [
    "MAX_COHORT",
    "SESSION_BYTES",
    "Collector",
    "Dealt",
    "Delivered",
    "FixedPoint",
    "Keys",
    "Member",
    "Parcel",
    "Phase",
    "Revealed",
    "Roster",
    "Survivors",
    "WordBits",
    "Words",
]
