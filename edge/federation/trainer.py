"""What a participating device asks of its training: the seam between rounds and learning."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

from cascade.errors import CascadeError
from cascade.federation import Tensors, shapes_of
from cascade.federation.payload import NO_COUNTS, Counts
from cascade.federation.plan import RoundPlan
from cascade.federation.tensors import at_rank, rank_of
from edge.adapter import Adapter


@dataclass(frozen=True, slots=True)
class StartingPoint:
    """What a device trains from.

    Arguments:
        base_digest: of the bundle that the adapter is for.
        adapter: verified.
        tensors: all of it, as ``NAME.a`` and ``NAME.b``; a head's as ``Head.tensors`` names them.
    """

    base_digest: str
    adapter: Adapter
    tensors: Tensors

    @property
    def rank(self) -> int:
        """The largest of its pairs."""
        return rank_of(shapes_of(self.tensors))

    def at_rank(self, rank: int) -> StartingPoint:
        """What a device of a lower rank trains from."""
        tensors = at_rank(self.tensors, rank)
        pairs = {
            name: replace(pair, a=tensors[f"{name}.a"], b=tensors[f"{name}.b"])
            for name, pair in self.adapter.pairs.items()
        }
        return replace(self, adapter=replace(self.adapter, pairs=pairs), tensors=tensors)


@dataclass(frozen=True, slots=True)
class Trained:
    """What training came to.

    Arguments:
        change: what is added to the tensors that the plan trains; clipped and rounded before it is
            sent.
        examples: that it was trained on, ≥ 1.
        row_counts: of a head, how many of them had each answer: what its rows count in an average.
            Empty where none of it was trained.
    """

    change: Tensors
    examples: int
    row_counts: Counts = field(default_factory=lambda: NO_COUNTS)


class NoGain(CascadeError):
    """Training made the adapter no better; raised by a trainer. Nothing is sent."""


class Paused(CascadeError):
    """The device may not train on now; raised by a trainer, which goes on where it was when it is
    called with the same arguments again."""


class Trainer(Protocol):
    """The training. Called in a thread; must end within the plan's seconds."""

    def __call__(self, plan: RoundPlan, start: StartingPoint) -> Trained:
        """Train.

        Raises:
            NoGain: there is nothing worth sending.
            Paused: the device is in use, or no longer charging, or the like.
            CascadeError: it failed.
        """
        ...
