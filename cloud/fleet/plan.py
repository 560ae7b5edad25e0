"""What a simulated fleet is like, and what is done to it."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field
from typing import Final, Literal, Self, get_args

from pydantic import ValidationError

from cascade.errors import InvalidInput
from cascade.federation.masking.messages import MAX_COHORT
from cloud.federation.config import (
    AggregationConfig,
    FederationConfig,
    PlanConfig,
    SecureAggregationConfig,
)
from cloud.federation.privacy import usual_delta
from cloud.fleet.rows import Partition
from edge.examples import CurationRules

AttackKind = Literal[
    "sign-flip", "scale", "label-flip", "nan", "wrong-base", "rank-bomb", "replay", "stale"
]
"""``sign-flip``: ten times the update, backwards. ``scale``: ten times the update. ``label-flip``:
learns wrong answers. ``nan``, ``wrong-base``, ``rank-bomb`` (twice the rank), ``stale`` (says that
it started from an older version): updates that must be refused. ``replay``: sends its update twice.

Under masks nobody sees ``sign-flip`` and ``scale``, nor can clip them; there is no ``nan``, for
what is masked are integers.
"""
LEAST_MASKED: Final = 3
"""Devices, fewer than which no simulated device is summed with: the default of real ones."""
DAY_S: Final = 86_400.0
"""Of the simulation's time between two rounds: what real devices' budgets are for."""
_LEASE_S: Final = 10 * DAY_S
_NONE: Final = "0" * 64
"""Stands for the digest of an adapter that is not there yet."""
Learner = Literal["lora", "head"]
Bounded = Literal["risk", "excess"]


@dataclass(frozen=True, slots=True)
class Attackers:
    """Hostile devices.

    Arguments:
        share: of the devices, in [0, 1).
        kind: what they do.
    """

    share: float = 0.0
    kind: AttackKind = "sign-flip"

    @classmethod
    def of(cls, text: str) -> Self:
        """Read ``SHARE:KIND``, e.g. ``0.2:sign-flip``.

        Raises:
            InvalidInput: it is not of that form.
        """
        found = re.fullmatch(r"(0?\.\d+|0|1(?:\.0+)?):([a-z-]+)", text)
        if found is None or found[2] not in get_args(AttackKind):
            raise InvalidInput(
                "byzantine",
                f"{text!r} is not SHARE:KIND with a kind of {', '.join(get_args(AttackKind))}",
            )
        return cls(float(found[1]), found[2])  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """One simulation.

    Arguments:
        devices: ≥ 2.
        rounds: passes over the fleet, ≥ 1. In synchronous mode each is one round of the
            coordinator.
        seed: of everything that is drawn, ≥ 0.
        partition: which device sees which rows.
        per_round: rows that a device sees in a round, ≥ 1.
        dropout: probability with which a device drops out of a round, in [0, 1): it is off, or it
            trains and loses its connection before the update is sent; either is as likely. Under
            masks it may also be lost after its keys, or after its update, each as likely.
        attackers: hostile devices.
        mode: of the coordinator.
        goal: updates that end an asynchronous round; by default half of the devices.
        minimum: fewer updates are not aggregated; by default a quarter of the devices.
        masked: updates are summed under masks, and the cluster learns no more than the sum.
        mask_threshold: devices that must stay until a sum is unmasked; by default the minimum, or
            just above half of the devices, or 3, whichever is more.
        learner: what is trained: ``lora``, or a linear ``head`` on frozen features.
        starting: labelled rows, of the fleet's part, that the first adapter is trained on, as many
            of each answer as of another; ≥ 0. A head needs some.
        recertify: whether each adapter's policy is certified anew; if not, the first policy that
            could be certified stays, whatever adapter it then decides for.
        target: what ``alpha`` bounds: ``risk``, the share of wrong answers among those that a
            device keeps; or ``excess``, the share of all inputs that a device keeps and answers
            wrongly though the teacher is right, which bounds by how much the fleet is less often
            right than the teacher alone.
        alpha: largest tolerated value of it, in (0, 1).
        delta: tolerated probability that a certified threshold does not hold that, in (0, 1).
        most_worse: a candidate whose accuracy on the develop part is worse by more than this is
            rejected, ≥ 0.
        gate_delta: so is one that is not shown to be worse by less, tolerated to be wrong with this
            probability, in (0, 0.5), as a cluster's own gate has it
            (``cloud.federation.gate.comparing.accuracy``); ``None`` compares the two accuracies
            as they are.
        most_less_kept: and so is one whose policy keeps a share of the certify part that is smaller
            by more than this, ≥ 0; not without ``recertify``.
        most_escape: and one with which devices escalate a share of what is out of scope that is
            smaller by more than this, ≥ 0, as a cluster's own gate has it; ``None`` does not ask.
        rank: of the adapter, ≥ 1.
        ranks: that devices train, in turn, each 1 to ``rank``; ``None`` for the adapter's. Needs
            training of both.
        level, least: see ``edge.training.worth_sending``.
        epochs: times that a device sees each of its examples at most, ≥ 1.
        rehearsal: weight of what a device kept and answered itself, in the training of a head, in
            [0, 1]; see ``edge.examples.CurationRules``.
        training: what devices are asked to do.
        aggregation: what becomes of it.
    """

    devices: int
    rounds: int
    seed: int = 0
    partition: Partition = field(default_factory=Partition)
    per_round: int = 40
    dropout: float = 0.0
    attackers: Attackers = field(default_factory=Attackers)
    mode: Literal["synchronous", "asynchronous"] = "synchronous"
    goal: int | None = None
    minimum: int | None = None
    masked: bool = False
    mask_threshold: int | None = None
    learner: Learner = "lora"
    starting: int = 0
    recertify: bool = True
    target: Bounded = "risk"
    alpha: float = 0.1
    delta: float = 0.1
    most_worse: float = 0.02
    gate_delta: float | None = None
    most_less_kept: float = 0.02
    most_escape: float | None = None
    rank: int = 8
    ranks: tuple[int, ...] | None = None
    level: float = 0.5
    least: int = 1
    epochs: int = 4
    rehearsal: float = CurationRules().rehearsal
    training: PlanConfig = field(default_factory=PlanConfig)
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InvalidInput(name, f"{value} is not in {low:g} … {high:g}")
        if not 0 < self.alpha < 1 or not 0 < self.delta < 1:
            raise InvalidInput("alpha", "and delta must lie between 0 and 1")
        if self.gate_delta is not None and not (0 < self.gate_delta < 0.5 and self.most_worse > 0):
            raise InvalidInput(
                "gate_delta", "must lie between 0 and 0.5, and most_worse be above 0"
            )
        if self.goal is not None and self.goal > self.devices:
            raise InvalidInput("goal", f"must be at most {self.devices}: it counts devices")
        if self.learner == "head" and not self.starting:
            raise InvalidInput("starting", "must be at least 1: a head starts from some labels")
        if self.ranks is not None:
            if not self.ranks or not all(1 <= each <= self.rank for each in self.ranks):
                raise InvalidInput("ranks", f"must be one or more of 1 … {self.rank}")
            if self.training.trained != "both" or self.masked:
                raise InvalidInput("ranks", "need training of both, the product mean, in the clear")
        if self.masked:
            self._check_masks()
        elif self.mask_threshold is not None:
            raise InvalidInput("mask_threshold", "is for masked rounds")
        self._check_krum()
        self.federation(_NONE, None)  # says so now if there are no such rounds

    def _check_masks(self) -> None:
        how = self.aggregation.rule, self.training.trained, self.mode
        if how != ("mean", "b", "synchronous"):
            raise InvalidInput(
                "masked",
                "needs the rule mean, trained b and synchronous mode: of anything else the sum of "
                "the updates is not enough",
            )
        if self.attackers.share and self.attackers.kind == "nan":
            raise InvalidInput("attackers", "cannot send nan under masks: they are on integers")
        if not LEAST_MASKED <= self.devices <= MAX_COHORT:
            raise InvalidInput("devices", f"must be {LEAST_MASKED} to {MAX_COHORT} under masks")
        fewest, given = self._least_threshold, self.mask_threshold
        if given is not None and not fewest <= given <= self.devices:
            raise InvalidInput(
                "mask_threshold",
                f"must be {fewest} to {self.devices}: more than half of the devices, no less than "
                f"the minimum and {LEAST_MASKED}",
            )

    def _check_krum(self) -> None:
        how = self.aggregation
        needed = 2 * how.byzantine + 3
        if how.rule == "krum" and self.fewest < needed:
            raise InvalidInput(
                "minimum",
                f"comes to {self.fewest}; krum needs {needed} updates, and as many devices, to "
                f"withstand {how.byzantine} hostile",
            )

    def federation(self, adapter: str, store: str | None) -> FederationConfig:
        """The coordinator's configuration.

        Arguments:
            adapter: digest of the one that the first round starts from.
            store: path of the coordinator's store.

        Raises:
            InvalidInput: there are no such rounds.
        """
        synchronous = self.mode == "synchronous"
        try:
            return FederationConfig(
                adapter=adapter,
                store=store,
                mode=self.mode,
                goal=self.updates,
                minimum=self.fewest,
                cohort=self.devices if synchronous else max(self.devices, self.updates),
                round_s=DAY_S,
                lease_s=_LEASE_S,
                min_separation_s=0.0,
                retry_s=(0.0, 1.0),
                checkins_per_s=1_000_000,
                max_payload_bytes=16_000_000,
                plan=self.training,
                secure_aggregation=self.masks,
                aggregation=self._aggregation,
            )
        except ValidationError as problem:
            raise invalid(problem) from None

    @property
    def _aggregation(self) -> AggregationConfig:
        """Of the coordinator: ε is told at the δ that is usual for so many devices."""
        if self.aggregation.noise_multiplier is None:
            return self.aggregation
        return self.aggregation.model_copy(update={"delta": usual_delta(self.devices)})

    @property
    def masks(self) -> SecureAggregationConfig | None:
        """Of the coordinator's rounds; ``None`` for rounds in the clear."""
        if not self.masked:
            return None
        return SecureAggregationConfig(threshold=self.mask_threshold or self._least_threshold)

    @property
    def _least_threshold(self) -> int:
        return max(LEAST_MASKED, self.fewest, self.devices // 2 + 1)

    @property
    def updates(self) -> int:
        """Updates that end a round."""
        if self.mode == "synchronous":
            return self.devices
        return self.goal or max(1, self.devices // 2)

    @property
    def fewest(self) -> int:
        """Updates that a round needs."""
        return min(self.minimum or max(1, self.devices // 4), self.updates)

    @property
    def hostile(self) -> int:
        """How many devices are."""
        return math.floor(self.attackers.share * self.devices + 0.5)

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        value = {
            name: each
            for name, each in asdict(self).items()
            if name not in ("training", "aggregation")
        }
        masks = self.masks
        return value | {
            "mask_threshold": None if masks is None else masks.threshold,
            "training": self.training.model_dump(mode="json"),
            "aggregation": self._aggregation.model_dump(mode="json"),
        }


def invalid(problem: ValidationError) -> InvalidInput:
    """The first thing that is wrong with a configuration."""
    first = problem.errors()[0]
    where = ".".join(map(str, first["loc"])) or "plan"
    return InvalidInput(where, first["msg"].removeprefix("Value error, "))


_RANGES: Final[dict[str, tuple[float, float]]] = {
    "devices": (2, 100_000),
    "rounds": (1, 10_000),
    "seed": (0, 2**31),
    "starting": (0, 100_000),
    "per_round": (1, 100_000),
    "dropout": (0, 0.999),
    "goal": (1, 100_000),
    "minimum": (1, 100_000),
    "mask_threshold": (2, 100_000),
    "most_worse": (0, 1),
    "most_less_kept": (0, 1),
    "most_escape": (0, 1),
    "rank": (1, 256),
    "level": (1e-6, 0.5),
    "least": (1, 100_000),
    "epochs": (1, 1000),
    "rehearsal": (0, 1),
}
