"""Which of Ray's nodes a tier's replicas may run on: what that asks of a node, and who has it.

Pure but for ``ray_nodes``. Resources are counted, labels are compared; both are named by whoever
starts the nodes (``ray start --resources … --labels …``). The rules are Ray's own (2.60): a replica
runs on a node that has all that it asks for, and a label that must not have a value may be missing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cascade.errors import ClusterError
from cloud.config import ClusterConfig, TierConfig

_CPU: Final = "CPU"
_SHOWN: Final = 5
_CONNECT_S: Final = 20


@dataclass(frozen=True, slots=True)
class Node:
    """A node of Ray.

    Arguments:
        resources: all that it has, what is in use included.
    """

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]


def actor_options(tier: TierConfig) -> dict[str, object]:
    """What Ray Serve is told about where replicas run."""
    wanted = tier.placement
    options: dict[str, object] = {"num_cpus": tier.threads}
    if wanted.resources:
        options["resources"] = dict(wanted.resources)
    if wanted.labels:
        options["label_selector"] = dict(wanted.labels)
    return options


def told(tier: TierConfig) -> str:
    """What a node has to have, in words; empty where it is CPUs alone."""
    wanted = tier.placement
    return ", ".join(
        [
            *(f"{name} {amount:g}" for name, amount in wanted.resources.items()),
            *(f"{name}={value}" for name, value in wanted.labels.items()),
        ]
    )


def placement_problems(config: ClusterConfig, nodes: Sequence[Node]) -> Iterator[str]:
    """A line for each tier that no node could run."""
    for tier in config.tiers:
        # Of vLLM's deployment only the thin replica before it is placed here.
        if tier.vllm is not None:
            continue
        lacking = [(node.name, _lacks(tier, node)) for node in nodes]
        if any(lack is None for _, lack in lacking):
            continue
        wanted = ", ".join(filter(None, (f"{_CPU} {tier.threads}", told(tier))))
        why = "; ".join(f"{name} has {lack}" for name, lack in lacking[:_SHOWN])
        more = f"; and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
        yield f"tier {tier.name}: no node has {wanted} ({why or 'there is none'}{more})"


def this_machine(cpus: int) -> Node:
    """The one node that ``cascade cluster up`` starts."""
    return Node("this machine", {_CPU: float(cpus)}, {})


def ray_nodes(address: str) -> tuple[Node, ...]:
    """The nodes of a Ray cluster that runs.

    Arguments:
        address: ``host:port`` of its head, or ``auto`` for the one on this machine.

    Raises:
        ClusterError: there is none, or it does not let this machine in.
    """
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as problem:
        first = next(iter(str(problem).splitlines()), type(problem).__name__)
        raise ClusterError(f"no Ray cluster at {address}: {first}") from None
    try:
        return tuple(
            Node(str(node["NodeID"])[:8], node["Resources"], node["Labels"])
            for node in ray.nodes()
            if node["Alive"]
        )
    finally:
        ray.shutdown()


def _lacks(tier: TierConfig, node: Node) -> str | None:
    """The first thing that keeps ``tier`` off ``node``; ``None`` where it could run there."""
    for name, amount in {_CPU: tier.threads, **tier.placement.resources}.items():
        there = node.resources.get(name, 0.0)
        if there < amount:
            return f"{name} {there:g}"
    for name, selector in tier.placement.labels.items():
        value = node.labels.get(name)
        if not _keeps(selector, value):
            return f"no {name}" if value is None else f"{name}={value}"
    return None


def _keeps(selector: str, value: str | None) -> bool:
    """``a``, ``!a``, ``in(a,b)`` or ``!in(a,b)``."""
    plain = selector.removeprefix("!")
    listed = re.fullmatch(r"in\((.*)\)", plain)
    values = [each.strip() for each in listed[1].split(",")] if listed else [plain]
    return (value in values) != selector.startswith("!")
