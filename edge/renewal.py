"""A running device takes what its channel has now: adapter and policies together, between two
requests, or neither.

The order makes it safe at every instant. New policies are on disk before the adapter is applied,
and the device still holds the old ones in memory; a policy names the adapter that it is for, so in
between, and after a crash, a mismatch escalates. An adapter that cannot be applied, or under which
the model no longer answers, is left, and what ran before goes on with its own policies.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cascade import home
from cascade.errors import BundleError, CascadeError
from cascade.files import write_whole
from cascade.policy import PolicyStore
from cascade.signing import TrustStore
from cascade.wire import ClientProfile
from edge.adapter import Adapter
from edge.delivery import DEFAULT_CHANNEL, Delivered, set_up
from edge.model import OnnxModel

_log = logging.getLogger(__name__)

SelfCheck = Callable[[OnnxModel], bool]
"""Whether the model still answers as it must. Called with the new adapter applied."""


@dataclass(frozen=True, slots=True)
class Renewal:
    """What an update came to.

    Arguments:
        outcome: ``"unchanged"``; ``"applied"``, from the next request on; ``"kept"``, because the
            new adapter failed here; ``"restart"``, because there is a new bundle, which a device
            takes when it is opened again.
        adapter: digest of what runs now.
        refused: digest of the adapter that failed; "" for none.
        why: in a line; "" where all is well.
    """

    outcome: Literal["unchanged", "applied", "kept", "restart"]
    delivered: Delivered
    adapter: str
    refused: str = ""
    why: str = ""


async def renew(
    model: OnnxModel,
    policies: PolicyStore | None,
    profile: ClientProfile,
    *,
    channel: str = DEFAULT_CHANNEL,
    trust: TrustStore | None = None,
    check: SelfCheck | None = None,
) -> Renewal:
    """Install what the channel has, and apply it to a model that runs.

    Arguments:
        policies: from which the model's device takes its policies.
        check: by default a few tokens, of which the probabilities must be numbers.

    Raises:
        RemoteError, UnknownPublisher, Tampered, BundleError, InvalidInput: as ``set_up``; nothing
            has changed then.
    """
    trust = trust or TrustStore(home.trust_dir())
    folder = home.policies_dir() / model.info.base_digest
    before, kept = Delivered.load(), await asyncio.to_thread(_files, folder)
    after = await set_up(profile, channel=channel, trust=trust)
    running = model.info.adapter_digest
    if _bundle_digest(after) != model.info.bundle_digest:
        return Renewal("restart", after, running, why="there is a new bundle")
    if after.adapter == running:
        if policies is not None:
            policies.refresh()
        same = after.artifacts == before.artifacts
        return Renewal("unchanged" if same else "applied", after, running)
    try:
        await asyncio.to_thread(_apply, model, after.adapter, trust, check or answers)
    except (CascadeError, OSError) as problem:
        await asyncio.to_thread(_restore, folder, kept)
        left = dataclasses.replace(
            after, adapter=before.adapter, artifacts=before.artifacts, bundle=before.bundle
        )
        left.save()
        _log.warning("the adapter %s… is not used: %s", after.adapter[:12], problem)
        return Renewal("kept", left, running, after.adapter, str(problem))
    if policies is not None:
        policies.refresh()
    return Renewal("applied", after, after.adapter)


def answers(model: OnnxModel) -> bool:
    """Whether the model writes a few tokens whose probabilities are numbers."""
    return math.isfinite(model.generate("Hello", max_tokens=4).raw_score)


def _apply(model: OnnxModel, digest: str, trust: TrustStore, check: SelfCheck) -> None:
    """Apply an adapter, "" for none; on any failure the one before is applied again."""
    before = model.info.adapter_digest
    loaded = set(model.adapters)
    try:
        if digest and digest not in loaded:
            model.load_adapter(Adapter.open(home.adapters_dir() / digest, trust))
        model.use_adapter(digest)
        if not check(model):
            raise BundleError(f"adapter {digest[:12]}…: the model no longer answers as it must")
    except BaseException:
        model.use_adapter(before)
        if digest in model.adapters and digest not in loaded:
            model.unload_adapter(digest)
        raise
    # The one before stays loaded: going back to it takes no disk.
    for other in model.adapters:
        if other not in (digest, before):
            model.unload_adapter(other)


def _bundle_digest(delivered: Delivered) -> str:
    """Of the bundle that is installed: the first of a release."""
    return delivered.artifacts[0] if delivered.artifacts else ""


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*") if path.is_file()}


def _restore(folder: Path, kept: dict[str, bytes]) -> None:
    """Put policies back as they were. A signature goes first and comes last: a policy without one
    is none."""
    for path in sorted(folder.glob("*"), key=lambda path: path.suffix != ".sig"):
        path.unlink()
    for name in sorted(kept, key=lambda name: name.endswith(".sig")):
        write_whole(folder / name, kept[name])
