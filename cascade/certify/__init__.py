"""Chooses the confidence above which the device may answer, with a guarantee.

Learn then Test (Angelopoulos et al. 2021, arXiv 2110.01052): targets on mean losses, p-values for
every threshold of a grid, and a family-wise test over the grid. ``README.md`` beside this file has
the mathematics. Needs the ``tune`` extra (scipy). The result is a
``cascade.certificate.Certificate``; fitting the confidence itself is ``cascade.calibrate``.
"""

from cascade.certify.families import Bonferroni, Family, FixedSequence, Holm
from cascade.certify.grid import COVERAGES, plan_grid, plan_targets, threshold_grid
from cascade.certify.groups import certify_groups
from cascade.certify.naive import UncertifiedThreshold, naive_threshold, quantile_threshold
from cascade.certify.search import certify, certify_targets, data_digest
from cascade.certify.targets import (
    Target,
    cost_usd,
    deadline_misses,
    escalation_share,
    excess_error,
    net_error,
    selective_risk,
)

__all__ = [
    "COVERAGES",
    "Bonferroni",
    "Family",
    "FixedSequence",
    "Holm",
    "Target",
    "UncertifiedThreshold",
    "certify",
    "certify_groups",
    "certify_targets",
    "cost_usd",
    "data_digest",
    "deadline_misses",
    "escalation_share",
    "excess_error",
    "naive_threshold",
    "net_error",
    "plan_grid",
    "plan_targets",
    "quantile_threshold",
    "selective_risk",
    "threshold_grid",
]
