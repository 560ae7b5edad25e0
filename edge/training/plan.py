"""What a training run is to do: chosen on the command line, or sent by a coordinator."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, Self, get_args

from cascade.errors import InvalidInput
from cascade.strict import Fields
from edge.training.optimisers import AdamW, Optimiser, Schedule, Sgd

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
OptimiserName = Literal["adamw", "sgd"]


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How an adapter is trained. Each field is checked; ``InvalidInput`` names it.

    Arguments:
        layers: how many layers, counted from the last, get an adapter.
        modules: which linears of these layers, of ``LINEARS``.
        rank: of the adapter's matrices.
        alpha: B counts ``alpha / rank``, so that a learning rate serves every rank.
        frozen_a: name of the seed that A is drawn from and stays at: B alone is trained (FFA-LoRA,
            arXiv 2403.12313). "" trains both, from A drawn by ``seed``.
        optimiser, momentum, weight_decay: see ``edge.training.optimisers``; momentum is SGD's.
        learning_rate: at its height.
        schedule, warm_up: how it changes; see ``optimisers.scheduled``.
        clip_norm: longest gradient of a step; 0 does not clip.
        epochs: times that every example is seen.
        batch_size: examples of a step.
        max_steps: ends the run early; 0 does not.
        max_tokens: longer examples are left out; bounds the memory.
        val_share: share of the examples that is kept aside to tell whether it helps.
        patience: epochs without improvement on these before it stops; 0 goes on to the end.
        seed: of the order, the share kept aside, and A.
    """

    layers: int = 4
    modules: tuple[str, ...] = ("q_proj", "v_proj")
    rank: int = 8
    alpha: float = 16.0
    frozen_a: str = ""
    optimiser: OptimiserName = "adamw"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Schedule = "linear"
    warm_up: float = 0.1
    clip_norm: float = 1.0
    epochs: int = 3
    batch_size: int = 8
    max_steps: int = 0
    max_tokens: int = 512
    val_share: float = 0.1
    patience: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise InvalidInput(
                    f"plan.{name}", f"{getattr(self, name):g} is not in {low:g} … {high:g}"
                )
        if not self.modules or set(self.modules) - set(LINEARS):
            raise InvalidInput("plan.modules", f"must be some of {', '.join(LINEARS)}")
        for name, allowed in (
            ("optimiser", get_args(OptimiserName)),
            ("schedule", get_args(Schedule)),
        ):
            if getattr(self, name) not in allowed:
                raise InvalidInput(f"plan.{name}", f"must be one of {', '.join(allowed)}")

    def make_optimiser(self, size: int) -> Optimiser:
        """An optimiser of ``size`` parameters, at its start."""
        if self.optimiser == "adamw":
            return AdamW(size, weight_decay=self.weight_decay)
        return Sgd(size, momentum=self.momentum, weight_decay=self.weight_decay)

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {**dataclasses.asdict(self), "modules": list(self.modules)}

    @classmethod
    def from_json(cls, value: object, *, where: str = "plan") -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or unusable; it is named.
        """
        fields = Fields(value, where)
        read: dict[str, object] = {
            "modules": fields.texts("modules"),
            "frozen_a": fields.text("frozen_a"),
            "optimiser": fields.choice("optimiser", get_args(OptimiserName)),
            "schedule": fields.choice("schedule", get_args(Schedule)),
        }
        for name, (low, high) in _RANGES.items():
            if isinstance(low, int):
                read[name] = fields.integer(name, low, int(high))
            else:
                read[name] = fields.number(name, low, high)
        fields.end()
        return cls(**read)  # type: ignore[arg-type]


# Of a whole number both bounds are whole.
_RANGES: dict[str, tuple[int | float, int | float]] = {
    "layers": (1, 1024),
    "rank": (1, 256),
    "alpha": (1e-3, 1e4),
    "learning_rate": (1e-8, 10.0),
    "momentum": (0.0, 0.9999),
    "weight_decay": (0.0, 1.0),
    "warm_up": (0.0, 0.99),
    "clip_norm": (0.0, 1e6),
    "epochs": (1, 10_000),
    "batch_size": (1, 65_536),
    "max_steps": (0, 10**9),
    "max_tokens": (2, 1_000_000),
    "val_share": (0.0, 0.9),
    "patience": (0, 10_000),
    "seed": (0, 2**53),
}
