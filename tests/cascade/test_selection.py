"""Features are taken where they are better, and the raw score where nothing is."""

from __future__ import annotations

import numpy as np
import pytest

from cascade.confidence import sigmoid
from cascade.errors import InvalidInput
from cascade.features import Features
from cascade.metrics import auroc, brier
from cascade.selection import select_confidence


def rows(n, seed, *, by_length):
    """P(right) depends on the raw score, or on the length alone."""
    rng = np.random.default_rng(seed)
    score, length = rng.uniform(0.05, 0.95, n), rng.normal(2, 1, n)
    logits = 2 - 2 * length + 2 if by_length else np.log(score / (1 - score))
    noise = rng.normal(size=(n, 2))
    values = np.column_stack([score, np.log(score / (1 - score)), length, noise])
    names = ("raw_score", "raw_score_logit", "log_tokens", "mean_entropy", "min_margin")
    return Features(names, values), rng.random(n) < sigmoid(logits)


def test_features_are_taken_where_the_score_says_nothing():
    chosen = select_confidence(*rows(400, 1, by_length=True))
    assert chosen.model.scorer is not None
    assert chosen.gained > chosen.standard_error > 0
    fresh, right = rows(2000, 2, by_length=True)
    assert auroc(chosen.model.of_features(fresh), right) > 0.8


def test_the_raw_score_is_taken_where_it_says_everything():
    taken = [
        select_confidence(*rows(300, seed, by_length=False)).model.scorer is None
        for seed in range(12)
    ]
    assert sum(taken) >= 10  # one standard error: features win by luck about one time of six


def test_what_is_gained_is_the_difference_of_brier_scores():
    features, right = rows(300, 3, by_length=False)
    chosen = select_confidence(features, right)
    score = features.values[:, 0]
    plain = brier(chosen.model.batch(score), right)
    assert chosen.model.scorer is None
    # The standard error of a mean of independent rows, when each is a document of its own.
    assert chosen.standard_error < 0.02
    assert abs(chosen.gained) < 0.02 < plain


def test_rows_of_one_document_count_once():
    """Every row four times: no more evidence, and so the same standard error."""
    features, right = rows(300, 4, by_length=True)
    names = [f"d{row}" for row in range(300)]
    once = select_confidence(features, right, documents=names)
    often = np.repeat(np.arange(300), 4)
    four = select_confidence(
        features.take(often), right[often], documents=[names[row] for row in often]
    )
    assert four.standard_error == pytest.approx(once.standard_error, rel=0.25)


def test_constant_scores_leave_the_features_alone():
    features, right = rows(300, 5, by_length=True)
    values = features.values.copy()
    values[:, 0] = 0.5
    chosen = select_confidence(Features(features.names, values), right)
    assert chosen.model.scorer is not None
    with pytest.raises(InvalidInput, match="features: lack raw_score"):
        select_confidence(features.select(["log_tokens"]), right)
