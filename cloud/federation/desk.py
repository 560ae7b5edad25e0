"""The front desk: what answers devices. A ``FederationSource`` over the store, which every gateway
has its own of; nothing that counts is kept in memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import random
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Final

from cascade.errors import CascadeError, InvalidInput
from cascade.federation import Expected, UpdateStatement, statements
from cascade.federation.payload import check_payload
from cascade.federation.plan import RoundPlan
from cascade.federation.terms import (
    Abort,
    Challenge,
    CheckIn,
    CheckInReply,
    Committed,
    Enrolled,
    Enrolment,
    Lease,
    MetricsReport,
    PhaseMessage,
    PhaseReply,
    RetryWindow,
    UploadHeader,
    UploadState,
)
from cascade.files import sha256_bytes
from cascade.signing import PublicKey
from cascade.wire import caller
from cloud.errors import Overloaded
from cloud.federation import leases, rounds
from cloud.federation.adapters import Adapters, StartingAdapter
from cloud.federation.config import FederationConfig
from cloud.federation.database import Database, Step, T, Transaction
from cloud.federation.figures import RoundFigures, figures
from cloud.federation.masked_desk import MaskedDesk, window
from cloud.federation.pace import Pace
from cloud.federation.refusals import Reason, Refused, count
from cloud.federation.schema import identity, migrate
from cloud.federation.seams import AnyDevice, Attestor, attestor_named
from cloud.registry import Registry

_CHALLENGE_S: Final = 300.0
_REMEMBERED: Final = 50_000
_REMEMBERED_PLANS: Final = 64
_PIECE_BYTES: Final = 1 << 20
"""Kept when as many have come, and when a stream breaks: what a gateway takes with it when it dies
is sent again."""
_OFF_THE_LOOP_BYTES: Final = 1 << 17
"""Payloads from this size on are checked in a thread: a smaller one takes less than the hop."""


def open_desk(config: FederationConfig, registry: Registry) -> Desk:
    """The desk of a gateway, over a store of its own.

    Raises:
        InvalidInput: the configured attestor cannot be had.
    """
    attestor = None if config.attestor is None else attestor_named(config.attestor)
    return Desk(Database(config.store_url), Adapters(registry), config, attestor=attestor)


class Desk:
    """Answers devices.

    Arguments:
        adapters: where leases' adapters are read.
        attestor: says which devices may enrol.
        now: seconds since 1970.

    ``uploading_bytes`` is what the uploads under way will hold at most.
    """

    def __init__(
        self,
        database: Database,
        adapters: Adapters,
        config: FederationConfig,
        *,
        attestor: Attestor | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._adapters = adapters
        self._config = config
        self._attestor = attestor or AnyDevice()
        self._now = now
        self._pace = Pace(config.retry_s, config.checkins_per_s)
        self._random = random.Random()
        self._identity: tuple[str, bytes] | None = None
        self._keys: dict[str, PublicKey] = {}
        self._leases: dict[str, tuple[leases.StoredLease, rounds.Round]] = {}
        self._plans: dict[tuple[str, str], _Expected] = {}
        self._masked = MaskedDesk(database, now)
        self.uploading_bytes = 0
        self._carried_on: set[asyncio.Task[object]] = set()

    def close(self) -> None:
        """Close the store."""
        self._database.close()

    async def challenge(self, public_key: bytes) -> Challenge:
        """See ``FederationSource``. Nothing is kept: the challenge carries its own proof."""
        _, secret = await self._who()
        ends = int(self._now() + _CHALLENGE_S).to_bytes(8, "big")
        nonce = secrets.token_bytes(16)
        tag = _tag(secret, nonce, ends, public_key)
        return Challenge(nonce + ends + tag, _CHALLENGE_S, self._pace.window())

    async def enrol(self, enrolment: Enrolment) -> Enrolled:
        """See ``FederationSource``."""
        coordinator_id, secret = await self._who()
        sent, key = enrolment.challenge, PublicKey(enrolment.public_key)
        nonce, ends, tag = sent[:16], sent[16:24], sent[24:]
        fresh = int.from_bytes(ends, "big") >= self._now()
        ours = hmac.compare_digest(tag, _tag(secret, nonce, ends, key.raw))
        proof = statements.enrolment(sent)
        if not (fresh and ours and key.signed(proof, enrolment.signature)):
            raise await self._refusal(Reason.BAD_PROOF)
        statement = enrolment.attestation
        if not await self._attestor.accepts(key.raw, statement):
            raise await self._refusal(Reason.NOT_ATTESTED)
        device_id, attested = key.key_id, "" if statement is None else statement.kind
        now, who, most = self._now(), caller(), self._config.enrolments_per_hour
        await self._database.do(
            lambda tx: leases.enrol(
                tx, device_id, key.raw, attested, now, caller=who, per_hour=most
            )
        )
        return Enrolled(device_id, coordinator_id, RetryWindow(0.0, self._config.retry_s[0]))

    async def check_in(self, check_in: CheckIn) -> CheckInReply:
        """See ``FederationSource``."""
        coordinator_id, _ = await self._who()
        statement = statements.check_in(
            check_in.device_id,
            check_in.request_id,
            check_in.base_digest,
            check_in.adapter_digest,
        )
        await self._signed(check_in.device_id, statement, check_in.signature)
        now = self._now()
        outcome = await self._database.do(
            lambda tx: leases.check_in(tx, check_in, self._config, coordinator_id, now)
        )
        if isinstance(outcome, leases.NotNow):
            return CheckInReply(None, self._pace.window(outcome.wait_s), outcome.reason)
        lease, of = outcome.lease, outcome.round
        self._remember(lease, of)
        adapter = await self._adapter(of.adapter_digest)
        plan = (await self._expected(of)).plan
        return CheckInReply(
            Lease(
                lease_id=lease.lease_id,
                round=lease.round,
                base_digest=of.base_digest,
                adapter_digest=of.adapter_digest,
                adapter_version=of.adapter_version,
                adapter_manifest=adapter.data,
                adapter_signature=adapter.signature,
                plan=of.plan.encode(),
                payload_format=plan.payload_format,
                max_payload_bytes=self._config.max_payload_bytes,
                expires_in_s=max(0.0, lease.expires_at - now),
                expires_at_s=lease.expires_at,
            ),
            self._pace.window(self._config.min_separation_s),
        )

    async def upload(self, header: UploadHeader) -> _Upload:
        """See ``FederationSource``. What can be refused before the first byte is."""
        coordinator_id, _ = await self._who()
        key = await self._key(header.device_id)
        if not header.lease_id.startswith(f"{coordinator_id}."):
            raise await self._refusal(Reason.FOREIGN_LEASE)
        lease, of = await self._usable(header)
        if header.payload_bytes > self._config.max_payload_bytes:
            raise await self._refusal(Reason.OVERSIZED)
        if header.base_digest != of.base_digest:
            raise await self._refusal(Reason.WRONG_BASE)
        if header.adapter_version != lease.adapter_version:
            raise await self._refusal(Reason.WRONG_ADAPTER)
        said = UpdateStatement(
            header.lease_id, lease.round, header.base_digest, header.payload_sha256
        )
        if not key.signed(said.to_bytes(), header.signature):
            raise await self._refusal(Reason.BAD_SIGNATURE)
        expected = await self._expected(of)
        if header.payload_bytes not in expected.updates:
            raise await self._refusal(Reason.WRONG_SHAPE)
        if self.uploading_bytes + header.payload_bytes > self._config.upload_memory_bytes:
            raise Overloaded("the cluster takes as many updates as it may now", self._later())
        upload = _Upload(self, header, expected)  # from here on its memory is taken
        if header.offset:
            try:
                upload.go_on_after(await self._begun(header))
            except BaseException:
                self.reserve(-header.payload_bytes)
                raise
        return upload

    async def upload_state(self, device_id: str, lease_id: str) -> UploadState:
        """See ``FederationSource``."""
        now = self._now()

        def look(tx: Transaction) -> UploadState:
            receipt = leases.receipt(tx, lease_id)
            found = leases.lease(tx, lease_id)
            if found is None or (receipt is None and found.device != device_id):
                count(tx, f"refused.{Reason.UNKNOWN_LEASE}")
                raise Refused(Reason.UNKNOWN_LEASE)
            if found.device != device_id:
                count(tx, f"refused.{Reason.OTHER_DEVICE}")
                raise Refused(Reason.OTHER_DEVICE)
            window = self._pace.window()
            left_s = max(0.0, found.expires_at - now)
            if receipt is not None:
                return UploadState(0, receipt.payload_sha256, receipt, left_s, window)
            leases.usable(tx, lease_id, device_id, "", now)
            kept = leases.kept(tx, lease_id)
            return UploadState(kept.offset, kept.sha256, None, left_s, window)

        return await self._asked(look)

    async def abort(self, abort: Abort) -> RetryWindow:
        """See ``FederationSource``."""
        statement = statements.abort(abort.device_id, abort.lease_id)
        await self._signed(abort.device_id, statement, abort.signature)
        now = self._now()
        await self._asked(
            lambda tx: leases.abort(tx, abort.device_id, abort.lease_id, abort.reason, now)
        )
        self._leases.pop(abort.lease_id, None)
        return self._pace.window()

    async def report(self, report: MetricsReport) -> RetryWindow:
        """See ``FederationSource``."""
        statement = statements.metrics(
            report.device_id, report.report_id, report.counters, report.histograms
        )
        await self._signed(report.device_id, statement, report.signature)
        now = self._now()
        await self._database.do(lambda tx: leases.add_report(tx, report, now))
        return self._pace.window()

    async def exchange(self, message: PhaseMessage) -> PhaseReply:
        """See ``FederationSource``."""
        statement = statements.exchange(
            message.device_id, message.lease_id, message.phase, message.payload
        )
        await self._signed(message.device_id, statement, message.signature)
        try:
            return await self._masked.exchange(
                message, self._pace.window(self._config.min_separation_s)
            )
        except Refused as refused:
            refused.retry_after_s = self._later()
            raise

    async def figures(self) -> RoundFigures:
        """What the store tells of its rounds, for metrics."""
        await self._who()
        return await self._database.do(figures)

    async def commit(
        self, header: UploadHeader, expected: _Expected, payload: bytearray
    ) -> Committed:
        """Check a whole payload and keep it."""
        data = bytes(payload)
        if len(data) >= _OFF_THE_LOOP_BYTES:
            wrong = await asyncio.to_thread(_wrong, header, expected, data)
        else:
            wrong = _wrong(header, expected, data)
        if wrong is not None:

            def drop(tx: Transaction) -> None:
                leases.discard(tx, header.lease_id)
                count(tx, f"refused.{wrong}")

            await self._database.do(drop)
            raise Refused(wrong, self._later())
        now = self._now()
        receipt = await self._asked(lambda tx: leases.commit(tx, header, data, self._config, now))
        self._leases.pop(header.lease_id, None)
        if expected.plan.masked is not None:  # it is needed once more
            return Committed(receipt, window(expected.plan.masked))
        return Committed(receipt, self._pace.window(self._config.min_separation_s))

    async def keep(self, header: UploadHeader, start: int, data: bytes) -> bool:
        """Keep a piece of an upload that may never be committed."""
        now = self._now()
        return await self._database.do(
            lambda tx: leases.keep(
                tx, header.lease_id, sha256=header.payload_sha256, start=start, data=data, now=now
            )
        )

    def reserve(self, size: int) -> None:
        """Note that an upload of this size has begun, or with a negative size that it has ended."""
        self.uploading_bytes += size

    async def carry_on(self, work: Coroutine[object, object, T]) -> T:
        """Do something to its end even where the call that asked for it is cancelled meanwhile."""
        task = asyncio.create_task(work)
        self._carried_on.add(task)
        task.add_done_callback(self._carried_on.discard)
        return await asyncio.shield(task)

    async def refuse(self, reason: Reason) -> Refused:
        """Count a refusal and give it, to be raised."""
        return await self._refusal(reason)

    async def _who(self) -> tuple[str, bytes]:
        if self._identity is None:

            def prepared(tx: Transaction) -> tuple[str, bytes]:
                migrate(tx)
                return identity(tx)

            self._identity = await self._database.do(prepared)
        return self._identity

    async def _adapter(self, digest: str) -> StartingAdapter:
        known = self._adapters.known(digest)
        if known is None:
            known = await asyncio.to_thread(self._adapters.read, digest)
        return known

    async def _expected(self, of: rounds.Round) -> _Expected:
        """What a round's updates look like."""
        known = self._plans.get((of.adapter_digest, of.plan))
        if known is None:
            plan = RoundPlan.from_bytes(of.plan.encode())
            adapter = (await self._adapter(of.adapter_digest)).shapes
            known = _Expected(plan, plan.updates(adapter))
            while len(self._plans) >= _REMEMBERED_PLANS:
                del self._plans[next(iter(self._plans))]
            self._plans[of.adapter_digest, of.plan] = known
        return known

    async def _key(self, device_id: str) -> PublicKey:
        known = self._keys.get(device_id)
        if known is None:
            raw = await self._database.do(lambda tx: leases.public_key(tx, device_id))
            if raw is None:
                raise await self._refusal(Reason.UNKNOWN_DEVICE)
            known = PublicKey(raw)
            while len(self._keys) >= _REMEMBERED:
                del self._keys[next(iter(self._keys))]
            self._keys[device_id] = known
        return known

    async def _signed(self, device_id: str, statement: bytes, signature: bytes) -> None:
        key = await self._key(device_id)
        if not key.signed(statement, signature):
            raise await self._refusal(Reason.BAD_SIGNATURE)

    async def _usable(self, header: UploadHeader) -> tuple[leases.StoredLease, rounds.Round]:
        """The header's lease and its round. One that this gateway gave is remembered; whether it is
        still good is said by the store when the update is committed."""
        known = self._leases.get(header.lease_id)
        now = self._now()
        if known is None or known[0].device != header.device_id or known[0].expires_at <= now:

            def look(tx: Transaction) -> tuple[leases.StoredLease, rounds.Round]:
                found = leases.usable(
                    tx, header.lease_id, header.device_id, header.payload_sha256, now
                )
                of = rounds.round_numbered(tx, found.round)
                if of is None:
                    raise Refused(Reason.UNKNOWN_LEASE)
                return found, of

            known = await self._asked(look)
            self._remember(*known)
        return known

    async def _begun(self, header: UploadHeader) -> bytes:
        """The bytes before the header's offset."""

        def look(tx: Transaction) -> bytes:
            kept = leases.kept(tx, header.lease_id)
            if kept.sha256 != header.payload_sha256 or header.offset > kept.offset:
                raise InvalidInput("header.offset", "is beyond what is kept; ask UploadStatus")
            return leases.pieces(tx, header.lease_id)[: header.offset]

        return await self._database.do(look)

    def _remember(self, lease: leases.StoredLease, of: rounds.Round) -> None:
        while len(self._leases) >= _REMEMBERED:
            del self._leases[next(iter(self._leases))]
        self._leases[lease.lease_id] = (lease, of)

    async def _asked(self, step: Step[T]) -> T:
        """Carry out a step; its refusal says when to come again."""
        try:
            return await self._database.do(step)
        except Refused as refused:
            refused.retry_after_s = self._later()
            raise

    async def _refusal(self, reason: Reason) -> Refused:
        await self._database.do(lambda tx: count(tx, f"refused.{reason}"))
        return Refused(reason, self._later())

    def _later(self) -> float:
        return self._pace.window().draw(self._random)


