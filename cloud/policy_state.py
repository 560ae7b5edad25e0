"""What the policies that a registry serves promise, for metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from cascade.policy import Policy
from cloud.registry import Channel, Registry


@dataclass(slots=True)
class PolicyState:
    """Of each channel and task. Where a channel serves several policies of one task, to other
    devices or as a canary, the weakest of their promises counts.

    Arguments:
        risk, delta: the largest, of ``(channel, task)``; only of policies that bound the risk of
            what is kept.
        coverage: the smallest; 0 where no threshold is certified.
        served: number of policies, by channel and ``"true"`` or ``"false"`` for certified.
    """

    risk: dict[tuple[str, ...], float] = field(default_factory=dict)
    delta: dict[tuple[str, ...], float] = field(default_factory=dict)
    coverage: dict[tuple[str, ...], float] = field(default_factory=dict)
    served: dict[tuple[str, ...], float] = field(default_factory=lambda: defaultdict(float))


def policy_state(registry: Registry) -> PolicyState:
    """Read every policy that some channel serves.

    Raises:
        CascadeError, OSError: the registry cannot be read.
    """
    state = PolicyState()
    for channel in registry.channels():
        for policy in _policies(registry, channel):
            _add(state, channel.name, policy)
    return state


def _add(state: PolicyState, channel: str, policy: Policy) -> None:
    place, proof = (channel, policy.task.task_id), policy.certificate
    state.served[channel, "true" if proof else "false"] += 1
    covered = proof.coverage if proof else 0.0
    state.coverage[place] = min(state.coverage.get(place, 1.0), covered)
    for promise in proof.promises if proof else ():
        if proof is not None and promise.kind == "selective_risk":
            state.risk[place] = max(state.risk.get(place, 0.0), promise.alpha)
            state.delta[place] = max(state.delta.get(place, 0.0), proof.delta)


def _policies(registry: Registry, channel: Channel) -> Iterator[Policy]:
    digests = {
        digest for variant in channel.variants for digest in (*variant.stable, *variant.canary)
    }
    for digest in sorted(digests):
        published = registry.artifact(digest)
        if published.artifact.kind == "policy":
            yield Policy.from_bytes(published.manifest)
