"""The numbers that are trained: an adapter's pairs as one vector, and how a new adapter starts.

B is held without its factor alpha / rank, which ``pairs`` puts in: a step of an optimiser then
means the same at every rank.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

from cascade.errors import BundleError
from edge.adapter import LoraPair
from edge.bundle import AdapterSlot
from edge.training.lesson import Floats
from edge.training.plan import TrainingPlan


class Parameters:
    """Which numbers of an adapter are trained, and where each lies in the vector.

    Arguments:
        slots: of the trained layers, those of the first layer first.
        parent: pairs to go on from; a linear that it lacks starts anew.

    Raises:
        BundleError: the plan asks for more layers than the graph trains.
    """

    def __init__(
        self,
        slots: Sequence[AdapterSlot],
        plan: TrainingPlan,
        parent: Mapping[str, LoraPair] | None = None,
    ) -> None:
        self._start = dict(_started(slots, plan, parent or {}))
        self._scale = {name: plan.alpha / pair.a.shape[1] for name, pair in self._start.items()}
        self._b_only = bool(plan.frozen_a)
        self.rest = {name: pair for name, pair in (parent or {}).items() if name not in self._start}
        """The parent's other pairs: applied, and part of what comes out, but not trained."""

    @property
    def size(self) -> int:
        """How many numbers are trained."""
        return sum(
            pair.b.size + (0 if self._b_only else pair.a.size) for pair in self._start.values()
        )

    def start(self) -> Floats:
        """The vector at the start."""
        return self._vector(
            {
                name: LoraPair(pair.a, pair.b / np.float32(self._scale[name]))
                for name, pair in self._start.items()
            }
        )

    def gradient(self, pairs: Mapping[str, LoraPair]) -> Floats:
        """The vector's gradient, from that of ``pairs``."""
        return self._vector(
            {
                name: LoraPair(pairs[name].a, pairs[name].b * np.float32(self._scale[name]))
                for name in self._start
            }
        )

    def pairs(self, vector: Floats) -> dict[str, LoraPair]:
        """The trained pairs as adapters have them."""
        found, at = {}, 0
        for name, pair in self._start.items():
            a = pair.a
            if not self._b_only:
                a = vector[at : at + a.size].reshape(a.shape)
                at += a.size
            b = vector[at : at + pair.b.size].reshape(pair.b.shape)
            at += pair.b.size
            found[name] = LoraPair(a, b * np.float32(self._scale[name]))
        return found

    def _vector(self, pairs: Mapping[str, LoraPair]) -> Floats:
        parts = []
        for name in self._start:
            if not self._b_only:
                parts.append(pairs[name].a.reshape(-1))
            parts.append(pairs[name].b.reshape(-1))
        return np.concatenate(parts).astype(np.float32)


def drawn_a(seed: str, module: str, columns: int, rank: int) -> Floats:
    """A of one linear, drawn from a named seed: the same numbers on every machine.

    Uniform with variance 1 / columns. The columns of a smaller rank are the first of a larger one.

    Returns:
        float32, shape ``[columns, rank]``.
    """
    digest = hashlib.sha256(f"{seed}\n{module}".encode()).digest()
    # Unlike the distributions of numpy, the raw stream never changes between releases.
    raw = np.random.PCG64(int.from_bytes(digest, "little")).random_raw(columns * rank)
    unit = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    drawn = (2 * unit - 1) * math.sqrt(3 / columns)
    return np.ascontiguousarray(drawn.reshape(rank, columns).T, np.float32)


def _started(
    slots: Sequence[AdapterSlot], plan: TrainingPlan, parent: Mapping[str, LoraPair]
) -> list[tuple[str, LoraPair]]:
    layers = list(dict.fromkeys(slot.name.rpartition(".")[0] for slot in slots))
    if plan.layers > len(layers):
        raise BundleError(
            f"the plan trains {plan.layers} layers, but this bundle's gradient graph trains "
            f"{len(layers)}; ask for fewer, or build it again with: cascade bundle build "
            f"--gradient {plan.layers} --force"
        )
    seed = plan.frozen_a or f"seed {plan.seed}"
    started = []
    for slot in slots:
        if slot.name.rpartition(".")[0] not in layers[-plan.layers :]:
            continue
        for module, width in zip(slot.modules, slot.widths, strict=True):
            if module.rpartition(".")[2] not in plan.modules:
                continue
            new = LoraPair(
                drawn_a(seed, module, slot.columns, plan.rank),
                np.zeros((plan.rank, width), np.float32),
            )
            started.append((module, parent.get(module, new)))
    return started
