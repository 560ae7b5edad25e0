"""What a device has learned, on its way to the cluster: an update, which is sent until there is a
receipt for it, or the phases of a round under masks, of which the masked update is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np

from cascade.clock import Clock
from cascade.errors import InvalidInput, RemoteError
from cascade.federation import UpdateStatement, sign_update, statements
from cascade.federation.tensors import Doubles
from cascade.federation.terms import Lease, PhaseMessage, RetryWindow, UploadHeader
from cascade.files import sha256_bytes
from edge.federation import masking
from edge.federation.contact import Contact
from edge.federation.masking import Masking
from edge.federation.state import DeviceFolder, DeviceState, PendingUpload
from edge.federation.step import UNSAID_WAIT_S, Pace, Step
from edge.federation.timer import Timer

_KEEP: Final = frozenset(
    {
        "UNAVAILABLE",
        "RESOURCE_EXHAUSTED",
        "DEADLINE_EXCEEDED",
        "CANCELLED",
        "INTERNAL",
        "UNKNOWN",
        "UNAUTHENTICATED",  # a token or key that is renewed in time
    }
)
"""Statuses after which an update is sent again, until its lease expires; after any other it will
never be taken."""
_SPREAD: Final = 0.25


class Sending:
    """Sends for one device. What must outlive a crash is on disk before it is said.

    Arguments:
        cohort: the least sum that this device is part of under masks.
        rounding: randomness of an update's rounding, fresh for each.
    """

    def __init__(
        self,
        folder: DeviceFolder,
        contact: Contact,
        clock: Clock,
        pace: Pace,
        *,
        cohort: int,
        rounding: Callable[[], np.random.Generator],
    ) -> None:
        self._folder, self._contact, self._clock, self._pace = folder, contact, clock, pace
        self._cohort, self._rounding = cohort, rounding

    def queue(
        self, state: DeviceState, lease: Lease, payload: bytes, examples: int, expires: Timer
    ) -> DeviceState:
        """Put an update on disk, to be sent until its lease expires."""
        pending = PendingUpload(self._header(lease, payload, examples), expires)
        self._folder.save_payload(pending.header, payload)
        state = replace(state, request_id="", training=None, pending=pending)
        self._folder.save(state)
        return state

    def begin_masking(
        self, state: DeviceState, lease: Lease, update: Doubles, expires: Timer
    ) -> DeviceState:
        """Put on disk what is to be masked, and the keys by which this device takes part."""
        turn = masking.ready(
            lease_id=lease.lease_id,
            round_number=lease.round,
            base_digest=lease.base_digest,
            adapter_version=lease.adapter_version,
            plan=lease.plan,
            least=self._cohort,
            vector_sha256=self._folder.save_vector(update),
            expires=expires,
        )
        state = replace(state, request_id="", training=None, masking=turn)
        self._folder.save(state)
        return state

    async def go_on(self, state: DeviceState, *, fresh: bool = False) -> Step:
        """Say what is due, and go on as far as the others have come; some is.

        Arguments:
            fresh: nothing of the update was ever sent.
        """
        if state.pending is not None:
            return await self._send(state, state.pending, fresh=fresh)
        if state.masking is not None:
            return await self._mask(state, state.masking)
        raise ValueError("nothing is unsent")

    async def _mask(self, state: DeviceState, turn: Masking) -> Step:
        """Say what is due in the round under masks, and go on as far as the others have come."""
        try:
            while turn.expires.left_s(self._clock.read()) > 0:
                reply = await self._contact.service().exchange(self._said(turn))
                now = Timer(reply.expires_in_s, self._clock.read())
                turn = replace(turn, expires=now)
                if not reply.complete:
                    waiting = replace(state, masking=turn)
                    why = f"the others, in the phase {turn.phase}"
                    return self._pace.later(waiting, "masking", reply.retry, why)
                if turn.phase == "unmask" or (turn.phase == "survivors" and not reply.result):
                    return self._pace.later(replace(state, masking=None), "sent", reply.retry)
                if turn.phase == "share_keys":
                    return await self._send_masked(state, turn, reply.result)
                onwards = (
                    turn.after_roster if turn.phase == "advertise_keys" else turn.after_survivors
                )
                turn = onwards(reply.result)
                # Before it is said: no other message may ever be said in its place.
                state = replace(state, masking=turn)
                self._folder.save(state)
        except RemoteError as problem:
            return self._unsent(state, problem)
        except InvalidInput as problem:
            self._folder.save(replace(state, masking=None))
            return Step("failed", 0.0, str(problem))
        self._folder.save(replace(state, masking=None))
        return Step("failed", 0.0, "its lease has expired")

    async def _send_masked(self, state: DeviceState, turn: Masking, delivered: bytes) -> Step:
        update = self._folder.vector(turn.vector_sha256)
        if update is None:
            self._folder.save(replace(state, masking=None))
            return Step("failed", 0.0, "the update on disk is damaged")
        turn, payload = turn.after_delivery(delivered, update, self._rounding())
        # Devices count alike under masks: how many examples it had is nobody's business.
        pending = PendingUpload(self._header(turn, payload, 1), turn.expires)
        self._folder.save_payload(pending.header, payload)
        state = replace(state, pending=pending, masking=turn)
        self._folder.save(state)
        return await self._send(state, pending, fresh=True)

    def _said(self, turn: Masking) -> PhaseMessage:
        statement = statements.exchange(
            self._contact.device_id, turn.lease_id, turn.phase, turn.message
        )
        return PhaseMessage(
            self._contact.device_id,
            turn.lease_id,
            turn.phase,
            turn.message,
            self._contact.key.sign_raw(statement),
        )

    async def _send(
        self, state: DeviceState, pending: PendingUpload, *, fresh: bool = False
    ) -> Step:
        header = pending.header
        payload = self._folder.payload(header)
        if payload is None or pending.expires.left_s(self._clock.read()) <= 0:
            why = "the update on disk is damaged" if payload is None else "its lease has expired"
            self._folder.save(replace(state, pending=None, masking=None))
            return Step("failed", 0.0, why)
        service = self._contact.service()
        try:
            if not fresh:
                kept = await service.upload_state(header.device_id, header.lease_id)
                if kept.receipt is not None:
                    done = replace(state, pending=None)
                    if done.masking is not None:
                        return await self._mask(done, done.masking)
                    return self._pace.later(done, "sent", kept.retry, "its receipt had been lost")
                if kept.payload_sha256 == header.payload_sha256:
                    header = replace(header, offset=kept.offset)
            reply = await service.upload(header, payload)
        except RemoteError as problem:
            return self._unsent(state, problem)
        done = replace(state, pending=None)
        # A masked update is not yet part of a sum.
        return self._pace.later(done, "sent" if done.masking is None else "masking", reply.retry)

    def _unsent(self, state: DeviceState, problem: RemoteError) -> Step:
        keep = problem.status in _KEEP
        wait_s = problem.retry_after_s or UNSAID_WAIT_S
        window = RetryWindow(wait_s, wait_s * (1 + _SPREAD))
        left = state if keep else replace(state, pending=None, masking=None)
        return self._pace.later(left, "unsent" if keep else "failed", window, str(problem))

    def _header(self, of: Lease | Masking, payload: bytes, examples: int) -> UploadHeader:
        digest = sha256_bytes(payload)
        statement = UpdateStatement(of.lease_id, of.round, of.base_digest, digest)
        return UploadHeader(
            device_id=self._contact.device_id,
            lease_id=of.lease_id,
            payload_bytes=len(payload),
            payload_sha256=digest,
            offset=0,
            base_digest=of.base_digest,
            adapter_version=of.adapter_version,
            examples=examples,
            signature=sign_update(self._contact.key, statement),
        )
