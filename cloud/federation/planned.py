"""What ``cascade cluster check`` says of federated rounds, before anything is started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cascade.errors import CascadeError, ClusterError
from cascade.federation.plan import RoundPlan
from cascade.signing import SigningKey
from cloud.federation.adapters import Adapters
from cloud.federation.budget import MOST_ROUNDS, rounds_within
from cloud.federation.config import FederationConfig
from cloud.federation.gate.planned import explained, gate_problems
from cloud.federation.privacy import NoisedRounds, epsilon
from cloud.federation.rollout.config import RolloutConfig
from cloud.federation.rollout.deciding import devices_needed
from cloud.federation.seams import attestor_named
from cloud.registry import Registry

if TYPE_CHECKING:
    from cloud.config import ClusterConfig

_COMFORTABLE: Final = 64


@dataclass(frozen=True, slots=True)
class FederationPlan:
    """Rounds as they would be.

    Arguments:
        adapter: that the first one starts from, for people.
        trains: what of it, for people.
        payload_bytes: exact size of an update; ``None`` where the adapter is not there.
        leases: at one time, or in a synchronous round.
        store: where rounds are kept, without a password.
        masks: what holds where updates are summed under masks, for people; empty for none.
        privacy: what rounds with noise cost, for people; empty without noise.
        gate: who lets candidates through, for people.
        rollout: how approved adapters reach devices, for people.
        problems: what keeps them from starting, a line each.
    """

    mode: str
    goal: int
    minimum: int
    leases: int
    round_s: float
    adapter: str
    trains: str
    payload_bytes: int | None
    aggregation: str
    start_from: str
    store: str
    gate: tuple[str, ...]
    masks: str = ""
    privacy: str = ""
    rollout: str = ""
    problems: tuple[str, ...] = ()


def plan_federation(config: ClusterConfig) -> FederationPlan | None:
    """The plan of the section ``federation``; ``None`` without one."""
    federation, registry = config.federation, config.gateway.registry
    if federation is None or registry is None:
        return None
    plan = federation.round_plan
    problems: list[str] = []
    size, base, named = None, None, f"{federation.adapter[:12]}…"
    try:
        adapter = Adapters(Registry(registry)).read(federation.adapter)
        base = adapter.manifest.base_digest
        plan = federation.plan_for(adapter.shapes)
        size = plan.payload_bytes(adapter.shapes)
        named = f"{adapter.manifest.name} version {adapter.manifest.version} ({named})"
        if size > federation.max_payload_bytes:
            problems.append(
                f"federation.max_payload_bytes is {federation.max_payload_bytes}, and an update "
                f"has {size} bytes"
            )
    except (CascadeError, OSError) as problem:
        problems.append(f"federation.adapter: {problem}")
    if federation.gate is not None:
        problems += gate_problems(federation.gate, Registry(registry), base)
    if federation.signing_key is not None:
        try:
            SigningKey.load(federation.signing_key)
        except (CascadeError, OSError) as problem:
            problems.append(f"federation.signing_key: {problem}")
    if federation.attestor is not None:
        try:
            attestor_named(federation.attestor)
        except CascadeError as problem:
            problems.append(str(problem))
    privacy = ""
    try:
        privacy = _privacy(federation)
    except CascadeError as problem:
        problems.append(f"federation.aggregation: {problem}")
    what = "B of" if plan.trained == "b" else "A and B of"
    return FederationPlan(
        mode=federation.mode,
        goal=federation.goal,
        minimum=federation.minimum,
        leases=federation.leases,
        round_s=federation.round_s,
        adapter=named,
        trains=f"{what} the last {plan.layers} layers",
        payload_bytes=size,
        aggregation=_aggregation(federation),
        start_from=federation.start_from,
        store=_without_password(federation.store_url),
        gate=explained(federation.gate),
        masks=_masks(plan),
        privacy=privacy,
        rollout=_rollout(federation.rollout, Registry(registry), base),
        problems=tuple(problems),
    )


def check_federation(config: ClusterConfig) -> None:
    """Raise ``ClusterError`` where rounds could not start: a replica that fails says less."""
    planned = plan_federation(config)
    if planned is not None and planned.problems:
        raise ClusterError("\n".join(planned.problems))


def _masks(plan: RoundPlan) -> str:
    masked = plan.masked
    if masked is None:
        return ""
    bits = masked.fixed(plan.clip_norm).bits
    busy = "; above 64 devices take long" if masked.cohort > _COMFORTABLE else ""
    return (
        f"only the sum is seen, of {masked.threshold} to {masked.cohort} devices that count alike, "
        f"in {bits}-bit words; {masked.phase_s:g} s a phase{busy}"
    )


def _privacy(config: FederationConfig) -> str:
    """Raises ``CascadeError`` where there is a budget that cannot be kept, or that is spent."""
    how = config.aggregation
    if how.noise_multiplier is None:
        return ""
    noise = f"δ {how.delta:g} · noise {how.noise_multiplier:g}"
    if how.most_epsilon is None:
        return f"any number of rounds, whatever ε they come to · {noise}"
    number = rounds_within(how.most_epsilon, how.noise_multiplier, how.delta)
    if not number:
        first = epsilon([NoisedRounds(1, how.noise_multiplier)], how.delta)
        raise ClusterError(
            f"most_epsilon {how.most_epsilon:g} allows no round: the first one makes ε {first:.3g}"
        )
    more = " or more" if number == MOST_ROUNDS else ""
    return f"{number}{more} rounds in all, until ε {how.most_epsilon:g} · {noise}"


def _aggregation(config: FederationConfig) -> str:
    how = config.aggregation
    strategy = "FFA-LoRA" if config.plan.trained == "b" else "mean of products"
    step = "" if how.optimiser == "plain" else f", {how.optimiser} on the server"
    return f"{strategy} by {how.rule.replace('_', ' ')}{step}"


def _rollout(config: RolloutConfig | None, registry: Registry, base: str | None) -> str:
    if config is None:
        return "none: what is approved reaches devices by `cascade registry publish`"
    try:
        served = any(
            registry.artifact(digest).artifact.base_digest == base
            for variant in registry.channel(config.channel).variants
            for digest in variant.stable[:1]
        )
    except (CascadeError, OSError):
        served = False
    needed = max(config.minimum_devices, devices_needed(config.margins, delta=config.delta))
    nothing = "" if served or base is None else "; it serves no bundle of this base yet"
    return (
        f"on the channel {config.channel}, {config.percent} % first; to all when "
        f"{needed} devices or more have reported for {config.minimum_s:,.0f} s and "
        f"nothing is worse than its bound, back after {config.most_s:,.0f} s{nothing}"
    )


def _without_password(url: str) -> str:
    scheme, found, rest = url.partition("://")
    if not found:
        return url
    place = rest.rpartition("@")[2]
    return f"{scheme}://{place.partition('?')[0]}"