@dataclass(frozen=True, slots=True)
class _Expected:
    """Plan of a round, and what its updates look like by the size of the payload."""

    plan: RoundPlan
    updates: Mapping[int, Expected]


class _Upload:
    """One stream of one update; see ``cascade.wire.Upload``."""

    def __init__(self, desk: Desk, header: UploadHeader, expected: _Expected) -> None:
        self._desk = desk
        self._header = header
        self._expected = expected
        self._payload = bytearray()
        self._kept = 0
        self._keeping = True
        desk.reserve(header.payload_bytes)

    def go_on_after(self, before: bytes) -> None:
        """Begin with what an earlier stream left."""
        self._payload += before
        self._kept = len(before)

    async def add(self, chunk: bytes) -> None:
        if len(self._payload) + len(chunk) > self._header.payload_bytes:
            self._keeping = False
            raise await self._desk.refuse(Reason.OVERSIZED)
        self._payload += chunk
        if len(self._payload) - self._kept >= _PIECE_BYTES:
            await self._keep()

    async def commit(self) -> Committed:
        if len(self._payload) < self._header.payload_bytes:
            raise InvalidInput(
                "commit",
                f"came after {len(self._payload)} of {self._header.payload_bytes} bytes; resume",
            )
        self._keeping = False
        try:
            return await self._desk.carry_on(
                self._desk.commit(self._header, self._expected, self._payload)
            )
        except Refused:
            raise
        except CascadeError:
            # The store was away: the bytes are good, and may be committed later.
            self._keeping = True
            raise

    async def close(self) -> None:
        if self._keeping and len(self._payload) > self._kept:
            await self._desk.carry_on(self._close())
        else:
            self._desk.reserve(-self._header.payload_bytes)

    async def _close(self) -> None:
        try:
            await self._keep()
        except CascadeError:
            pass  # the device is told by `UploadStatus` what is there
        finally:
            self._desk.reserve(-self._header.payload_bytes)

    async def _keep(self) -> None:
        piece = bytes(memoryview(self._payload)[self._kept :])
        self._keeping = await self._desk.keep(self._header, self._kept, piece)
        self._kept = len(self._payload)


def _wrong(header: UploadHeader, expected: _Expected, data: bytes) -> Reason | None:
    """What is wrong with a whole payload. Of a masked one only its size and its digest can be."""
    if sha256_bytes(data) != header.payload_sha256:
        return Reason.WRONG_DIGEST
    if expected.plan.masked is not None:
        return None
    try:
        check_payload(expected.plan, data, expected.updates[len(data)])
    except InvalidInput as problem:
        if "finite" in problem.problem:
            return Reason.NOT_FINITE
        if problem.field.endswith((".name", ".axes", ".shape", ".tensors")):
            return Reason.WRONG_SHAPE
        return Reason.MALFORMED
    return None


def _tag(secret: bytes, nonce: bytes, ends: bytes, public_key: bytes) -> bytes:
    return hmac.digest(secret, nonce + ends + public_key, hashlib.sha256)
