"""Which confidence suits a task: candidates beside the default, cross-validated on develop alone.

Documents are dealt into folds, and each row is judged by fits that saw no row of its document, so
that nothing of the parts that certify and test is used up by the choice. Intervals are by document,
of differences on the same rows. The best of many candidates looks better than it is: take another
one than the default where it is better by more than its interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput
from cascade.gain import deferral_order
from cascade.pair import Pair
from cascade.replay import Figures, Interval, intervals
from cascade.rows import Floats
from cascade.tune import Modelling, estimator_named, features_of, fit
from cascade.verdicts import confidences, gains

MOST_ROWS: Final = 20_000
"""Of more rows the documents are sampled: what takes more to be seen does not matter."""

_SINGLE: Final = (
    "min_logprob",
    "first_logprob",
    "mean_entropy",
    "max_entropy",
    "min_margin",
    "log_tokens",
    "top2_margin",
    "option_entropy",
)
_FOREST: Final = {"n_estimators": 100, "min_samples_leaf": 10}
_RESAMPLES: Final = 200
_FIGURES: Final = {"auroc": "auroc", "ece": "ece", "deferral": "deferral_auc_normalised"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something to compare.

    Arguments:
        by_gain: whether rows are ranked by the expected gain instead of the confidence.
    """

    name: str
    modelling: Modelling
    by_gain: bool = False


@dataclass(frozen=True, slots=True)
class Compared:
    """What became of a candidate; figures are ``None`` where they cannot be told.

    Arguments:
        rows: that were judged.
        auroc, ece, deferral: see ``cascade.replay``; ``deferral`` is normalised, from chance to the
            oracle. An order by gain has the last alone.
        auroc_lead, deferral_lead: by how much they are above those of the first candidate.
        problem: why it could not be fitted.
    """

    name: str
    rows: int
    auroc: Interval | None = None
    ece: Interval | None = None
    deferral: Interval | None = None
    auroc_lead: Interval | None = None
    deferral_lead: Interval | None = None
    problem: str | None = None


def candidates(develop: Pair, chosen: Modelling | None = None) -> tuple[Candidate, ...]:
    """The default first, then what was asked for, then the usual ones: isotonic, all features,
    trees of them, single ones, and the gain where there is a second tier.

    Raises:
        CascadeError: scikit-learn is missing.
    """
    features = features_of(develop)
    usual = [
        Candidate("score (the default)", Modelling()),
        Candidate("score, isotonic", Modelling(calibrator="isotonic")),
        Candidate("features", Modelling(of="features")),
        Candidate(
            "RandomForestClassifier",
            Modelling("features", estimator=estimator_named("RandomForestClassifier", _FOREST)),
        ),
        *(
            Candidate(f"--feature {name}", Modelling("features", (name,)))
            for name in _SINGLE
            if name in features.names and np.nanstd(features.select([name]).values) > 0
        ),
    ]
    if develop.cloud is not None:
        usual += [
            Candidate("gain of the score", Modelling(gain=True), by_gain=True),
            Candidate("gain of the features", Modelling(of="features", gain=True), by_gain=True),
        ]
    if chosen is not None and chosen not in [each.modelling for each in usual]:
        usual.insert(1, Candidate("as chosen", chosen))
    return tuple(usual)


