"""A running device takes what its channel has now: adapter and policies together, between two
requests, or neither.

The order makes it safe at every instant. New policies are on disk before the adapter is applied,
and the device still holds the old ones in memory; a policy names the adapter that it is for, so in
between, and after a crash, a mismatch escalates. An adapter that cannot be applied, under which
the model no longer answers, or that ends the process (``edge.trial``), is left, and what ran before
goes on with its own policies.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cascade import home
from cascade.errors import BundleError
from cascade.policy import PolicyStore
from cascade.signing import TrustStore
from cascade.wire import ClientProfile
from edge.adapter import Adapter
from edge.delivered import DEFAULT_CHANNEL, Delivered, alone
from edge.delivery import install
from edge.model import OnnxModel
from edge.trial import AdapterRefused, Trial, passed, settled

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
    trust, running = trust or TrustStore(home.trust_dir()), model.info.adapter_digest
    with alone():
        before = Delivered.load()
        try:
            after = await install(profile, channel=channel, trust=trust)
        except AdapterRefused as problem:
            return Renewal("kept", Delivered.load(), running, problem.adapter, str(problem))
        if _bundle_digest(after) != model.info.bundle_digest:
            return Renewal("restart", after, running, why="there is a new bundle")
        if after.adapter != running:
            # In one thread from its first try to its end: an update that is given up half-way
            # still ends as one or the other.
            why = await asyncio.to_thread(_try, model, after.adapter, trust, check or answers)
            if why:
                return Renewal("kept", Delivered.load(), running, after.adapter, why)
        if policies is not None:
            policies.refresh()
        same = after.adapter == running and after.artifacts == before.artifacts
        return Renewal("unchanged" if same else "applied", after, after.adapter)


def start(model: OnnxModel, delivered: Delivered, trust: TrustStore) -> None:
    """Apply the adapter that is installed to a model that was just loaded. One that was not seen to
    answer here yet has to; where it does not, or ended the processes that tried it, what was
    installed before it is installed again."""
    try:
        with alone():
            if Trial.load() is not None:
                trial = settled()
                if trial is not None and not _try(model, trial.adapter, trust, answers):
                    return
                delivered = Delivered.load()
    except (BundleError, OSError):  # another process is at it, or no try can be noted
        trial = Trial.load()
        if trial is not None and trial.back is not None:
            delivered = trial.back
    if delivered.adapter:
        try:
            _apply(model, delivered.adapter, trust)
        except Exception as problem:
            # Without it the model still answers, and no policy of the adapter's applies.
            _log.warning("the adapter %s… is not used: %s", delivered.adapter[:12], problem)


def _try(model: OnnxModel, digest: str, trust: TrustStore, check: SelfCheck) -> str:
    """Apply an adapter that was just installed, "" for none; where that fails, install and apply
    what was there before. Returns why it failed; "" where it did not."""
    trial = Trial.load()
    trial = trial.tried() if trial is not None and trial.adapter == digest else None
    try:
        _apply(model, digest, trust, check)
    except KeyboardInterrupt:
        if trial is not None:
            dataclasses.replace(trial, tries=trial.tries - 1).save()  # which says nothing of it
        raise
    except Exception as problem:  # the runtime's own errors, too
        if trial is not None:
            trial.go_back()
        _log.warning("the adapter %s… is not used: %s", digest[:12], problem)
        return str(problem) or type(problem).__name__
    passed()
    return ""


def answers(model: OnnxModel) -> bool:
    """Whether the model writes a few tokens whose probabilities are numbers."""
    return math.isfinite(model.generate("Hello", max_tokens=4).raw_score)


def _apply(
    model: OnnxModel, digest: str, trust: TrustStore, check: SelfCheck = lambda model: True
) -> None:
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
