"""The cluster: a gateway over a ladder of models, on Ray Serve; and the supervisor of a local one.

Names are loaded when they are used: asking for a status needs neither Ray nor a model runtime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloud.config import (
        ClusterConfig,
        default_config,
        default_yaml,
        json_schema,
        load_config,
    )
    from cloud.control import (
        ClusterStatus,
        TierStatus,
        down,
        reset_prefix_caches,
        status,
        up,
        up_detached,
    )
    from cloud.errors import (
        ConfigError,
        EngineFailed,
        ModelUnusable,
        NoTierAllowed,
        Overloaded,
        TierUnavailable,
    )
    from cloud.plan import Plan, TierPlan, plan_cluster

_HOMES = {
    "ClusterConfig": "cloud.config",
    "ClusterStatus": "cloud.control",
    "ConfigError": "cloud.errors",
    "EngineFailed": "cloud.errors",
    "ModelUnusable": "cloud.errors",
    "NoTierAllowed": "cloud.errors",
    "Overloaded": "cloud.errors",
    "Plan": "cloud.plan",
    "TierPlan": "cloud.plan",
    "TierStatus": "cloud.control",
    "TierUnavailable": "cloud.errors",
    "default_config": "cloud.config",
    "default_yaml": "cloud.config",
    "down": "cloud.control",
    "json_schema": "cloud.config",
    "load_config": "cloud.config",
    "plan_cluster": "cloud.plan",
    "reset_prefix_caches": "cloud.control",
    "status": "cloud.control",
    "up": "cloud.control",
    "up_detached": "cloud.control",
}

__all__ = [
    "ClusterConfig",
    "ClusterStatus",
    "ConfigError",
    "EngineFailed",
    "ModelUnusable",
    "NoTierAllowed",
    "Overloaded",
    "Plan",
    "TierPlan",
    "TierStatus",
    "TierUnavailable",
    "default_config",
    "default_yaml",
    "down",
    "json_schema",
    "load_config",
    "plan_cluster",
    "reset_prefix_caches",
    "status",
    "up",
    "up_detached",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'cloud' has no attribute {name!r}")
    return getattr(import_module(home), name)
