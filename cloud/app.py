"""The configuration as a Ray Serve application: the gateway over one deployment for each tier.

Building starts nothing; ``supervisor`` deploys the result on this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from cascade.ladder import LadderPolicy
from cloud.config import Autoscaling, ClusterConfig, TierConfig
from cloud.federation.deployment import COORDINATOR, FederationCoordinator
from cloud.front_door import GatewayFiles
from cloud.gateway import GATEWAY, REPLACEMENT_S, Gateway, deployment_name
from cloud.placement import actor_options
from cloud.served_adapters import ServedAdapters
from cloud.tier import Tier
from cloud.waiting_room import ongoing_at_replica

# A lost replica is back in two to three seconds; at Serve's default of 10 it takes as many more.
_HEALTH_PERIOD_S: Final = 1.0
_HEALTH_TIMEOUT_S: Final = 30.0
# Of the load that replicas follow; Serve's own defaults.
_LOOK_BACK_S: Final = 30.0
_METRICS_S: Final = 10.0
# Between two looks at replicas that are all full; Serve's own is half a second.
_BACKOFF_S: Final = 0.05
# A model that does not load at once will not load later.
_START_ATTEMPTS: Final = 2


def build_app(
    config: ClusterConfig,
    files: GatewayFiles,
    model_files: Mapping[str, Path],
    ladders: tuple[LadderPolicy, ...] = (),
    adapters: ServedAdapters | None = None,
    *,
    tier_class: type[Tier] = Tier,
) -> Application:
    """The application to deploy.

    Arguments:
        config: what is to run.
        files: what the gateway reads and writes.
        model_files: the model file of each tier that has one, by the tier's name.
        ladders: those that ``config`` names, verified.
        adapters: likewise; needed where a tier has adapters of the registry.
        tier_class: what runs in the replicas of all tiers.
    """
    adapters = adapters or ServedAdapters()
    drain_s, gateways = config.gateway.drain_s, config.gateway.replicas
    tiers = {
        tier.name: _before_vllm(tier, drain_s)
        if tier.vllm is not None
        else _deployment(tier, drain_s, tier_class, gateways).bind(
            tier,
            str(model_files.get(tier.name, "")),
            registry=config.gateway.registry,
            digests=adapters.digests(tier.name),
        )
        for tier in config.tiers
    }
    per_node = config.gateway.replicas_per_node
    gateway = serve.deployment(
        name=GATEWAY,
        num_replicas=gateways,
        max_ongoing_requests=config.gateway.max_concurrent_requests,
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=REPLACEMENT_S + config.gateway.drain_s + 2,
        ray_actor_options={"num_cpus": 0},
    )(Gateway)
    if per_node is not None:
        gateway = gateway.options(max_replicas_per_node=per_node)
    return gateway.bind(config, files, ladders, _coordinator(config), adapters, **tiers)


def _coordinator(config: ClusterConfig) -> Application | None:
    """One replica that leads federated rounds, where there are any."""
    if config.federation is None or config.gateway.registry is None:
        return None
    return coordinator_deployment().bind(config.federation, config.gateway.registry)


def coordinator_deployment() -> serve.Deployment:
    """The coordinator's, to be bound to a configuration and a registry. On any node: where it was
    before, it has left nothing."""
    return serve.deployment(
        name=COORDINATOR,
        num_replicas=1,
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        ray_actor_options={"num_cpus": 0},
    )(FederationCoordinator)


def _deployment(
    tier: TierConfig, drain_s: float, tier_class: type[Tier], gateways: int
) -> serve.Deployment:
    return serve.deployment(
        name=deployment_name(tier.name),
        autoscaling_config=_autoscaling(tier.autoscaling),
        max_ongoing_requests=ongoing_at_replica(tier, gateways),
        # Who waits, waits in the gateways; what they hand over while replicas start must be held.
        max_queued_requests=-1,
        request_router_config=cast(Any, RequestRouterConfig)(max_backoff_s=_BACKOFF_S),
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=drain_s + 2,
        graceful_shutdown_wait_loop_s=0.1,
        max_constructor_retry_count=_START_ATTEMPTS,
        ray_actor_options=actor_options(tier),
    )(tier_class)


def _before_vllm(tier: TierConfig, drain_s: float) -> Application:
    """One thin replica that speaks for the tier, before the deployment of ray.serve.llm, which
    scales by itself."""
    from cloud.engines.vllm import build_backend

    backend = build_backend(tier, name=deployment_name(tier.name), drain_s=drain_s)
    at_once = tier.ongoing_requests * tier.autoscaling.max_replicas
    thin = tier.model_copy(update={"autoscaling": Autoscaling(), "max_ongoing_requests": at_once})
    deployment = _deployment(thin, drain_s, Tier, 1).options(ray_actor_options={"num_cpus": 0})
    return deployment.bind(tier, "", backend)


def _autoscaling(wanted: Autoscaling) -> AutoscalingConfig:
    # A mean over much longer than the shorter delay would itself delay.
    look_back_s = min(_LOOK_BACK_S, max(1.0, min(wanted.upscale_delay_s, wanted.downscale_delay_s)))
    return AutoscalingConfig(
        min_replicas=wanted.min_replicas,
        max_replicas=wanted.max_replicas,
        target_ongoing_requests=wanted.target_ongoing_requests,
        upscale_delay_s=wanted.upscale_delay_s,
        downscale_delay_s=wanted.downscale_delay_s,
        look_back_period_s=look_back_s,
        metrics_interval_s=min(_METRICS_S, look_back_s),
    )
