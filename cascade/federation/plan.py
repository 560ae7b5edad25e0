"""What a round asks of a device: how to train, how much of it at most, and what to send."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from typing import Final, Literal, Self, cast, get_args

from cascade.errors import InvalidInput
from cascade.federation.expected import Expected
from cascade.federation.masked_plan import MASKED_FORMAT, MaskedPlan
from cascade.federation.tensors import Shapes, elements, rank_of, shapes_at_rank
from cascade.federation.update import Bits, encoded_size
from cascade.strict import Fields

Trained = Literal["b", "both"]
Optimiser = Literal["adamw", "sgd"]
PLAN_LIMIT_BYTES: Final = 1 << 16
PAYLOAD_FORMAT: Final = "cascade-update-1"
"""What ``cascade.federation.update`` writes."""
ROWS_FORMAT: Final = "cascade-update-2"
"""The same with counts of a head's rows behind it: ``cascade.federation.payload``."""

COUNTS_HEAD_BYTES: Final = 9

_FIXED: Final = ("head.mean", "head.scale")
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
        masked: that only the sum of the updates is learned; ``None`` where each is seen. ``bits``
            then means nothing.
        rows: that the rows of a head are averaged by how many examples of each answer a device had:
            never under masks.

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
    masked: MaskedPlan | None = None
    rows: bool = False

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
        if self.rows and self.masked is not None:
            raise InvalidInput(
                "plan.rows",
                "must be left out under masks: the sum of a row that one device alone has learned "
                "would be that device's own",
            )

    def shapes(self, adapter: Shapes) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what an update of this plan holds.

        Arguments:
            adapter: of all tensors of the adapter that training starts from. What belongs to no
                layer, such as a head, is trained always, but for what standardises its features:
                that stays as it is, so that heads can be averaged.

        Raises:
            InvalidInput: nothing is left to train.
        """
        layers = sorted({int(found[1]) for name in adapter if (found := _LAYER.fullmatch(name))})
        last = set(layers[-self.layers :])
        chosen = {}
        for name, shape in adapter.items():
            found = _LAYER.fullmatch(name)
            if found is None:
                if name not in _FIXED:
                    chosen[name] = tuple(shape)
            elif int(found[1]) in last and (self.trained == "both" or found[2] == "b"):
                chosen[name] = tuple(shape)
        if not chosen:
            raise InvalidInput("plan", "leaves nothing of the adapter to train")
        return chosen

    def payload_bytes(self, adapter: Shapes) -> int:
        """Exact size of an update of this plan.

        Raises:
            InvalidInput: nothing is left to train, or masked words cannot hold the sum.
        """
        shapes = self.shapes(adapter)
        if self.masked is not None:
            return elements(shapes) * self.masked.fixed(self.clip_norm).bits // 8
        counts = COUNTS_HEAD_BYTES + 4 * self.head_rows(shapes) if self.rows else 0
        return encoded_size(shapes, self.bits) + counts

    def head_rows(self, shapes: Shapes) -> int:
        """Answers of the head, of what the plan trains; 0 without a head.

        Raises:
            InvalidInput: its tensors do not agree.
        """
        rows = {shape[0] for name, shape in shapes.items() if is_of_head(name)}
        if len(rows) > 1:
            raise InvalidInput("head", "has tensors of different numbers of rows")
        return rows.pop() if rows else 0

    @property
    def payload_format(self) -> str:
        """How an update of this plan is written."""
        if self.masked is not None:
            return MASKED_FORMAT
        return ROWS_FORMAT if self.rows else PAYLOAD_FORMAT

    @property
    def any_rank(self) -> bool:
        """Whether a device may train fewer ranks than the adapter has: products can be averaged
        then, where each update is seen."""
        return self.trained == "both" and self.masked is None

    def updates(self, adapter: Shapes) -> dict[int, Expected]:
        """What an update of this plan looks like, by the size of the payload that it comes in: of
        the adapter's rank first, then of each lower one that a device may train.

        Raises:
            InvalidInput: nothing is left to train.
        """
        lower = range(rank_of(adapter) - 1, 0, -1) if self.any_rank else ()
        return {
            self.payload_bytes(shapes): Expected.of(self.shapes(shapes), self.bits)
            for shapes in (adapter, *(shapes_at_rank(adapter, rank) for rank in lower))
        }

    def to_bytes(self) -> bytes:
        """The plan as it travels: JSON, keys sorted. What is not asked for is left out, so that
        devices that do not know of it take part in the rounds that do without."""
        value = asdict(self)
        del value["masked"], value["rows"]
        if self.masked is not None:
            value["masked"] = self.masked.to_json()
        if self.rows:
            value["rows"] = True
        return json.dumps(value, sort_keys=True).encode()

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
            masked=MaskedPlan.from_json(fields.take("masked"), "plan.masked")
            if fields.given("masked")
            else None,
            rows=fields.given("rows") and fields.boolean("rows"),
        )
        fields.end()
        return plan


def is_of_head(name: str) -> bool:
    """Whether a tensor that travels belongs to a head, and not to a linear of some layer."""
    return name.startswith("head.")
