"""What a round asks of a device: how to train, how much of it at most, and what to send."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from typing import Final, Literal, Self, cast, get_args

from cascade.errors import InvalidInput
from cascade.federation.expected import Expected
from cascade.federation.tensors import Shapes
from cascade.federation.update import Bits, encoded_size
from cascade.strict import Fields

Trained = Literal["b", "both"]
Optimiser = Literal["adamw", "sgd"]
PLAN_LIMIT_BYTES: Final = 1 << 16
PAYLOAD_FORMAT: Final = "cascade-update-1"
"""What ``cascade.federation.update`` writes."""

_LAYER = re.compile(r"layers\.(\d+)\..+\.([ab])")


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """One round's plan.

    Arguments:
        layers: how many of the last layers are trained, ≥ 1.
        trained: ``"b"`` leaves every A as it is (FFA-LoRA, arXiv 2403.12313).
        optimiser, learning_rate, batch: of the device's own steps.
        max_steps: that a device takes, ≥ 1.
        max_seconds: of training, > 0.
        max_examples: an update counts as one of so many examples at most, ≥ 1.
        clip_norm: the update's L2 norm at most, > 0.
        bits: of each number that is sent: 4, 8, or 32 for float32.
        seed: of sampling and rounding, ≥ 0.

    Raises:
        InvalidInput: a number is out of its range.
    """

    layers: int = 4
    trained: Trained = "b"
    optimiser: Optimiser = "adamw"
    learning_rate: float = 0.01
    batch: int = 4
    max_steps: int = 50
    max_seconds: float = 600.0
    max_examples: int = 200
    clip_norm: float = 1.0
    bits: Bits = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("layers", "batch", "max_steps", "max_examples"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"plan.{name}", "must be at least 1")
        for name in ("learning_rate", "max_seconds", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidInput(f"plan.{name}", "must be a finite number above 0")
        if self.bits not in get_args(Bits):
            raise InvalidInput("plan.bits", "must be 4, 8 or 32")
        if self.seed < 0:
            raise InvalidInput("plan.seed", "must be at least 0")

    def shapes(self, adapter: Shapes) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what an update of this plan holds.

        Arguments:
            adapter: of all tensors of the adapter that training starts from. What belongs to no
                layer, such as a head, is trained always.

        Raises:
            InvalidInput: nothing is left to train.
        """
        layers = sorted({int(found[1]) for name in adapter if (found := _LAYER.fullmatch(name))})
        last = set(layers[-self.layers :])
        chosen = {}
        for name, shape in adapter.items():
            found = _LAYER.fullmatch(name)
            if found is None or (
                int(found[1]) in last and (self.trained == "both" or found[2] == "b")
            ):
                chosen[name] = tuple(shape)
        if not chosen:
            raise InvalidInput("plan", "leaves nothing of the adapter to train")
        return chosen

    def payload_bytes(self, adapter: Shapes) -> int:
        """Exact size of an update of this plan."""
        return encoded_size(self.shapes(adapter), self.bits)

    def update(self, adapter: Shapes) -> Expected:
        """What an update of this plan looks like."""
        return Expected.of(self.shapes(adapter), self.bits)

    def to_bytes(self) -> bytes:
        """The plan as it travels: JSON, keys sorted."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a plan.

        Raises:
            InvalidInput: a field is missing, unknown or unusable; it is named.
        """
        if len(data) > PLAN_LIMIT_BYTES:
            raise InvalidInput("plan", f"is longer than {PLAN_LIMIT_BYTES} bytes")
        fields = Fields.from_bytes(data, "plan")
        plan = cls(
            layers=fields.integer("layers", 1, 1000),
            trained=cast(Trained, fields.choice("trained", get_args(Trained))),
            optimiser=cast(Optimiser, fields.choice("optimiser", get_args(Optimiser))),
            learning_rate=fields.number("learning_rate", 0.0),
            batch=fields.integer("batch", 1, 10_000),
            max_steps=fields.integer("max_steps", 1, 10**6),
            max_seconds=fields.number("max_seconds", 0.0),
            max_examples=fields.integer("max_examples", 1, 10**6),
            clip_norm=fields.number("clip_norm", 0.0),
            bits=cast(Bits, fields.integer("bits", 4, 32)),
            seed=fields.integer("seed", 0, 2**53),
        )
        fields.end()
        return plan
