"""What a configuration would start and cost, told before anything is started.

Pure but for one look at which model files are on this machine and how large they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cascade.download import cached
from cascade.errors import ClusterError
from cascade.home import trust_dir
from cascade.signing import TrustStore
from cloud.access_check import access_problems
from cloud.config import ClusterConfig, GatewayConfig, TierConfig
from cloud.engines import make_engine
from cloud.engines.provider import Key
from cloud.engines.vllm_config import require_vllm
from cloud.errors import ConfigError, ModelUnusable
from cloud.federation.planned import FederationPlan, plan_federation
from cloud.ladders import load_ladders
from cloud.placement import Node, placement_problems, this_machine, told
from cloud.served_adapters import TierAdapter
from cloud.startup import licence, model_file
from cloud.tier_adapters import look_up

_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
_PROMPT_SHARE: Final = 0.75
"""Share of prompt tokens in the mixed price: three of four tokens are read, one is written."""


@dataclass(frozen=True, slots=True)
class TierPlan:
    """One tier as it would run.

    Arguments:
        licence: SPDX identifier of a model of the catalog, else empty.
        commercial_use: whether the licence, or the operator, allows it.
        model_bytes: size of the model on this machine; ``None`` where it is not there.
        asks: whose API has the model; empty where this cluster computes it.
        problem: what keeps this tier from starting here, or empty.
        replicas: fewest and most.
        threads: that compute when it is at its largest.
        at_once: requests answered at one time then; further ones wait, ``queued`` at most.
        adapters: those that a request may ask for.
        placement: what a node has to have to run it, beside CPUs for its threads.
        usd_per_million_tokens: for prompts, for answers, and for three of the one with one of the
            other.
    """

    name: str
    engine: str
    model: str
    licence: str
    commercial_use: bool
    model_bytes: int | None
    asks: str
    problem: str
    replicas: tuple[int, int]
    threads: int
    at_once: int
    queued: int
    context_tokens: int
    data_classes: tuple[str, ...]
    region: str
    usd_per_million_tokens: tuple[float, float, float]
    price_label: str
    placement: str = ""
    adapters: tuple[TierAdapter, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole cluster.

    Arguments:
        callers: what they may show to be let in.
        commercial: whether answers may be sold.
        access_problems: files about callers that cannot be used.
        federation: rounds that devices take part in; ``None`` without any.
        ladder_problems: ladders that cannot be followed here.
        placement_problems: tiers that no node of the Ray cluster could run, if one was looked at.
        cores, threads: of this machine, and what all tiers use at their largest.
        notes: what an operator may want to know, a line each.
    """

    address: str
    tls: str
    callers: str
    commercial: bool
    tiers: tuple[TierPlan, ...]
    cores: int
    threads: int
    notes: tuple[str, ...]
    access_problems: tuple[str, ...] = ()
    federation: FederationPlan | None = None
    placement_problems: tuple[str, ...] = ()
    ladder_problems: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """What keeps it from starting on this machine, a line each."""
        rounds = () if self.federation is None else self.federation.problems
        tiers = (tier.problem for tier in self.tiers if tier.problem)
        files = (*self.access_problems, *self.ladder_problems)
        adapters = (each.problem for tier in self.tiers for each in tier.adapters if each.problem)
        return (*files, *self.placement_problems, *rounds, *tiers, *adapters)


def plan_cluster(
    config: ClusterConfig, *, cores: int | None = None, nodes: Sequence[Node] | None = None
) -> Plan:
    """The plan of a configuration.

    Arguments:
        cores: of the machine; by default those of this one.
        nodes: of the Ray cluster that it is for; by default there is this machine alone.
    """
    tiers = tuple(_tier(config, tier) for tier in config.tiers)
    gateway = config.gateway
    own = gateway.tls.certificate is None
    here = cores or os.cpu_count() or 1
    return Plan(
        address=f"{gateway.host}:{gateway.port}",
        tls="an authority of its own" if own else f"the certificate {gateway.tls.certificate}",
        callers=_callers(gateway),
        commercial=config.commercial,
        tiers=tiers,
        cores=here,
        threads=config.threads,
        notes=tuple(_notes(config, tiers, here, nodes)),
        access_problems=tuple(access_problems(config)),
        federation=plan_federation(config),
        ladder_problems=tuple(_ladder_problems(config)),
        placement_problems=() if nodes is None else tuple(placement_problems(config, nodes)),
    )


def _callers(gateway: GatewayConfig) -> str:
    ways = ["API keys"]
    if gateway.jwt is not None:
        ways.append(f"tokens of {gateway.jwt.issuer}")
    tls = gateway.tls
    if tls.client_ca is not None:
        where = "" if tls.client_port is None else f" on port {tls.client_port}"
        ways.append(f"client certificates{where}")
    return ", ".join(ways)


