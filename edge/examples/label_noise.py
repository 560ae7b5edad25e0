"""Which labels are probably wrong: confident learning (Northcutt, Jiang and Chuang, "Confident
Learning: Estimating Uncertainty in Dataset Labels", JAIR 70, 2021, arXiv 1911.00068).

Written here in NumPy: the package by its authors, cleanlab, is AGPL and brings scikit-learn and
pandas, which is neither a licence nor a weight for a device. The rule needs no more than the
probabilities that ``choose`` computed before it learned from the example (the paper's
"out-of-sample" ones).

The rule suspects; it does not convict. A device escalates because it is the weaker one, so many of
its confident contradictions are its own errors. A suspected label is therefore weighted by
P(label right) from *both*: the device's probabilities and how often the label's source is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascade.errors import InvalidInput
from cascade.rows import Bools, Floats

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Doubts:
    """What confident learning says of labels.

    Arguments:
        suspect: bool, shape ``[rows]``: the device is confident of another label.
        other: int64, shape ``[rows]``: of which; the label itself where it is not suspect.
        joint: int64, shape ``[labels, labels]``: rows counted by label and confident label; the
            paper's confident joint C.
        noise: estimated share of wrong labels, in [0, 1], from the joint scaled to the counts of
            the labels. Too high where the device is the weaker one.
    """

    suspect: Bools
    other: Ints
    joint: Ints
    noise: float


def doubts(probabilities: ArrayLike, labels: ArrayLike) -> Doubts:
    """Apply confident learning.

    Arguments:
        probabilities: in [0, 1], shape ``[rows, labels]``.
        labels: places in ``probabilities``, shape ``[rows]``.

    Raises:
        InvalidInput: the shapes do not fit, or values are out of range.
    """
    p, given = _checked(probabilities, labels)
    rows, count = np.arange(len(p)), p.shape[1]
    counts = np.bincount(given, minlength=count)
    # §3.1: the threshold of a label is its mean probability among the rows that carry it.
    sums = np.bincount(given, weights=p[rows, given], minlength=count)
    thresholds = np.divide(sums, counts, out=np.full(count, np.inf), where=counts > 0)
    passing = np.where(p >= thresholds, p, -1.0)
    confident = passing.max(axis=1) >= 0
    likeliest = passing.argmax(axis=1)
    suspect = confident & (likeliest != given)
    joint = np.zeros((count, count), dtype=np.int64)
    np.add.at(joint, (given[confident], likeliest[confident]), 1)
    totals = joint.sum(axis=1)
    # Eq. 3: each row of the joint, scaled to the number of rows with that label.
    wrong = np.divide(
        totals - np.diag(joint), totals, out=np.zeros(count), where=totals > 0
    ) * np.where(totals > 0, counts, 0)
    seen = counts[totals > 0].sum()
    return Doubts(
        suspect,
        np.where(suspect, likeliest, given).astype(np.int64),
        joint,
        float(wrong.sum() / seen) if seen else 0.0,
    )


def label_right(probabilities: ArrayLike, labels: ArrayLike, trust: ArrayLike) -> Floats:
    """P(label right), shape ``[rows]``, by Bayes' rule from device and source, whose errors are
    taken as independent, and those of the source as spread evenly over the other labels.

    Arguments:
        probabilities, labels: see ``doubts``.
        trust: P(the source is right), in (0, 1], shape ``[rows]``.
    """
    p, given = _checked(probabilities, labels)
    source = np.asarray(trust, dtype=np.float64)
    own = p[np.arange(len(p)), given]
    right = source * own
    wrong = (1 - source) / max(1, p.shape[1] - 1) * (1 - own)
    total = right + wrong
    share: Floats = np.divide(right, total, out=np.zeros(len(p)), where=total > 0)
    return share


def _checked(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Floats, Ints]:
    p, given = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if p.ndim != 2 or given.shape != p.shape[:1]:
        raise InvalidInput("probabilities", "must have one row for each label")
    if p.size and not ((p >= 0) & (p <= 1)).all():
        raise InvalidInput("probabilities", "must lie between 0 and 1")
    if given.size and not ((given >= 0) & (given < p.shape[1])).all():
        raise InvalidInput("labels", "must be places in probabilities")
    return p, given
