"""What a hostile device sends to the cluster.

A hostile device runs the honest code up to the moment of sending, so that what it signs is signed
with an enrolled key under a lease of its own. Only what is sent, or learned from, differs.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import numpy as np

from cascade.errors import RemoteError
from cascade.federation import (
    UpdateStatement,
    clip_to_norm,
    decode,
    encode,
    encoded_size,
    flatten,
    shapes_of,
    sign_update,
)
from cascade.federation.plan import RoundPlan
from cascade.federation.terms import CheckIn, CheckInReply, Committed, UploadHeader
from cascade.files import sha256_bytes
from cascade.signing import SigningKey
from cascade.wire import ClientProfile
from cloud.fleet.connection import Connection
from cloud.fleet.plan import AttackKind
from edge.federation import NoGain, StartingPoint, Trained, Trainer

_TIMES: Final = 10.0


class HostileConnection(Connection):
    """One that changes what is sent.

    Arguments:
        key: of the device.
    """

    def __init__(self, profile: ClientProfile, kind: AttackKind, key: SigningKey) -> None:
        super().__init__(profile)
        self._kind = kind
        self._key = key
        self.leased: tuple[int, bytes] | None = None
        """Round and plan of its last lease."""
        self.sent: Trained | None = None
        """What the honest code wants to send; set by ``HostileTrainer``."""

    async def check_in(self, check_in: CheckIn) -> CheckInReply:
        """See ``GrpcFederation``."""
        reply = await super().check_in(check_in)
        if reply.lease is not None:
            self.leased = reply.lease.round, reply.lease.plan
        return reply

    async def upload(
        self, header: UploadHeader, payload: bytes, *, quiet_s: float = 120.0
    ) -> Committed:
        """See ``GrpcFederation``."""
        if self.leased is None or self.sent is None:
            return await super().upload(header, payload, quiet_s=quiet_s)
        plan = RoundPlan.from_bytes(self.leased[1])
        header, payload = self._changed(header, payload, plan, self.sent)
        committed = await super().upload(header, payload, quiet_s=quiet_s)
        if self._kind == "replay":
            with suppress(RemoteError):
                await super().upload(header, payload, quiet_s=quiet_s)
        return committed

    def _changed(
        self, header: UploadHeader, payload: bytes, plan: RoundPlan, sent: Trained
    ) -> tuple[UploadHeader, bytes]:
        shapes = shapes_of(sent.change)
        rng = np.random.default_rng(0)
        size = len(payload) if plan.masked else encoded_size(shapes, plan.bits)
        payload, counts = payload[:size], payload[size:]
        match self._kind:
            case "sign-flip" | "scale":
                times = -_TIMES if self._kind == "sign-flip" else _TIMES
                if plan.masked is not None:
                    return self._signed(header, _more(payload, plan, sent, times - 1))
                change = decode(payload, shapes)
                scaled = {name: each * np.float32(times) for name, each in change.items()}
                return self._signed(header, encode(scaled, plan.bits, rng) + counts)
            case "nan":
                name = min(shapes)
                # Behind the file's head and the head of the first tensor is a scale, or a value.
                at = 8 + 2 + len(name.encode()) + 4 * len(shapes[name])
                broken = payload[:at] + struct.pack("<f", float("nan")) + payload[at + 4 :]
                return self._signed(header, broken + counts)
            case "rank-bomb":
                if plan.masked is not None:
                    return self._signed(header, payload + payload)
                doubled = {
                    name: np.concatenate([each, each], int(np.argmin(each.shape)))
                    for name, each in decode(payload, shapes).items()
                }
                return self._signed(header, encode(doubled, plan.bits, rng) + counts)
            case "wrong-base":
                return self._signed(replace(header, base_digest="0" * 64), payload + counts)
            case "stale":
                older = max(1, header.adapter_version - 1)
                # Of the first version there is no older one: it claims one that will be.
                version = older if older != header.adapter_version else older + 1
                return replace(header, adapter_version=version), payload + counts
            case "label-flip" | "replay":
                return header, payload + counts

    def _signed(self, header: UploadHeader, payload: bytes) -> tuple[UploadHeader, bytes]:
        assert self.leased is not None
        digest = sha256_bytes(payload)
        statement = UpdateStatement(header.lease_id, self.leased[0], header.base_digest, digest)
        changed = replace(
            header,
            payload_bytes=len(payload),
            payload_sha256=digest,
            offset=0,
            signature=sign_update(self._key, statement),
        )
        return changed, payload


def _more(payload: bytes, plan: RoundPlan, sent: Trained, times: float) -> bytes:
    """A masked update with so many times more of what is behind the masks: who knows its own update
    need not know the masks to add to it."""
    assert plan.masked is not None
    fixed = plan.masked.fixed(plan.clip_norm)
    vector = flatten(clip_to_norm(sent.change, plan.clip_norm))
    more = fixed.integers(fixed.encode(vector, np.random.default_rng(0))) * int(times)
    words = fixed.from_bytes(payload, vector.size) + more.astype(fixed.dtype)
    return fixed.to_bytes(words)


class HostileTrainer:
    """A trainer that always has something to send.

    Arguments:
        honest: is tried first.
        connection: is told what there is to send.
        seed: of what is sent where nothing was learned.
    """

    def __init__(self, honest: Trainer, connection: HostileConnection, seed: list[int]) -> None:
        self._honest = honest
        self._connection = connection
        self._rng = np.random.default_rng(seed)

    def __call__(self, plan: RoundPlan, start: StartingPoint) -> Trained:
        """See ``edge.federation.Trainer``."""
        try:
            trained = self._honest(plan, start)
        except NoGain:
            shapes = plan.shapes(shapes_of(start.tensors))
            drawn = {
                name: self._rng.normal(size=shapes[name]).astype(np.float32)
                for name in sorted(shapes)
            }
            trained = Trained(clip_to_norm(drawn, plan.clip_norm), plan.max_examples)
        self._connection.sent = trained
        return trained

    def memory(self, *, unsent: bool) -> dict[str, Any]:
        """What another process needs in order to lie on, as JSON.

        Arguments:
            unsent: whether an update waits to be sent.
        """
        kept: dict[str, Any] = {"drawn": self._rng.bit_generator.state}
        if unsent and self._connection.sent is not None and self._connection.leased is not None:
            sent, (number, plan) = self._connection.sent, self._connection.leased
            kept["lease"] = [number, plan.decode()]
            kept["change"] = {name: each.tolist() for name, each in sent.change.items()}
            kept["examples"], kept["row_counts"] = sent.examples, sent.row_counts.tolist()
        return kept

    def recall(self, kept: Mapping[str, Any]) -> None:
        """Go on from what ``memory`` gave."""
        self._rng.bit_generator.state = kept["drawn"]
        if "lease" in kept:
            number, plan = kept["lease"]
            self._connection.leased = number, plan.encode()
            self._connection.sent = Trained(
                {name: np.array(each, np.float32) for name, each in kept["change"].items()},
                kept["examples"],
                np.array(kept["row_counts"], np.int64),
            )