def compare(
    develop: Pair,
    wanted: Sequence[Candidate],
    *,
    folds: int = 5,
    seed: int = 0,
    on_progress: Callable[[int, str], None] = lambda done, name: None,
) -> tuple[Compared, ...]:
    """Judge candidates by cross-validation; the first is what the others are compared with.

    Arguments:
        develop: rows of the develop part; of more than ``MOST_ROWS`` a sample by document.
        folds: ≥ 2. ``seed``: of folds, sample and resamples.
        on_progress: told how many of two steps for each candidate, a fit and its figures, are done,
            and the name of the one that comes next.

    Raises:
        InvalidInput: there are fewer documents than folds, or the first cannot be fitted.
        CascadeError: scikit-learn is missing.
    """
    rows = _sample(develop, seed)
    dealt = fold_of(rows.documents(), folds, seed)
    documents = rows.documents()
    orders: list[Floats | str] = []
    for step, each in enumerate(wanted):
        on_progress(step, each.name)
        try:
            orders.append(unseen(rows, each, dealt))
        except InvalidInput as problem:
            if not orders:
                raise
            orders.append(str(problem))
    default = orders[0]
    assert not isinstance(default, str)
    found = []
    for step, (each, order) in enumerate(zip(wanted, orders, strict=True), len(wanted)):
        on_progress(step, each.name)
        if isinstance(order, str):
            found.append(Compared(each.name, len(rows), problem=order))
            continue

        def of_rows(places: NDArray[np.int64], order: Floats = order) -> _Both:
            some = rows.take(places)
            return _Both(_figures(some, order[places]), _figures(some, default[places]))

        figures = intervals(of_rows, documents, replicates=_RESAMPLES, seed=seed)
        found.append(_compared(each, len(rows), figures, first=not found))
    return tuple(found)


def unseen(rows: Pair, candidate: Candidate, dealt: NDArray[np.int64]) -> Floats:
    """What each row is ranked by, as fits to the other folds say: confidences, or gains as
    ``deferral_order`` has them; NaN where something was not measured. Shape ``[rows]``.

    Arguments:
        dealt: the fold of each row, shape ``[rows]``.

    Raises:
        InvalidInput: it cannot be fitted to the other folds.
    """
    order = np.full(len(rows), np.nan)
    for fold in np.unique(dealt):
        held, rest = np.flatnonzero(dealt == fold), np.flatnonzero(dealt != fold)
        fitted = fit(rows.take(rest), candidate.modelling)
        records = rows.records.take(held)
        if not candidate.by_gain:
            order[held] = confidences(fitted.model, records, rows.local)
        elif fitted.gain is not None:
            gain = gains(fitted.gain, records, rows.local)
            known = ~np.isnan(gain)
            order[held[known]] = deferral_order(gain[known])
    return order


def fold_of(documents: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each row, 0 … folds − 1; rows of one document are in one fold.

    Raises:
        InvalidInput: there are fewer documents than folds.
    """
    many = int(documents.max()) + 1
    if not 2 <= folds <= many:
        raise InvalidInput("folds", f"{folds} is not in 2 … {many}, the number of documents")
    dealt: NDArray[np.int64] = np.random.default_rng(seed).permutation(many)[documents] % folds
    return dealt


class _Both:
    """The figures of a candidate, and how far they are above the default's on the same rows."""

    def __init__(self, mine: Figures, default: Figures) -> None:
        self._mine, self._default = mine, default

    def of(self, weights: NDArray[np.int64]) -> Mapping[str, Floats]:
        """See ``cascade.replay.bootstrap.Weighted``."""
        mine, default = self._mine.of(weights), self._default.of(weights)
        found = {}
        for name, figure in _FIGURES.items():
            if figure in mine:
                found[name] = mine[figure]
                found[f"{name}_lead"] = mine[figure] - default[figure]
        return found


def _figures(rows: Pair, order: Floats) -> Figures:
    return Figures(rows, order, np.zeros(len(rows), np.bool_))


def _compared(
    candidate: Candidate, rows: int, figures: Mapping[str, Interval], *, first: bool
) -> Compared:
    def told(name: str) -> Interval | None:
        found = figures.get(name)
        return None if found is None or math.isnan(found.value) else found

    return Compared(
        candidate.name,
        rows,
        auroc=None if candidate.by_gain else told("auroc"),
        ece=None if candidate.by_gain else told("ece"),
        deferral=told("deferral"),
        auroc_lead=None if first or candidate.by_gain else told("auroc_lead"),
        deferral_lead=None if first else told("deferral_lead"),
    )


def _sample(develop: Pair, seed: int) -> Pair:
    if len(develop) <= MOST_ROWS:
        return develop
    documents = develop.documents()
    many = int(documents.max()) + 1
    share = MOST_ROWS / len(develop)
    chosen = np.random.default_rng(seed).permutation(many) < max(1, round(many * share))
    return develop.take(np.flatnonzero(chosen[documents]))
