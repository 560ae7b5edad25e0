"""Gates that read the question and not the answer: TF-IDF and logistic regression (scikit-learn).

"wins" is a router in the manner of RouteLLM (Ong et al. 2024, arXiv 2406.18665): before anything is
decoded it predicts P(the strong model wins). RouteLLM's own routers need embeddings of OpenAI or
weights for a GPU, and were not run; this shows what their way of routing can do with the labels
that all others here learn from, and nothing about their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline

from benchmarks.decision.peers.parts import Part, Parts
from benchmarks.decision.peers.ranking import Scores
from cascade.rows import Bools, Floats

WINS = "TF-IDF gate, P(strong wins)"

_FOLDS = 5
_STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # inverse, of the L2 penalty

Classifier = Callable[[Sequence[str]], Floats]


def text_gates(parts: Parts) -> dict[str, Scores]:
    """Three gates: P(device right), the expected gain, and P(strong wins)."""
    develop = parts.develop
    cloud = develop.rows.cloud_correct
    assert cloud is not None  # parts have one
    right, strong = fit(develop, develop.rows.correct), fit(develop, cloud)
    wins = fit(develop, cloud & ~develop.rows.correct)
    return {
        "TF-IDF gate, P(device right)": _scores(parts, right),
        "TF-IDF gate, gain": _scores(parts, lambda texts: (1 + right(texts) - strong(texts)) / 2),
        WINS: _scores(parts, lambda texts: 1 - wins(texts)),
    }


def fit(part: Part, label: Bools) -> Classifier:
    """P(label) from the input's words and pairs of words; the penalty by cross-validation within
    the part, documents kept together. Where all labels are equal there is nothing to learn, and
    what it gives is constant."""
    if label.all() or not label.any():
        only = float(label[0])
        return lambda texts: np.full(len(texts), only)
    pipeline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
        LogisticRegression(solver="liblinear"),  # made for few rows of many columns
    )
    documents = part.rows.documents()
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=0)
    search = GridSearchCV(
        pipeline, {"logisticregression__C": _STRENGTHS}, cv=folds, scoring="neg_brier_score"
    )
    search.fit(part.inputs, label.astype(np.int64), groups=documents)

    def probability(texts: Sequence[str]) -> Floats:
        of_true: Floats = search.predict_proba(texts)[:, 1]
        return of_true

    return probability


def _scores(parts: Parts, gate: Classifier) -> Scores:
    return Scores.of(parts, lambda part: gate(part.inputs))
