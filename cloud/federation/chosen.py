"""The strategy that a configuration asks for, and a server optimiser's state as bytes."""

from __future__ import annotations

import numpy as np
import safetensors.numpy

from cascade.federation import Shapes
from cascade.federation.tensors import rank_of
from cloud.federation.config import AggregationConfig, FederationConfig
from cloud.federation.optimisers import FRESH, Adam, Momentum, Plain, ServerOptimiser, State
from cloud.federation.privacy import PrivateMean
from cloud.federation.robust import Median, MultiKrum, Rule, TrimmedMean, WeightedMean
from cloud.federation.strategies import FfaLora, ProductMean, Strategy


def chosen_strategy(
    config: FederationConfig, adapter: Shapes, noise: np.random.Generator
) -> Strategy:
    """What aggregates: FFA-LoRA where B alone is trained, else the mean of products.

    Arguments:
        adapter: shapes of what is served; the largest rank of it is kept.
        noise: of differential privacy, where the configuration asks for any.
    """
    how = config.aggregation
    if how.noise_multiplier is not None:
        private = PrivateMean(config.plan.clip_norm, how.noise_multiplier, config.goal, noise)
        return FfaLora(private, _optimiser(how))
    if config.plan.trained == "b":
        return FfaLora(_rule(how, config.minimum), _optimiser(how))
    return ProductMean(rank_of(adapter), _krum(how, config.minimum) if how.rule == "krum" else None)


def write_state(state: State) -> bytes:
    """The state as it is stored; empty where there is none."""
    moments = {f"first/{name}": tensor for name, tensor in state.first.items()}
    moments |= {f"second/{name}": tensor for name, tensor in state.second.items()}
    return safetensors.numpy.save(moments) if moments else b""


def read_state(data: bytes) -> State:
    """What ``write_state`` wrote."""
    if not data:
        return FRESH
    moments = safetensors.numpy.load(data)
    first, second = (
        {
            name.removeprefix(prefix): tensor
            for name, tensor in moments.items()
            if name.startswith(prefix)
        }
        for prefix in ("first/", "second/")
    )
    return State(first, second)


def _rule(how: AggregationConfig, minimum: int) -> Rule:
    match how.rule:
        case "trimmed_mean":
            return TrimmedMean(how.trim)
        case "median":
            return Median()
        case "krum":
            return _krum(how, minimum)
        case "mean":
            return WeightedMean()


def _krum(how: AggregationConfig, minimum: int) -> MultiKrum:
    # As many as are surely honest, so that what is kept is a mean and not one device.
    return MultiKrum(how.byzantine, max(1, minimum - how.byzantine - 2))


def _optimiser(how: AggregationConfig) -> ServerOptimiser:
    given = {} if how.rate is None else {"rate": how.rate}
    match how.optimiser:
        case "momentum":
            return Momentum(**given)
        case "adam":
            return Adam(**given)
        case "plain":
            return Plain(**given)
