"""Trains a head (``edge.head``) on what a model shows of examples; numpy alone.

The strength of the penalty is chosen by cross-validation, because a share kept aside of a hundred
examples tells too little, and what the other folds said of an example is what the weight of the
model's own scores is fitted on. A head with a parent stays as near to it as the examples allow, so
that devices can go on from a common one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput
from edge.head import MAX_LM_WEIGHT, Floats, Head, HeadSpec
from edge.training.softmax import Doubles, fit_softmax, log_softmax, rotated

STRENGTHS = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
"""Penalties that are tried, the strongest first; of a loss that is a mean over examples."""

BIAS_STRENGTH = 0.01
"""Of the answers' biases. A fold may lack an answer, whose bias would go to −∞: without this, of 50
labels of 15 commands these losses alone chose the penalty, and the head was right on 48 % in place
of 77 %."""

FOLDS = 5


@dataclass(frozen=True, slots=True)
class HeadData:
    """Examples of one task as a head sees them.

    Arguments:
        features: float32, shape ``[examples, features]``.
        scores: the model's own corrected scores, float64, shape ``[examples, options]``.
        labels: index of the right answer of each.
        weights: of each, ≥ 0.
        groups: equal examples have an equal one, and stay on one side of every split.
    """

    features: Floats
    scores: Doubles
    labels: NDArray[np.intp]
    weights: Doubles
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.intp]) -> HeadData:
        """Some of the examples."""
        return HeadData(
            self.features[rows],
            self.scores[rows],
            self.labels[rows],
            self.weights[rows],
            tuple(self.groups[row] for row in rows),
        )

    def joined(self, others: HeadData) -> HeadData:
        """These examples, and others of the same task behind them."""
        return HeadData(
            np.concatenate([self.features, others.features]),
            np.concatenate([self.scores, others.scores]),
            np.concatenate([self.labels, others.labels]),
            np.concatenate([self.weights, others.weights]),
            self.groups + others.groups,
        )


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained head.

    Arguments:
        l2: the penalty that was chosen.
        loss: mean −log P(right answer) of the head alone, by cross-validation; None where the
            penalty was given.
    """

    head: Head
    l2: float
    loss: float | None


def train_head(
    spec: HeadSpec,
    data: HeadData,
    *,
    parent: Head | None = None,
    l2: float | None = None,
    lm_data: HeadData | None = None,
    on_top_of_lm: float | None = None,
    balance: bool = False,
    seed: int = 0,
) -> Trained:
    """Fit a head.

    Arguments:
        spec: its ``lm_weight`` is fitted here, and what it says is not looked at.
        data: to learn from.
        parent: to go on from: what standardises features is its own, and the penalty is on the
            distance from it.
        l2: the penalty; None chooses it.
        lm_data: to weigh the model's own scores on, where those of ``data`` would flatter, because
            the model has been trained on it. None takes ``data``, by cross-validation.
        on_top_of_lm: weight of the model's own scores, where it is settled: the head is fitted to
            what they leave open. None fits the weight.
        balance: count every answer that occurs as often as any other.
        seed: of the folds.

    Raises:
        InvalidInput: there are too few examples, or of one answer alone.
    """
    if len(set(data.labels[data.weights > 0].tolist())) < 2:
        raise InvalidInput(
            "data",
            "has examples of one answer alone; a head needs two or more (those that weigh 0 do not "
            "count)",
        )
    weights = balanced(data.labels, data.weights) if balance else data.weights
    mean, scale = _standard(data, weights) if parent is None else (parent.mean, parent.scale)
    features, axes = rotated(((data.features - mean) / scale).astype(np.float64))
    offset = np.zeros((len(data), len(spec.task.options)))
    if parent is not None:
        offset = parent.logits(data.features)
    if on_top_of_lm is not None:
        offset = offset + on_top_of_lm * data.scores
    loss = None
    aside = None
    if l2 is None:
        l2, loss, aside = _cross_validated(features, data, weights, offset, seed)
    fitted = fit_softmax(
        features, data.labels, weights, offset=offset, l2=l2, bias_l2=BIAS_STRENGTH
    )
    change, bias = fitted[:, :-1] @ axes, fitted[:, -1] - fitted[:, -1].mean()
    before = 0.0 if parent is None else parent.weight
    before_bias = 0.0 if parent is None else parent.bias
    head = Head(
        dataclasses.replace(spec, lm_weight=0.0),
        (before + change).astype(np.float32),
        (before_bias + bias).astype(np.float32),
        mean,
        scale,
    )
    if on_top_of_lm is not None:
        weight = on_top_of_lm
    elif lm_data is not None:
        weight = lm_weight(lm_data, head.logits(lm_data.features))
    elif aside is not None:
        weight = lm_weight(data, aside)
    else:
        weight = 0.0
    return Trained(
        dataclasses.replace(head, spec=dataclasses.replace(spec, lm_weight=weight)), l2, loss
    )


