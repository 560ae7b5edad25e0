"""What a round's updates hold, decoded and clipped together: one pass over all of them instead of
one over each. Each is clipped once more, whatever its device says that it did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from cascade.errors import InvalidInput
from cascade.federation import Shapes, Tensors, clip_to_norm, flatten
from cascade.federation.expected import Expected
from cascade.federation.payload import row_weights
from cascade.federation.plan import RoundPlan
from cascade.federation.tensors import Doubles, Floats, at_rank, elements, places, rank_of
from cloud.federation.rounds import StoredUpdate
from cloud.federation.strategies import Contribution

_TOGETHER: Final = 1 << 20
"""Numbers that are looked at together: what they take in float64 is still in a core's cache."""
_CLOSE: Final = 1 - 1e-9
"""So much below the bound, the order in which squares are added makes no difference."""


def contributions(
    plan: RoundPlan,
    expected: Mapping[int, Expected],
    updates: Sequence[StoredUpdate],
    start: Callable[[int], Tensors],
    *,
    untouched: Tensors,
) -> list[Contribution]:
    """The round's contributions, those of one rank together. Updates of a plan that was changed
    since are left out.

    Arguments:
        expected: what the plan's updates look like, by their size (``RoundPlan.updates``).
        start: what an update of this version of the adapter started from, had it its rank.
        untouched: zeros for what an update could have changed, had the plan said so.
    """
    full = next(iter(expected))
    by_size: dict[int, list[StoredUpdate]] = {}
    for update in updates:
        size = len(update.payload)
        by_size.setdefault(size if size in expected else full, []).append(update)
    given: list[Contribution] = []
    for size in sorted(by_size, reverse=True):
        like = expected[size]
        kept = [read for each in by_size[size] if (read := _read(plan, like, each)) is not None]
        named = _names(_clipped(_rows(like, kept), like.shapes, plan.clip_norm), like.shapes)
        rank = None if size == full else rank_of(like.shapes)
        zeros = untouched if rank is None else at_rank(untouched, rank)
        for place, each in enumerate(kept):
            begun = start(each.update.adapter_version)
            given.append(
                Contribution(
                    start=begun if rank is None else at_rank(begun, rank),
                    change={**zeros, **{name: block[place] for name, block in named.items()}},
                    weight=min(each.update.examples, plan.max_examples),
                    gap=each.update.gap,
                    row_weights=each.row_weights,
                )
            )
    return given


def stacked(given: Sequence[Contribution], shapes: Shapes) -> Doubles:
    """What each changed of tensors of these shapes, flat: ``[contributions, elements]``."""
    rows = [flatten({name: each.change[name] for name in shapes}) for each in given]
    return np.array(rows).reshape(len(rows), elements(shapes))


@dataclass(frozen=True, slots=True)
class _Read:
    """An update that can be read; ``alone`` where it cannot be read with the others."""

    update: StoredUpdate
    data: bytes
    row_weights: Mapping[str, Doubles]
    alone: Doubles | None


def _read(plan: RoundPlan, expected: Expected, update: StoredUpdate) -> _Read | None:
    data = update.payload[: expected.size] if plan.rows else update.payload
    try:
        weights = row_weights(plan, update.payload, expected)
        alone = None if expected.sound(data) else flatten(expected.decode(data))
    except InvalidInput:
        return None
    return _Read(update, data, weights, alone)


def _rows(expected: Expected, kept: Sequence[_Read]) -> Floats:
    together = expected.rows([each.data for each in kept if each.alone is None])
    if len(together) == len(kept):
        return together
    rows = np.empty((len(kept), together.shape[1]), np.float32)
    rows[[each.alone is None for each in kept]] = together
    for row, each in zip(rows, kept, strict=True):
        if each.alone is not None:
            row[:] = each.alone
    return rows


def _clipped(rows: Floats, shapes: Shapes, bound: float) -> Floats:
    """All updates, none of them longer than ``bound``; in place."""
    step = max(1, _TOGETHER // max(1, rows.shape[1]))
    for first in range(0, len(rows), step):
        block = rows[first : first + step]
        wide = block.astype(np.float64)
        lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide))
        for place in np.flatnonzero(~(lengths <= bound * _CLOSE)):
            named = {name: each[place] for name, each in _names(block, shapes).items()}
            block[place] = flatten(clip_to_norm(named, bound))
    return rows


def _names(rows: Floats, shapes: Shapes) -> Mapping[str, Floats]:
    """Views of each tensor of all updates, shape ``[updates, *shape]``."""
    return {
        name: rows[:, place].reshape(len(rows), *shapes[name])
        for name, place in places(shapes).items()
    }
