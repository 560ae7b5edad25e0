"""What a device makes of a lease before it trains: whether it carries the plan out at all, and the
verified adapter that it starts from."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

from cascade.errors import CascadeError, InvalidInput
from cascade.federation import Shapes, shapes_of
from cascade.federation.plan import RoundPlan
from cascade.federation.terms import AbortReason, Lease
from cascade.files import sha256_bytes, write_whole
from cascade.signing import TrustStore
from edge.adapter import Adapter, AdapterManifest
from edge.federation.limits import Limits
from edge.federation.trainer import StartingPoint
from edge.training.allowance import TrainingAllowance

if TYPE_CHECKING:  # gRPC takes a quarter of a second
    from cascade.wire import GrpcArtifacts


class Declined(CascadeError):
    """This device does not carry a lease out; ``reason`` is what the coordinator is told, and
    ``retry_s`` for how long it would decline the next one, too."""

    def __init__(self, reason: AbortReason, why: str, retry_s: float = 0.0) -> None:
        super().__init__(why)
        self.reason = reason
        self.retry_s = retry_s


def accepted_plan(
    lease: Lease,
    *,
    coordinator_id: str,
    base_digest: str,
    least_version: int,
    limits: Limits,
    allowance: TrainingAllowance | None,
    joined: bool = False,
) -> RoundPlan:
    """The lease's plan, if this device carries it out.

    Arguments:
        coordinator_id: of the one that this device is enrolled with.
        base_digest: of the bundle that runs here.
        least_version: of the adapter; an older one than this device has seen is a way back.
        joined: it was accepted before, and a part of what it asks for is spent.

    Raises:
        Declined: it does not.
    """
    if not lease.lease_id.startswith(f"{coordinator_id}."):
        raise Declined(AbortReason.UNFIT, "the lease is of another coordinator")
    if lease.base_digest != base_digest:
        raise Declined(AbortReason.UNFIT, "the lease is for another base")
    if lease.adapter_version < least_version:
        raise Declined(
            AbortReason.UNFIT,
            f"the lease starts from version {lease.adapter_version}, and this device has seen "
            f"{least_version}",
        )
    plan = RoundPlan.from_bytes(lease.plan)
    if lease.payload_format != plan.payload_format:
        raise Declined(AbortReason.UNFIT, f"{lease.payload_format!r} is not known here")
    if problem := limits.exceeded_by(plan, 0):
        raise Declined(AbortReason.OVER_BUDGET, problem)
    if allowance is not None and not joined:
        permission = allowance.may_train(participate=True)
        if not permission.covers(seconds=plan.max_seconds, steps=plan.max_steps):
            raise Declined(
                AbortReason.OVER_BUDGET,
                f"the plan asks for {plan.max_seconds:g} seconds and {plan.max_steps} steps, "
                f"{permission.seconds:g} and {permission.steps} are left",
                retry_s=permission.day_s if permission.allowed else permission.retry_s,
            )
    return plan


def of_own_rank(plan: RoundPlan, start: StartingPoint, limits: Limits) -> StartingPoint:
    """What a device of this rank trains from.

    Raises:
        Declined: the plan wants the whole rank.
    """
    rank = limits.rank
    if rank is None or rank >= start.rank:
        return start
    if not plan.any_rank:
        raise Declined(
            AbortReason.OVER_BUDGET,
            f"the plan trains rank {start.rank} and no less, this device gives {rank}",
        )
    return start.at_rank(rank)


def update_shapes(lease: Lease, plan: RoundPlan, start: StartingPoint, limits: Limits) -> Shapes:
    """Shapes of the tensors that the plan trains.

    Raises:
        Declined: an update of them is larger than the device or the lease allows.
    """
    given = shapes_of(start.tensors)
    size = plan.payload_bytes(given)
    if problem := limits.exceeded_by(plan, max(size, 1)):
        raise Declined(AbortReason.OVER_BUDGET, problem)
    if size > lease.max_payload_bytes:
        raise Declined(AbortReason.UNFIT, "its update is longer than the lease allows")
    return plan.shapes(given)


async def starting_point(
    lease: Lease,
    *,
    base_digest: str,
    folder: Path,
    trust: TrustStore,
    artifacts: GrpcArtifacts,
) -> StartingPoint:
    """The lease's adapter, fetched where it is not here yet, and verified.

    Arguments:
        folder: of adapters, each under its digest.
        artifacts: where it is fetched from.

    Raises:
        CascadeError, OSError: it must not be used, or cannot be had.
    """
    if sha256_bytes(lease.adapter_manifest) != lease.adapter_digest:
        raise InvalidInput("lease.adapter_manifest", "is not the one of its digest")
    manifest = AdapterManifest.from_bytes(lease.adapter_manifest)
    if manifest.base_digest != base_digest or manifest.version != lease.adapter_version:
        raise InvalidInput("lease.adapter_manifest", "is for another base or version")
    what = f"adapter {lease.adapter_digest[:12]}…"
    signature = trust.signature_file(lease.adapter_manifest, lease.adapter_signature, what=what)
    here = folder / lease.adapter_digest
    weights = here / "adapter.safetensors"
    if not weights.is_file():
        await _fetch(artifacts, manifest.weights_sha256, weights)
    write_whole(here / "adapter.json", lease.adapter_manifest)
    write_whole(here / "adapter.sig", signature)
    try:
        adapter = await asyncio.to_thread(Adapter.open, here, trust)
    except CascadeError:
        weights.unlink(missing_ok=True)  # damaged here: the next lease fetches it again
        raise
    tensors = {}
    for module, pair in adapter.pairs.items():
        tensors[f"{module}.a"], tensors[f"{module}.b"] = pair.a, pair.b
    if adapter.head is not None:
        tensors |= adapter.head.tensors()
    return StartingPoint(base_digest, adapter, tensors)


async def _fetch(artifacts: GrpcArtifacts, sha256: str, path: Path) -> None:
    content = bytearray()
    async with aclosing(artifacts.download(sha256)) as pieces:
        async for piece in pieces:
            content += piece.data
    write_whole(path, bytes(content))
