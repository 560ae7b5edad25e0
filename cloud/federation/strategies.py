"""How a round's updates become the next adapter, and how far that is from what it should be.

What it should be, for every strategy alike, is the served matrix plus the mean of what the devices
changed in theirs:

    W = A B + Σ c_i (A_i B_i − A_i⁰ B_i⁰),   c_i = w_i / Σ w_j / (1 + √gap_i)

with A_i⁰ B_i⁰ what device i started from and gap_i the versions served since: buffered as FedBuff
(arXiv 2106.06639), discounted as in NVFlare. Where all started from what is served, it is the mean
of the products A_i B_i. ``agg_rel_err`` is ‖served − W‖ / ‖W‖ over all linears: 0 but for rounding
with FFA-LoRA, the tail of the singular values with the product mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from cascade.errors import InvalidInput
from cascade.federation import Shapes, Tensors, check_tensors, flatten, shapes_of, unflatten
from cascade.federation.tensors import MAX_VALUE, Doubles, Floats, elements, places
from cloud.federation.low_rank import Factor, LowRank
from cloud.federation.optimisers import FRESH, Plain, ServerOptimiser, State
from cloud.federation.robust import MultiKrum, Rule, WeightedMean


@dataclass(frozen=True, slots=True)
class Contribution:
    """One device's part in a round.

    Arguments:
        start: what it started from, by tensor name: ``NAME.a`` [inputs, rank] and ``NAME.b`` [rank,
            outputs] of its rank, and heads; the served ones of its version (``at_rank``).
        change: what it added to them; B's alone, or A's too. Decoded, so of right names and shapes.
        weight: > 0; the number of its examples, bounded by whoever sets it.
        gap: versions served since ``start``, ≥ 0.
        row_weights: by name of a head's tensor, what each of its rows (index of the first axis)
            counts instead, ≥ 0: the number of examples of that row's class. A device that has none
            of a class pushes its row away from everything, which must not be averaged in.
    """

    start: Tensors
    change: Tensors
    weight: float = 1.0
    gap: int = 0
    row_weights: Mapping[str, Doubles] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Aggregate:
    """A round's result.

    Arguments:
        tensors: the next adapter, by name as served.
        state: of the server optimiser.
        agg_rel_err: of ``tensors``, before the server optimiser bends the step on purpose.
    """

    tensors: Mapping[str, Floats]
    state: State
    agg_rel_err: float


class Strategy(Protocol):
    """The seam: what is served and what came in, to what is served next."""

    @property
    def linear(self) -> bool:
        """Whether the sum of the changes is enough: the condition for secure aggregation."""
        ...

    def aggregate(
        self, served: Tensors, contributions: Sequence[Contribution], state: State = FRESH
    ) -> Aggregate:
        """The next adapter.

        Raises:
            InvalidInput: no contributions, too few for a robust rule, or one that does not fit.
        """
        ...


@dataclass(frozen=True, slots=True)
class FfaLora:
    """FFA-LoRA (arXiv 2403.12313): A stays as it is, and the mean of B is the mean of A B.

    Arguments:
        rule: what takes the place of the mean, in clear mode.
        optimiser: of the server.
    """

    rule: Rule = field(default_factory=WeightedMean)
    optimiser: ServerOptimiser = field(default_factory=Plain)

    @property
    def linear(self) -> bool:
        """Only with the plain mean. Sums of rows with weights of their own need the weights' sums
        beside them."""
        return isinstance(self.rule, WeightedMean)

    def aggregate(
        self, served: Tensors, contributions: Sequence[Contribution], state: State = FRESH
    ) -> Aggregate:
        """The next adapter; A's are the served ones."""
        weights = _weights(contributions)
        shapes = _trained(served)
        rows = _discounted(contributions, shapes)
        mean = unflatten(self.rule.combine(rows, weights), shapes)
        mean |= _by_rows(contributions, shapes, self.rule)
        return self._served(served, mean, state, target(served, contributions))

    def from_mean(
        self, served: Tensors, mean: Doubles, shapes: Shapes, state: State = FRESH
    ) -> Aggregate:
        """The next adapter from a mean that was formed elsewhere: under masks, or with noise.

        Its ``agg_rel_err`` is that of rounding alone: what the mean should have been, nobody knows.

        Arguments:
            mean: flat, as ``cascade.federation.flatten`` orders it.
            shapes: of the changes.
        """
        named = unflatten(mean, shapes)
        check_tensors(named, _trained(served))
        wanted = {
            module: LowRank.sum(
                [(1.0, a, b.astype(np.float64)), (1.0, a, named[f"{module}.b"].astype(np.float64))]
            )
            for module, (a, b) in ((module, _pair(served, module)) for module in modules(served))
        }
        return self._served(served, named, state, wanted)

    def _served(
        self, served: Tensors, mean: Tensors, state: State, wanted: Mapping[str, LowRank]
    ) -> Aggregate:
        step, state = self.optimiser.step(mean, state)
        error = relative_error(_plus(served, mean), wanted)
        return Aggregate(_plus(served, step), state, error)