def _tier(config: ClusterConfig, tier: TierConfig) -> TierPlan:
    size, problem = None, ""
    try:
        if tier.provider is not None:
            make_engine(tier, "")
            Key(tier.provider)
        elif tier.vllm is not None:
            require_vllm()
        else:
            file = model_file(tier)
            size, problem = _size(file), licence(config, tier, file) or ""
    except ModelUnusable as missing:
        problem = f"tier {tier.name}: {missing}"
    except ClusterError as missing:
        # `up` downloads what the catalog has.
        problem = "" if tier.catalogued else str(missing)
    entry, adapters = tier.catalogued, look_up(config, tier)
    price, most = tier.price, tier.autoscaling.max_replicas
    read, write = price.input_usd_per_million_tokens, price.output_usd_per_million_tokens
    return TierPlan(
        name=tier.name,
        engine=tier.engine,
        model=tier.model_name,
        licence=entry.licence if entry else "",
        commercial_use=tier.allows_commercial_use,
        model_bytes=size,
        asks=(tier.provider.base_url or tier.engine) if tier.provider else "",
        problem=problem,
        replicas=(tier.autoscaling.min_replicas, most),
        threads=tier.threads * most,
        at_once=tier.ongoing_requests * most,
        queued=tier.max_queued_requests,
        context_tokens=tier.context_tokens,
        data_classes=tier.data_classes,
        region=tier.region,
        usd_per_million_tokens=(read, write, _PROMPT_SHARE * read + (1 - _PROMPT_SHARE) * write),
        price_label=price.label,
        placement=told(tier),
        adapters=adapters,
    )


def _notes(
    config: ClusterConfig, planned: Sequence[TierPlan], cores: int, nodes: Sequence[Node] | None
) -> Iterator[str]:
    if config.threads > cores:
        yield (
            f"{config.threads} threads compute when all tiers are at their largest, on {cores} "
            "cores: they will wait for each other; lower threads or max_replicas"
        )
    if config.ladders:
        yield (
            "ladders are read when the cluster starts: after a change of a file, start it anew "
            "(`cascade cluster down` and `up`, or `serve deploy` again)"
        )
    if config.gateway.host not in _LOOPBACK:
        yield f"gateway.host {config.gateway.host} is reachable from other machines"
    metrics = config.gateway.metrics
    if metrics is not None and metrics.host not in _LOOPBACK:
        yield (
            f"gateway.metrics.host {metrics.host} shows metrics to other machines, without TLS or "
            "a key"
        )
    prices = [tier.price for tier in config.tiers]
    for lower, tier, below, above in zip(
        config.tiers, config.tiers[1:], prices, prices[1:], strict=False
    ):
        if above.cost_usd(1, 1) < below.cost_usd(1, 1):
            yield (
                f"{tier.name} is cheaper than {lower.name} below it: requests go to the lowest "
                "tier that may answer, so put the cheaper one first"
            )
    if nodes is None:
        for problem in placement_problems(config, [this_machine(max(cores, config.threads))]):
            yield (
                f"{problem}, so `cascade cluster up` cannot start it; of a Ray cluster that runs, "
                "check --ray tells which nodes can"
            )
    yield from _tier_notes(config, planned)


def _tier_notes(config: ClusterConfig, planned: Sequence[TierPlan]) -> Iterator[str]:
    for tier, plan in zip(config.tiers, planned, strict=True):
        if tier.catalogued and not cached(tier.model):
            yield f"{tier.model} is downloaded first: {tier.catalogued.bytes / 1e6:.0f} MB"
        if tier.autoscaling.min_replicas == 0:
            yield f"{tier.name} sleeps when idle; the request that wakes it waits for its model"
        if tier.max_output_tokens >= tier.context_tokens:
            yield (
                f"{tier.name} may write {tier.max_output_tokens} tokens into a context of "
                f"{tier.context_tokens}: long answers leave no room for the prompt"
            )
        if not plan.commercial_use:
            why = (
                "nobody has said it may, of its adapters"
                if tier.files_of_adapters
                else "its licence does not allow it"
                if tier.catalogued
                else "nobody has said it may"
            )
            yield f"{tier.name} answers no commercial request: {why} (commercial_use)"
            continue
        for adapter in plan.adapters:
            if adapter.commercial_use is False:
                yield (
                    f"{tier.name} answers no commercial request with its adapter {adapter.name}: "
                    f"{adapter.licence}, its licence, does not allow it"
                )


def _ladder_problems(config: ClusterConfig) -> Iterator[str]:
    try:
        load_ladders(config, TrustStore(trust_dir()))
    except ConfigError as problem:
        yield str(problem)


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
