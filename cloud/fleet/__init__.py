"""A whole fleet on one machine: the product's own devices and coordinator, in simulated time.

``rows`` is what the fleet is asked and ``plan`` what is done to it; a ``device`` lives in one of
the ``hosts`` and may be ``hostile``; the ``cluster`` is the other side, the ``referee`` judges what
comes of it, and ``simulation`` puts them together.
"""

from cloud.fleet.figures import FleetResult, RoundFigures
from cloud.fleet.hosts import BundleAt
from cloud.fleet.plan import Attackers, AttackKind, FleetPlan
from cloud.fleet.rows import FleetRow, Partition, Parts, parts, read_rows
from cloud.fleet.simulation import FleetSimulation

__all__ = [
    "AttackKind",
    "Attackers",
    "BundleAt",
    "FleetPlan",
    "FleetResult",
    "FleetRow",
    "FleetSimulation",
    "Partition",
    "Parts",
    "RoundFigures",
    "parts",
    "read_rows",
]