@dataclass(frozen=True, slots=True)
class ProductMean:
    """FlexLoRA (arXiv 2402.11505): the mean of products, by SVD back to rank ``rank``.

    Devices may have ranks of their own: each gets the leading columns of what is served. Unlike the
    paper, what counts is what a device changed and not what it had, so that a device of low rank
    does not erase what it could never hold; with equal ranks the two are the same. The LoRA scale
    is part of B and the same for all ranks: with alpha / rank it diverged. Heads are averaged.

    A singular value σ is shared out so that A's column has the length max(1, √σ). All of it in B,
    as in the paper, makes A's gradients so steep that training diverges at learning rates at which
    it does well with separate means; √σ everywhere would take away columns that have yet to learn.

    Arguments:
        rank: at most of what is served, ≥ 1; a pair of a lower rank keeps its own.
        krum: drops contributions by their products before the mean; None for none.
    """

    rank: int
    krum: MultiKrum | None = None

    @property
    def linear(self) -> bool:
        """Never: the product of sums is not the sum of products."""
        return False

    def aggregate(
        self, served: Tensors, contributions: Sequence[Contribution], state: State = FRESH
    ) -> Aggregate:
        """The next adapter; ``state`` passes through."""
        _weights(contributions)
        for contribution in contributions:
            start = shapes_of(contribution.start)
            trained_a = {name: start[name] for name in start.keys() & contribution.change.keys()}
            check_tensors(contribution.change, _trained(contribution.start) | trained_a)
        wanted = target(served, contributions)
        kept = contributions
        if self.krum is not None:
            kept = [contributions[i] for i in self.krum.select(_distances(contributions))]
        tensors = _heads(served, kept)
        for module, matrix in (wanted if kept is contributions else target(served, kept)).items():
            short = matrix.truncated(min(self.rank, served[f"{module}.a"].shape[1]))
            length = np.maximum(1.0, np.sqrt(np.linalg.norm(short.right, axis=1)))
            tensors[f"{module}.a"] = (short.left * length).astype(np.float32)
            tensors[f"{module}.b"] = (short.right / length[:, None]).astype(np.float32)
        return Aggregate(tensors, state, relative_error(tensors, wanted))


@dataclass(frozen=True, slots=True)
class SeparateMean:
    """The mean of A and the mean of B, each by itself: wrong, and here to show by how much."""

    @property
    def linear(self) -> bool:
        """The sums are enough, for what they are worth."""
        return True

    def aggregate(
        self, served: Tensors, contributions: Sequence[Contribution], state: State = FRESH
    ) -> Aggregate:
        """The next adapter; ``state`` passes through."""
        weights = _weights(contributions)
        rows = _discounted(contributions, shapes_of(served))
        mean = unflatten(weights @ rows, shapes_of(served))
        tensors = {name: served[name] + change for name, change in mean.items()}
        return Aggregate(tensors, state, relative_error(tensors, target(served, contributions)))


def discount(gap: int) -> float:
    """1 / (1 + √gap): what an update is worth that is ``gap`` versions late."""
    if gap < 0:
        raise InvalidInput("gap", f"{gap} versions: an update cannot be ahead of what is served")
    return 1 / (1 + math.sqrt(gap))


