"""Models over features, as a device evaluates them: arrays and numpy, nothing else.

A scorer maps features to a score in [0, 1] that a calibrator then turns into a confidence.
``cascade.estimators`` makes scorers of fitted scikit-learn estimators; here they are only evaluated
and read. Every number is kept to the last bit, so that a device decides as the fit did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self, get_args

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput
from cascade.features import Matrix, check_names
from cascade.logistic import sigmoid
from cascade.rows import Floats
from cascade.strict import Fields

MOST_NODES = 1_000_000
"""A forest with more nodes is not read: its file would be tens of megabytes."""

Link = Literal["identity", "logistic"]
"""What becomes of the summed leaves: a probability as it is, or the sigmoid of it."""


class Scorer(Protocol):
    """A model over the features that it names."""

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features, in the order of the columns that ``map`` takes."""
        ...

    def map(self, values: Matrix) -> Floats:
        """Scores in [0, 1], shape ``[rows]``, of finite features, shape ``[rows, features]``."""
        ...

    def to_json(self) -> dict[str, object]:
        """A plain dict."""
        ...


@dataclass(frozen=True, slots=True)
class Linear:
    """sigmoid(Σ weight · (feature − center) / scale + offset): a logistic regression.

    Arguments:
        features: names; at least one.
        center, scale: what each feature is standardised by; scales are not 0.
        weights: one for each feature.
    """

    features: tuple[str, ...]
    center: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    offset: float

    def __post_init__(self) -> None:
        check_features(self.features)
        for name in ("center", "scale", "weights"):
            if len(getattr(self, name)) != len(self.features):
                raise InvalidInput(f"scorer.{name}", "must have one number for each feature")
        if 0.0 in self.scale:
            raise InvalidInput("scorer.scale", "must not be 0")

    def map(self, values: Matrix) -> Floats:
        """See ``Scorer``."""
        standard = (values - np.array(self.center)) / np.array(self.scale)
        # Summed row by row: a matrix product may round one row otherwise than many.
        terms = np.ascontiguousarray(standard * np.array(self.weights))
        return sigmoid(terms.sum(axis=1) + self.offset)

    def to_json(self) -> dict[str, object]:
        """A plain dict."""
        return {
            "kind": "linear",
            "features": list(self.features),
            "center": list(self.center),
            "scale": list(self.scale),
            "weights": list(self.weights),
            "offset": self.offset,
        }

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """From a JSON object whose kind was taken."""
        return cls(
            fields.texts("features"),
            fields.numbers("center"),
            fields.numbers("scale"),
            fields.numbers("weights"),
            fields.number("offset"),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Trees:
    """Decision trees whose leaves are added up: forests and boosted trees.

    A row starts at each root; at node i it goes to ``left[i]`` where its feature is at most
    ``threshold[i]`` and to ``right[i]`` otherwise, up to a leaf, which is its own left and right.
    The sum of its leaves' values, times ``scale``, plus ``offset`` goes through ``link``.

    Arguments:
        features: names; at least one.
        roots: int64, shape ``[trees]``.
        feature: place in ``features``, int64, shape ``[nodes]``; 0 at leaves.
        threshold, value: float64, shape ``[nodes]``; 0 where not used.
        left, right: int64, shape ``[nodes]``; beyond the node itself, but for leaves.
        single: features are rounded to float32 before they are compared, as the trees of
            ``sklearn.tree`` do.
    """

    features: tuple[str, ...]
    roots: NDArray[np.int64]
    feature: NDArray[np.int64]
    threshold: Floats
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    value: Floats
    scale: float
    offset: float
    link: Link
    single: bool

    def __post_init__(self) -> None:
        check_features(self.features)
        size = len(self.value)
        if not 0 < size <= MOST_NODES:
            raise InvalidInput("scorer.value", f"has {size} nodes, not 1 … {MOST_NODES}")
        for name in ("feature", "threshold", "left", "right"):
            if len(getattr(self, name)) != size:
                raise InvalidInput(f"scorer.{name}", "must have one number for each node")
        if not len(self.roots):
            raise InvalidInput("scorer.roots", "must name at least one node")
        for name, end in (("roots", size), ("feature", len(self.features))):
            places = getattr(self, name)
            if places.min() < 0 or places.max() >= end:
                raise InvalidInput(f"scorer.{name}", f"must lie in 0 … {end - 1}")
        here = np.arange(size)
        leaf = (self.left == here) & (self.right == here)
        for name in ("left", "right"):
            child = getattr(self, name)
            # Ever further: no path through the nodes is endless.
            if not (leaf | ((child > here) & (child < size))).all():
                raise InvalidInput(f"scorer.{name}", "must name a later node, or the leaf itself")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Trees) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]

    def map(self, values: Matrix) -> Floats:
        """See ``Scorer``."""
        total = self.total(values)
        return sigmoid(total) if self.link == "logistic" else np.clip(total, 0.0, 1.0)

    def total(self, values: Matrix) -> Floats:
        """What goes through ``link``, shape ``[rows]``."""
        compared = values.astype(np.float32).astype(np.float64) if self.single else values
        rows = np.arange(len(values))[:, None]
        node = np.tile(self.roots, (len(values), 1))
        while True:
            low = compared[rows, self.feature[node]] <= self.threshold[node]
            following = np.where(low, self.left[node], self.right[node])
            if np.array_equal(following, node):
                total: Floats = self.value[node].sum(axis=1) * self.scale + self.offset
                return total
            node = following

    def to_json(self) -> dict[str, object]:
        """A plain dict."""
        arrays = ("roots", "feature", "threshold", "left", "right", "value")
        return {
            "kind": "trees",
            "features": list(self.features),
            **{name: getattr(self, name).tolist() for name in arrays},
            "scale": self.scale,
            "offset": self.offset,
            "link": self.link,
            "single": self.single,
        }

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """From a JSON object whose kind was taken."""
        features = fields.texts("features")
        whole = {name: _places(fields, name) for name in ("roots", "feature", "left", "right")}
        link: Link = (
            "logistic" if fields.choice("link", get_args(Link)) == "logistic" else "identity"
        )
        return cls(
            features=features,
            threshold=np.array(fields.numbers("threshold"), np.float64),
            value=np.array(fields.numbers("value"), np.float64),
            scale=fields.number("scale"),
            offset=fields.number("offset"),
            link=link,
            single=fields.boolean("single"),
            **whole,
        )


def read_scorer(data: object, where: str) -> Linear | Trees:
    """The scorer that ``to_json`` wrote.

    Arguments:
        where: how the object is called in messages.

    Raises:
        InvalidInput: a field is missing, unknown, of a wrong type or out of range; it is named.
    """
    fields = Fields(data, where)
    kind = fields.choice("kind", ("linear", "trees"))
    scorer: Linear | Trees = Linear.read(fields) if kind == "linear" else Trees.read(fields)
    fields.end()
    return scorer


def check_features(names: Sequence[str]) -> None:
    """Raise ``InvalidInput`` unless there are names, all of known features, each once."""
    if not names:
        raise InvalidInput("features", "names none; give at least one")
    check_names(names)


def _places(fields: Fields, name: str) -> NDArray[np.int64]:
    numbers = np.array(fields.numbers(name, 0, MOST_NODES), np.float64)
    if (numbers != np.floor(numbers)).any():
        raise InvalidInput(fields.path(name), "must be whole numbers")
    return numbers.astype(np.int64)
