"""The ``federation`` section of the cluster's YAML: what rounds are like, and what devices are
asked to do in them."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from cascade.errors import InvalidInput
from cascade.federation.masked_plan import MaskedPlan
from cascade.federation.masking.messages import MAX_COHORT
from cascade.federation.plan import RoundPlan, is_of_head
from cascade.federation.tensors import Shapes
from cascade.federation.terms import PAYLOAD_LIMIT_BYTES
from cascade.home import home
from cloud.federation.database import located
from cloud.federation.gate.config import GateConfig
from cloud.federation.robust import TrimmedMean
from cloud.federation.rollout.config import RolloutConfig
from cloud.strict_model import StrictModel

_SHA256 = re.compile(r"[0-9a-f]{64}")


class PlanConfig(StrictModel):
    """What devices are asked to do; see ``cascade.federation.plan.RoundPlan``."""

    layers: int = Field(default=4, ge=1, le=1000)
    trained: Literal["b", "both"] = "b"
    optimiser: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(default=0.01, gt=0, lt=math.inf)
    batch: int = Field(default=4, ge=1, le=10_000)
    max_steps: int = Field(default=50, ge=1, le=1_000_000)
    max_seconds: float = Field(default=600.0, gt=0, le=86_400)
    max_examples: int = Field(default=200, ge=1, le=1_000_000)
    clip_norm: float = Field(default=1.0, gt=0, lt=math.inf)
    bits: Literal[4, 8, 32] = 8
    seed: int = Field(default=0, ge=0, le=2**53)

    def plan(self) -> RoundPlan:
        """The plan that leases carry."""
        return RoundPlan(**self.model_dump())


class AggregationConfig(StrictModel):
    """How updates become an adapter: where B alone is trained, by FFA-LoRA with this rule and this
    server optimiser; where A is trained too, by the mean of products (rules ``mean`` and ``krum``).

    Arguments:
        trim: share that ``trimmed_mean`` leaves out at each end.
        byzantine: hostile devices that ``krum`` withstands.
        rate: of the server's step; by default 1 without an optimiser and with momentum, 0.01 with
            Adam.
        noise_multiplier: central differential privacy: the clipped sum of a synchronous round gets
            noise of this many clip norms, and is divided by the goal; see
            ``cloud.federation.privacy`` for what that promises. At 0.01, the least, that is
            nothing: one round makes ε 5,400.
        delta: at which ε is told; below one in the number of devices.
        most_epsilon: no round is opened after which the fleet's ε would be more; ``None`` for any.
    """

    rule: Literal["mean", "trimmed_mean", "median", "krum"] = "mean"
    trim: float = Field(default=0.1, ge=0, lt=0.5)
    byzantine: int = Field(default=1, ge=0, le=10_000)
    optimiser: Literal["plain", "momentum", "adam"] = "plain"
    rate: float | None = Field(default=None, gt=0, lt=math.inf)
    noise_multiplier: float | None = Field(default=None, ge=0.01, lt=math.inf)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    most_epsilon: float | None = Field(default=None, gt=0, lt=math.inf)


class SecureAggregationConfig(StrictModel):
    """Rounds in which the cluster learns the sum of the updates, and no device's own.

    Arguments:
        threshold: devices that must stay until the sum is unmasked; by default the ``minimum``, or
            just above half of the ``goal`` where that is more.
        phase_s: seconds for which each phase behind the training waits for those who are late.
        levels: integers from 0 to the clip norm at least; more make an update larger: up to 32
            devices and 1,023 levels take two bytes a number, else it is four.
    """

    threshold: int | None = Field(default=None, ge=2, le=MAX_COHORT)
    phase_s: float = Field(default=120.0, ge=0.1, le=86_400)
    levels: int = Field(default=1023, ge=1, le=2**24)


class FederationConfig(StrictModel):
    """Federated rounds on one base.

    Arguments:
        adapter: digest of the adapter in the registry that the first round starts from.
        store: ``postgresql://…``, or the path of a SQLite file; by default one under CASCADE_HOME.
            Where gateway and coordinator run on different nodes, it must be PostgreSQL.
        signing_key: signs candidate adapters; its publisher must be pinned where devices are to
            take them.
        mode: ``asynchronous`` rounds end with the ``goal``-th update, whenever it comes, and take
            updates that are up to ``max_gap`` versions behind; ``synchronous`` ones have a cohort
            and a deadline.
        goal: updates that end a round.
        minimum: fewer are never aggregated; a synchronous round that has fewer at its deadline is
            abandoned.
        cohort: leases at one time (asynchronous) or in a round (synchronous); by default 1.3 goals.
        round_s: how long a synchronous round takes updates.
        lease_s: how long a device may take.
        max_gap: versions that devices were told to start from since an update's, at most;
            candidates that were never served do not count.
        min_separation_s: between two updates of one device.
        retry_s: the window in which a device that is not needed asks again.
        checkins_per_s: that the gateway wants at most; a larger fleet is told to come less often.
        enrolments_per_hour: new devices of one API key (or token, or certificate); ``None`` for any
            number.
        attestor: ``module:callable`` of one's own that says which devices may enrol, see
            ``cloud.federation.seams.Attestor``; without it, all that the gateway lets in.
        max_payload_bytes: of one update.
        upload_memory_bytes: of all uploads under way in one gateway.
        start_from: ``approved`` waits for the gate's word before the next round; ``candidate`` goes
            on from what the last round made, unless it is rejected.
        secure_aggregation: that updates are summed under masks; ``true`` for its defaults.
        gate: by what candidates are judged; without it an operator decides.
        rollout: how approved ones reach devices; without it none is published to a channel.
    """

    adapter: str
    store: str | None = Field(default=None, min_length=1)
    signing_key: Path | None = Field(default=None, strict=False)
    mode: Literal["asynchronous", "synchronous"] = "asynchronous"
    goal: int = Field(default=20, ge=1, le=100_000)
    minimum: int = Field(default=10, ge=1, le=100_000)
    cohort: int | None = Field(default=None, ge=1, le=1_000_000)
    round_s: float = Field(default=3600.0, gt=0, le=2_592_000)
    lease_s: float = Field(default=3600.0, gt=0, le=2_592_000)
    max_gap: int = Field(default=4, ge=0, le=1000)
    min_separation_s: float = Field(default=86_400.0, ge=0, le=31_536_000)
    retry_s: tuple[float, float] = Field(default=(60.0, 180.0), strict=False)
    checkins_per_s: float = Field(default=50.0, gt=0, le=1_000_000)
    enrolments_per_hour: int | None = Field(default=10_000, ge=1, le=100_000_000)
    attestor: str | None = Field(default=None, pattern=r"^[\w.]+:\w+$")
    max_payload_bytes: int = Field(default=1_000_000, ge=1, le=PAYLOAD_LIMIT_BYTES)
    upload_memory_bytes: int = Field(default=64_000_000, ge=1)
    start_from: Literal["approved", "candidate"] = "approved"
    plan: PlanConfig = PlanConfig()
    aggregation: AggregationConfig = AggregationConfig()
    secure_aggregation: SecureAggregationConfig | None = None
    gate: GateConfig | None = None
    rollout: RolloutConfig | None = None

    @field_validator("secure_aggregation", mode="before")
    @classmethod
    def _switch(cls, given: object) -> object:
        """``true`` and ``false`` are sections, too."""
        if isinstance(given, bool):
            return {} if given else None
        return given

    @field_validator("adapter")
    @classmethod
    def _digest(cls, digest: str) -> str:
        if not _SHA256.fullmatch(digest):
            raise ValueError(
                "must be an adapter's digest: 64 lower-case hex digits, which `cascade registry "
                "list --full` shows"
            )
        return digest

    @field_validator("retry_s")
    @classmethod
    def _window(cls, window: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= window[0] <= window[1] <= 604_800:
            raise ValueError("must be two rising numbers of seconds, 0 to 604800")
        return window

    # Of the model and not of the field, whose value an error would show: a password may be in it.
    @model_validator(mode="after")
    def _kept(self) -> Self:
        try:
            located(self.store_url)
        except InvalidInput as problem:
            raise ValueError(f"store {problem.problem}") from None
        return self

    @model_validator(mode="after")
    def _aggregable(self) -> Self:
        how = self.aggregation
        if self.plan.trained == "both" and how.rule not in ("mean", "krum"):
            raise ValueError(
                f"aggregation.rule {how.rule} is for plan.trained: b; with both take mean or krum"
            )
        if self.plan.trained == "both" and how.optimiser != "plain":
            raise ValueError("aggregation.optimiser must be plain where plan.trained is both")
        if how.noise_multiplier is not None and (
            how.rule != "mean" or self.plan.trained == "both" or self.mode != "synchronous"
        ):
            raise ValueError(
                "aggregation.noise_multiplier needs rule: mean, plan.trained: b and mode: "
                "synchronous; only there is it known what one device can change"
            )
        if how.most_epsilon is not None and how.noise_multiplier is None:
            raise ValueError(
                "aggregation.most_epsilon needs aggregation.noise_multiplier: without noise there "
                "is no ε to be kept"
            )
        if how.rule == "krum" and self.minimum < 2 * how.byzantine + 3:
            raise ValueError(f"krum needs a minimum of {2 * how.byzantine + 3} updates")
        if how.rule == "trimmed_mean":
            trimmed = TrimmedMean(how.trim)
            for count in range(self.minimum, self.goal + 1):
                if count <= 2 * trimmed.cut(count):
                    raise ValueError(
                        f"aggregation.trim {how.trim:g} leaves nothing of {count} updates, which "
                        "minimum and goal allow; take a smaller trim or a larger minimum"
                    )
        return self

    @model_validator(mode="after")
    def _maskable(self) -> Self:
        masked, how = self.secure_aggregation, self.aggregation
        if masked is None:
            return self
        if how.rule != "mean" or self.plan.trained == "both" or self.mode != "synchronous":
            raise ValueError(
                "secure_aggregation needs mode: synchronous, plan.trained: b and aggregation.rule: "
                "mean; of anything else the sum of the updates is not enough"
            )
        if not 2 <= self.goal <= MAX_COHORT:
            raise ValueError(f"secure_aggregation needs a goal of 2 to {MAX_COHORT}")
        least = self.goal // 2 + 1
        if masked.threshold is not None and not (
            max(least, self.minimum) <= masked.threshold <= self.goal
        ):
            raise ValueError(
                f"secure_aggregation.threshold must be {max(least, self.minimum)} to {self.goal}: "
                "more than half of the goal, no less than the minimum, and at most the goal"
            )
        return self

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.minimum > self.goal:
            raise ValueError(f"minimum {self.minimum} is above the goal, {self.goal}")
        if self.cohort is not None and self.cohort < self.goal:
            raise ValueError(f"cohort {self.cohort} is below the goal, {self.goal}")
        if self.max_payload_bytes > self.upload_memory_bytes:
            raise ValueError("upload_memory_bytes is below max_payload_bytes")
        return self

    def anchored(self, folder: Path) -> Self:
        """The same with relative paths taken from ``folder``."""
        changed: dict[str, object] = {}
        if self.store is not None and "://" not in self.store:
            changed["store"] = str(folder / Path(self.store).expanduser())
        if self.signing_key is not None:
            changed["signing_key"] = folder / self.signing_key.expanduser()
        if self.gate is not None:
            changed["gate"] = self.gate.anchored(folder)
        return self.model_copy(update=changed)

    @property
    def round_plan(self) -> RoundPlan:
        """The plan that leases carry, whichever way updates are summed."""
        plan, masked = self.plan.plan(), self.secure_aggregation
        if masked is None:
            return plan
        threshold = masked.threshold or max(self.minimum, self.goal // 2 + 1)
        return replace(plan, masked=MaskedPlan(self.goal, threshold, masked.levels, masked.phase_s))

    def plan_for(self, adapter: Shapes) -> RoundPlan:
        """The plan of rounds that start from an adapter of these shapes. The rows of its head, if
        it has one, are averaged by answer where the rule is a mean and weights may differ: not
        with noise, whose size counts devices, nor under masks, which hide a single device's row."""
        plan, how = self.round_plan, self.aggregation
        by_rows = how.rule == "mean" or self.plan.trained == "both"
        alike = how.noise_multiplier is not None or plan.masked is not None or not by_rows
        return plan if alike else replace(plan, rows=any(map(is_of_head, adapter)))

    @property
    def leases(self) -> int:
        """Leases at one time, or in a synchronous round."""
        return self.cohort or math.ceil(1.3 * self.goal)

    @property
    def store_url(self) -> str:
        """Where the store is."""
        return self.store or default_store()


def default_store() -> str:
    """The store of this machine."""
    return str(home() / "federation" / "rounds.sqlite3")