def modules(tensors: Tensors) -> list[str]:
    """The linears of which both A and B are there, sorted."""
    names = sorted(name.removesuffix(".a") for name in tensors if name.endswith(".a"))
    if lone := [name for name in names if f"{name}.b" not in tensors]:
        raise InvalidInput(f"{lone[0]}.b", "is missing beside its A")
    return names


def target(served: Tensors, contributions: Sequence[Contribution]) -> dict[str, LowRank]:
    """W of each linear, in factors."""
    shares = _weights(contributions) * [discount(c.gap) for c in contributions]
    wanted = {}
    for module in modules(served):
        a, b = _pair(served, module)
        terms: list[tuple[float, Factor, Doubles]] = []
        with_served_a = b.astype(np.float64)
        # Many start from one adapter, which is looked at once.
        served_a: dict[int, bool] = {id(a): True}
        of_b: list[tuple[float, Floats]] = []
        for share, contribution in zip(shares, contributions, strict=True):
            its_a = contribution.start[f"{module}.a"]
            if id(its_a) not in served_a:
                served_a[id(its_a)] = np.array_equal(its_a, a)
            if served_a[id(its_a)] and f"{module}.a" not in contribution.change:
                # All of FFA-LoRA: one term instead of one a device.
                of_b.append((share, contribution.change[f"{module}.b"]))
                continue
            for sign, left, right in _product_change(contribution, module):
                if np.array_equal(left, a):
                    with_served_a += share * sign * right
                else:
                    terms.append((share * sign, left, right))
        if of_b:
            each = np.array([share for share, _ in of_b])
            with_served_a += np.tensordot(each, np.stack([change for _, change in of_b]), 1)
        wanted[module] = LowRank.sum([(1.0, a, with_served_a), *terms])
    return wanted


def relative_error(tensors: Tensors, wanted: Mapping[str, LowRank]) -> float:
    """‖A B − W‖ / ‖W‖, Frobenius over all linears; 0 where both are 0."""
    error = length = 0.0
    for module, matrix in wanted.items():
        a, b = _pair(tensors, module)
        if np.array_equal(matrix.left, a):  # FFA-LoRA: A (W's B − B), half as wide
            both = LowRank(matrix.left, matrix.right - b)
        else:
            both = LowRank(np.hstack([matrix.left, a]), np.vstack([matrix.right, -b]))
        error += both.norm() ** 2
        length += matrix.norm() ** 2
    if error == 0:
        return 0.0
    return math.sqrt(error / length) if length else math.inf


def _weights(contributions: Sequence[Contribution]) -> Doubles:
    if not contributions:
        raise InvalidInput("updates", "are none; a round needs at least one")
    weights = np.array([c.weight for c in contributions], np.float64)
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise InvalidInput("weight", "must be a positive number for each update")
    return np.asarray(weights / weights.sum(), np.float64)


def _discounted(contributions: Sequence[Contribution], shapes: Shapes) -> Doubles:
    """What each changed, worth what it is, flat as ``flatten`` orders it, shape ``[contributions,
    elements]``.

    Raises:
        InvalidInput: one changes anything but finite float32 tensors of these shapes.
    """
    rows, where = np.empty((len(contributions), elements(shapes))), places(shapes)
    for row, each in zip(rows, contributions, strict=True):
        if not _alike(each.change, shapes):
            check_tensors(each.change, shapes)
        for name, place in where.items():
            row[place] = each.change[name].ravel()
    if not (rows.size and max(rows.max(), -rows.min()) <= MAX_VALUE):  # false for NaN, too
        for each in contributions:
            check_tensors(each.change, shapes)
    worth = np.array([discount(each.gap) for each in contributions])
    if (worth < 1).any():
        rows *= worth[:, None]
    return rows


def _alike(change: Tensors, shapes: Shapes) -> bool:
    return change.keys() == shapes.keys() and all(
        tensor.dtype == np.float32 and tensor.shape == shapes[name]
        for name, tensor in change.items()
    )