def head_scores(head: Head, data: HeadData) -> Doubles:
    """Log probabilities that a device with this head gives, shape ``[examples, options]``."""
    return log_softmax(head.logits(data.features) + head.spec.lm_weight * data.scores)


def answer_losses(scores: Doubles, data: HeadData) -> Doubles:
    """−log P(right answer) of each example."""
    return np.asarray(-scores[np.arange(len(data)), data.labels], np.float64)


def mean_loss(scores: Doubles, data: HeadData) -> float:
    """Weighted mean of −log P(right answer)."""
    return float(np.average(answer_losses(scores, data), weights=data.weights))


def class_counts(data: HeadData) -> Doubles:
    """Summed weights of each answer's examples, shape ``[options]``: how much each row of a head
    has learned, and so what it counts for in an average over devices."""
    counts = np.bincount(data.labels, data.weights, data.scores.shape[1])
    return np.asarray(counts, np.float64)


def balanced(labels: NDArray[np.intp], weights: Doubles) -> Doubles:
    """Weights of the same sum, of which every answer that occurs has the same part."""
    sums = np.bincount(labels, weights)
    present = int((sums > 0).sum())
    own = sums[labels]
    even = np.divide(weights, own, out=np.zeros_like(weights), where=own > 0)
    return np.asarray(even * weights.sum() / present, np.float64)


def lm_weight(data: HeadData, logits: Doubles) -> float:
    """The weight of the model's own scores beside a head's, in [0, ``MAX_LM_WEIGHT``]; 0 unless it
    helps by more than the standard error of what it helps.

    Arguments:
        logits: of a head that has not seen ``data``.
    """
    low, high = 0.0, 1.0
    # Convex in the weight: bracket it, then shorten by thirds.
    while high < MAX_LM_WEIGHT and _slope(data, logits, high) < 0:
        low, high = high, min(2 * high, MAX_LM_WEIGHT)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _slope(data, logits, middle) < 0 else (low, middle)
    found = (low + high) / 2
    without = answer_losses(log_softmax(logits), data)
    gain = (without - answer_losses(log_softmax(logits + found * data.scores), data)) * data.weights
    if len(gain) < 2 or gain.mean() <= gain.std(ddof=1) / np.sqrt(len(gain)):
        return 0.0
    return found


def _slope(data: HeadData, logits: Doubles, weight: float) -> float:
    """d loss / d weight."""
    chances = np.exp(log_softmax(logits + weight * data.scores))
    right = data.scores[np.arange(len(data)), data.labels]
    expected = (chances * data.scores).sum(axis=1)
    return float((data.weights * (expected - right)).sum())


def _standard(data: HeadData, weights: Doubles) -> tuple[Floats, Floats]:
    share = weights / weights.sum()
    wide = data.features.astype(np.float64)
    mean = share @ wide
    deviation = np.sqrt(share @ (wide - mean) ** 2)
    # What never changes says nothing; it must not be blown up on the device either.
    deviation[deviation < 1e-6 * max(1.0, float(deviation.max()))] = 1e6
    return mean.astype(np.float32), deviation.astype(np.float32)


def _cross_validated(
    features: Doubles, data: HeadData, weights: Doubles, offset: Doubles, seed: int
) -> tuple[float, float, Doubles]:
    """The best penalty, its loss, and what the other folds' heads say of each example."""
    folds = _folds(data.groups, seed)
    found: dict[int, Doubles] = {}  # of each fold, at the penalty before
    best: tuple[float, float, Doubles] | None = None
    for l2 in STRENGTHS:
        scores = offset.copy()
        for fold, rows in enumerate(folds):
            rest = np.setdiff1d(np.arange(len(data)), rows)
            if not weights[rest].sum():
                continue
            found[fold] = fit_softmax(
                features[rest],
                data.labels[rest],
                weights[rest],
                offset=offset[rest],
                l2=l2,
                bias_l2=BIAS_STRENGTH,
                start=found.get(fold),
            )
            scores[rows] += features[rows] @ found[fold][:, :-1].T + found[fold][:, -1]
        loss = float(np.average(answer_losses(log_softmax(scores), data), weights=weights))
        if best is None or loss < best[1]:
            best = (l2, loss, scores)
        elif loss > best[1] * 1.2:
            break  # the penalty has become too weak, and weaker ones cost the most
    assert best is not None
    return best


def _folds(groups: Sequence[str], seed: int) -> list[NDArray[np.intp]]:
    names = sorted(set(groups))
    if len(names) < 2:
        raise InvalidInput("data", "has one example alone; a head needs two or more")
    order = np.random.Generator(np.random.PCG64([seed, len(names)])).permutation(len(names))
    fold = {names[index]: place % min(FOLDS, len(names)) for place, index in enumerate(order)}
    of = np.array([fold[group] for group in groups])
    return [np.flatnonzero(of == number) for number in range(of.max() + 1)]