def _pair(tensors: Tensors, module: str) -> tuple[Floats, Floats]:
    return tensors[f"{module}.a"], tensors[f"{module}.b"]


def _product_change(contribution: Contribution, module: str) -> list[tuple[float, Factor, Doubles]]:
    """A_i B_i − A_i⁰ B_i⁰ as terms."""
    a, b = _pair(contribution.start, module)
    change_b = contribution.change[f"{module}.b"].astype(np.float64)
    change_a = contribution.change.get(f"{module}.a")
    if change_a is None:
        return [(1.0, a, change_b)]
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    return [(1.0, wide_a + change_a, wide_b + change_b), (-1.0, a, wide_b)]


def _trained(served: Tensors) -> dict[str, tuple[int, ...]]:
    """Shapes of what FFA-LoRA trains: all but A."""
    return {name: tensor.shape for name, tensor in served.items() if not name.endswith(".a")}


def _plus(served: Tensors, change: Tensors) -> dict[str, Floats]:
    return {**served, **{name: served[name] + delta for name, delta in change.items()}}


def _heads(served: Tensors, contributions: Sequence[Contribution]) -> dict[str, Floats]:
    """Whatever is no A or B, plus the mean of its changes."""
    shares = _weights(contributions) * [discount(c.gap) for c in contributions]
    heads = {}
    for name in (name for name in served if not name.endswith((".a", ".b"))):
        change = sum(
            share * c.change[name].astype(np.float64)
            for share, c in zip(shares, contributions, strict=True)
        )
        heads[name] = (served[name] + change).astype(np.float32)
    shapes = {name: tensor.shape for name, tensor in heads.items()}
    for name, change in _by_rows(contributions, shapes, WeightedMean()).items():
        heads[name] = served[name] + change
    return heads


def _by_rows(
    contributions: Sequence[Contribution], shapes: Shapes, rule: Rule
) -> dict[str, Floats]:
    """The changes of the tensors whose rows have weights of their own, each row combined over the
    devices that have learned it; nobody's stays as it is."""
    names = sorted({name for each in contributions for name in each.row_weights})
    combined = {}
    for name in names:
        if name not in shapes or name.endswith((".a", ".b")):
            raise InvalidInput(f"row_weights.{name}", "is no head's tensor of this adapter")
        weights = np.stack([_row_weights(each, name, shapes[name][0]) for each in contributions])
        changes = np.stack(
            [discount(c.gap) * c.change[name].astype(np.float64) for c in contributions]
        ).reshape(len(contributions), shapes[name][0], -1)
        mean = np.zeros(changes.shape[1:])
        for row in range(shapes[name][0]):
            own = weights[:, row] > 0
            if own.any():
                shares = weights[own, row] / weights[own, row].sum()
                mean[row] = rule.combine(changes[own, row], shares)
        combined[name] = mean.reshape(shapes[name]).astype(np.float32)
    return combined


def _row_weights(contribution: Contribution, name: str, rows: int) -> Doubles:
    weights = contribution.row_weights.get(name)
    if weights is None or weights.shape != (rows,):
        raise InvalidInput(f"row_weights.{name}", f"must be {rows} numbers for each update")
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise InvalidInput(f"row_weights.{name}", "must be numbers of 0 or more")
    return np.asarray(weights, np.float64)


def _distances(contributions: Sequence[Contribution]) -> Doubles:
    """Squared distances between the devices' changes: of products, and of heads."""
    inner = np.zeros((len(contributions), len(contributions)))
    for module in modules(contributions[0].start):
        products = [LowRank.sum(_product_change(c, module)) for c in contributions]
        inner += [[one.inner(other) for other in products] for one in products]
    heads = [
        flatten({n: t for n, t in c.change.items() if not n.endswith((".a", ".b"))} or _NOTHING)
        for c in contributions
    ]
    inner += np.array(heads) @ np.array(heads).T
    squares = np.diag(inner)
    return np.maximum(squares[:, None] + squares - 2 * inner, 0.0)


_NOTHING: Tensors = {"nothing": np.zeros(1, np.float32)}
