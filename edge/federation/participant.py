"""The participating device, one step at a time: send what is unsent, else check in, train, send.

Everything that must outlive a crash is on disk before it is sent; the coordinator's word on when to
come back is always kept. The seams are the trainer, the allowance and the clock.
"""

from __future__ import annotations

import asyncio
import platform
import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from cascade.clock import Clock, SystemClock, passed_s
from cascade.errors import CascadeError, InvalidInput, RemoteError
from cascade.federation import (
    Shapes,
    UpdateStatement,
    check_tensors,
    clip_to_norm,
    sign_update,
    statements,
)
from cascade.federation.payload import encode_payload, to_mask
from cascade.federation.plan import RoundPlan
from cascade.federation.tensors import Doubles
from cascade.federation.terms import (
    Abort,
    AbortReason,
    Attestation,
    CheckIn,
    Enrolment,
    Lease,
    MetricsReport,
    PhaseMessage,
    RetryWindow,
    TrainingConditions,
    TrainingProfile,
    UploadHeader,
)
from cascade.files import sha256_bytes
from cascade.home import trust_dir
from cascade.signing import SigningKey, TrustStore
from edge.federation import masking
from edge.federation.counting import AdapterCounts
from edge.federation.lease import (
    Declined,
    accepted_plan,
    of_own_rank,
    starting_point,
    update_shapes,
)
from edge.federation.limits import Limits
from edge.federation.masking import Masking
from edge.federation.state import DeviceFolder, DeviceState, PendingUpload, RoundInHand
from edge.federation.timer import Timer
from edge.federation.trainer import NoGain, Paused, StartingPoint, Trainer
from edge.training.allowance import TrainingAllowance
from edge.training.policy import Hold

if TYPE_CHECKING:  # gRPC takes a quarter of a second
    from cascade.wire import ClientProfile, GrpcFederation

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
_UNSAID_WAIT_S: Final = 60.0
_SPREAD: Final = 0.25
_BEGUN: Final = 3
"""Processes that may end while they train for a round: a kill is no verdict."""
_GIVE_BACK_S: Final = 120.0
"""Of a lease's time: with less left, a round that is paused is given back."""

Outcome = Literal[
    "waiting",
    "not_ready",
    "spent",
    "not_needed",
    "declined",
    "no_gain",
    "failed",
    "withdrawn",
    "unsent",
    "paused",
    "masking",
    "sent",
]


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did, when the next one may be taken, and why, in a line."""

    outcome: Outcome
    wait_s: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Joined:
    """A round that this device carries out."""

    lease: Lease
    plan: RoundPlan
    start: StartingPoint
    shapes: Shapes
    in_hand: RoundInHand


class Participant:
    """A device in the rounds of one cluster. Use one instance on one event loop.

    Arguments:
        profile: of the cluster.
        base_digest: of the bundle that runs here.
        trainer: see ``Trainer``.
        limits: what this device gives at most.
        adapter: digest and version of what runs here now; ``("", 0)`` for none.
        trust: publishers whose adapters are taken; by default those under ``CASCADE_HOME``.
        allowance: whether this device may train now, and for how long; the coordinator is told the
            conditions that it goes by. ``None`` leaves all to ``limits``, and tells of none.
        examples: how many it could learn from.
        ready: why training cannot begin on what there is, in a line; "" where it can. Asked before
            a lease is: a round that is joined counts against the allowance, whatever comes of it.
        consented: whether what was learned may leave the device. Asked each time before it does:
            an update that waits while consent is withdrawn is dropped.
        forgotten: another word whenever its owner had an example forgotten: what was learned before
            that and was not sent yet is dropped.
        discard: called when a round that was begun is not gone on with: what its training keeps is
            of no more use.
        attest: makes the platform's statement about this device from its public key (32 bytes),
            for a coordinator that wants one.
        clock: see ``cascade.clock``.
        root: where this device keeps its key and its state; by default under ``CASCADE_HOME``.
        connect: opens the connection.
        rounding: randomness of an update's rounding, fresh for each.
    """

    def __init__(
        self,
        profile: ClientProfile,
        base_digest: str,
        trainer: Trainer,
        *,
        limits: Limits | None = None,
        adapter: tuple[str, int] = ("", 0),
        trust: TrustStore | None = None,
        allowance: TrainingAllowance | None = None,
        examples: Callable[[], int] = lambda: 0,
        ready: Callable[[], str] = lambda: "",
        consented: Callable[[], bool] = lambda: True,
        forgotten: Callable[[], str] = lambda: "",
        discard: Callable[[], None] = lambda: None,
        attest: Callable[[bytes], Attestation] | None = None,
        clock: Clock | None = None,
        root: Path | None = None,
        connect: Callable[[ClientProfile], GrpcFederation] | None = None,
        rounding: Callable[[], np.random.Generator] = lambda: np.random.default_rng(
            secrets.randbits(128)
        ),
    ) -> None:
        self._profile = profile
        self._base_digest = base_digest
        self._trainer = trainer
        self._limits = limits or Limits()
        self._adapter = adapter
        self._trust = trust or TrustStore(trust_dir())
        self._allowance = allowance
        self._examples = examples
        self._ready = ready
        self._consented = consented
        self._forgotten = forgotten
        self._discard = discard
        self._attest = attest
        self._clock = clock or SystemClock()
        self._random = random.Random(secrets.randbits(64))
        self._folder = DeviceFolder(profile.address, root)
        self._connect = connect
        self._rounding = rounding
        self._service: GrpcFederation | None = None

    @property
    def device_id(self) -> str:
        """This device's name in every federation; its key is made when it is first asked for."""
        return self._key.public.key_id

    @property
    def unsent(self) -> bool:
        """Whether an update waits on disk to be sent, or its masks to be taken off their sum; the
        next step does that first."""
        state = self._folder.load()
        return state.pending is not None or state.masking is not None

    async def run(self) -> None:
        """Take part until this is cancelled."""
        while True:
            done = await self.step()
            await asyncio.sleep(done.wait_s)

    async def step(self) -> Step:
        """Do what is due now; may take as long as training does.

        Raises:
            DeviceBusy: another process of this device takes part.
        """
        with self._folder.alone():
            try:
                return await self._step(self._folder.load())
            except RemoteError as problem:
                wait_s = problem.retry_after_s
                return self._later(
                    self._folder.load(),
                    "failed",
                    RetryWindow(wait_s or _UNSAID_WAIT_S, (wait_s or _UNSAID_WAIT_S) * 2),
                    str(problem),
                )

    async def report(self, counts: AdapterCounts) -> bool:
        """Tell the cluster what this device has counted; returns whether there was anything. What
        does not arrive is kept, and sent again the next time, under the same id.

        Raises:
            RemoteError: the cluster cannot be told now.
            DeviceBusy: it does not know this device yet, and another task or process takes part.
        """
        counted = counts.take()
        if counted is None:
            return False
        if not self._folder.load().coordinator_id:  # else a round may go on meanwhile
            with self._folder.alone():
                await self._enrolled(self._folder.load())
        statement = statements.metrics(
            self.device_id, counted.report_id, counted.counters, counted.histograms
        )
        await self._open().report(
            MetricsReport(
                self.device_id,
                counted.report_id,
                counted.counters,
                counted.histograms,
                self._key.sign_raw(statement),
            )
        )
        counts.sent(counted)
        return True

    async def close(self) -> None:
        """Close the connection."""
        service, self._service = self._service, None
        if service is not None:
            await service.close()

    async def _step(self, state: DeviceState) -> Step:
        reading = self._clock.read()
        if state.wait is not None and (left_s := state.wait.left_s(reading)) > 0:
            return Step("waiting", left_s)
        unsent = state.pending is not None or state.masking is not None
        if unsent and (held := await self._held(state)) is not None:
            return held
        if state.pending is not None:
            return await self._send(state, state.pending)
        if state.masking is not None:
            return await self._mask(state, state.masking)
        if state.training is not None and state.training.expires.left_s(reading) <= 0:
            state = self._left(state)  # its lease is void
        if state.training is not None and (ended := await self._ended(state, state.training)):
            return ended
        state = replace(state, usage=state.usage.on(reading.wall_s))
        if (not_yet := await self._not_yet(state)) is not None:
            return not_yet
        state = await self._enrolled(state)
        lease, state, done = await self._lease(state)
        if lease is None:
            return done
        return await self._take_part(state, lease)

    async def _not_yet(self, state: DeviceState) -> Step | None:
        """What stands in the way of training, if anything does now."""
        in_hand, wait_s = state.training, _UNSAID_WAIT_S
        if in_hand is None and state.usage.rounds >= self._limits.rounds_per_day:
            return Step("spent", wait_s, "took part as often today as it may")
        why = ""
        if self._allowance is not None:
            permission = self._allowance.may_train(participate=True, joined=in_hand is not None)
            why, wait_s = ", ".join(permission.reasons), max(permission.retry_s, wait_s)
        why = why or await asyncio.to_thread(self._ready)
        if not why:
            return None
        if in_hand is not None:
            return await self._paused(state, in_hand, why)
        return Step("not_ready", wait_s, why)

    async def _ended(self, state: DeviceState, in_hand: RoundInHand) -> Step | None:
        """Give back a round of which nothing may come any more."""
        outcome: Outcome = "withdrawn"
        reason, why = AbortReason.CONDITIONS, await self._lost(state)
        if not why and in_hand.begun >= _BEGUN:
            why = f"{_BEGUN} processes ended while they trained for it"
            reason, outcome = AbortReason.FAILED, "failed"
        if not why:
            return None
        return await self._give_back(state, in_hand.lease_id, reason, outcome, note=why)

    async def _held(self, state: DeviceState) -> Step | None:
        """What stands in the way of sending what was learned, if anything does now."""
        if why := await self._lost(state):
            self._folder.save(replace(state, pending=None, masking=None))
            return Step("withdrawn", _UNSAID_WAIT_S, f"{why}: the update is dropped")
        if self._allowance is not None and not self._allowance.may_send():
            return Step("unsent", _UNSAID_WAIT_S, Hold.NOT_UNMETERED.value)
        return None

    async def _lost(self, state: DeviceState) -> str:
        """Why nothing may come any more of what was learned; "" where it may."""
        if not await asyncio.to_thread(self._consented):
            return "consent was withdrawn"
        if await asyncio.to_thread(self._forgotten) != state.learned:
            return "examples were forgotten"
        return ""

    def _left(self, state: DeviceState) -> DeviceState:
        """Without the round that it was in."""
        if state.training is not None:
            self._discard()
        return replace(state, training=None)

    async def _enrolled(self, state: DeviceState) -> DeviceState:
        if state.coordinator_id:
            return state
        key, service = self._key, self._open()
        given = await service.challenge(key.public.raw)
        known = await service.enrol(
            Enrolment(
                key.public.raw,
                given.challenge,
                key.sign_raw(statements.enrolment(given.challenge)),
                await self._attested(key.public.raw),
                self._described(),
            )
        )
        state = replace(state, coordinator_id=known.coordinator_id)
        self._folder.save(state)
        return state

    async def _attested(self, public_key: bytes) -> Attestation | None:
        if self._attest is None:
            return None
        try:
            return await asyncio.to_thread(self._attest, public_key)
        except Exception as problem:  # whatever the platform raises
            raise RemoteError(
                "UNAVAILABLE", f"the platform does not attest now: {problem}"
            ) from None

    async def _lease(self, state: DeviceState) -> tuple[Lease | None, DeviceState, Step]:
        if not state.request_id:
            # Before it is sent: should the reply be lost with this process, the same request gets
            # the same lease.
            state = replace(state, request_id=secrets.token_hex(16))
            self._folder.save(state)
        request = bytes.fromhex(state.request_id)
        digest, version = self._adapter
        statement = statements.check_in(self.device_id, request, self._base_digest, digest)
        try:
            reply = await self._open().check_in(
                CheckIn(
                    device_id=self.device_id,
                    request_id=request,
                    base_digest=self._base_digest,
                    adapter_digest=digest,
                    adapter_version=version,
                    signature=self._key.sign_raw(statement),
                    profile=self._described(),
                    conditions=self._told(),
                )
            )
        except RemoteError as problem:
            if problem.status == "NOT_FOUND":  # it does not know this device (any more)
                state = replace(self._left(state), coordinator_id="", request_id="")
                self._folder.save(state)
            raise
        if reply.lease is None:
            state = replace(self._left(state), request_id="")
            done = self._later(state, "not_needed", reply.retry, reply.no_lease or "")
            return None, state, done
        return reply.lease, state, Step("waiting", 0.0)

    async def _take_part(self, state: DeviceState, lease: Lease) -> Step:
        expires = Timer(lease.expires_in_s, self._clock.read())
        in_hand = state.training
        if in_hand is None or in_hand.lease_id != lease.lease_id:
            in_hand = None
        try:
            if in_hand is None and state.usage.rounds >= self._limits.rounds_per_day:
                raise Declined(AbortReason.OVER_BUDGET, "took part as often today as it may")
            plan = accepted_plan(
                lease,
                coordinator_id=state.coordinator_id,
                base_digest=self._base_digest,
                least_version=max(state.highest(self._base_digest), self._adapter[1]),
                limits=self._limits,
                allowance=self._allowance,
                joined=in_hand is not None,
            )
            state = state.having_seen(self._base_digest, lease.adapter_version)
            start = await starting_point(
                lease,
                base_digest=self._base_digest,
                folder=self._folder.root / "adapters",
                trust=self._trust,
                artifacts=self._open().artifacts(),
            )
            start = of_own_rank(plan, start, self._limits)
            shapes = update_shapes(lease, plan, start, self._limits)
        except Declined as declined:
            return await self._give_back(
                state,
                lease.lease_id,
                declined.reason,
                "declined",
                note=str(declined),
                least_s=declined.retry_s,
            )
        except (CascadeError, OSError) as problem:
            if isinstance(problem, RemoteError):
                raise
            return await self._give_back(
                state, lease.lease_id, AbortReason.UNFIT, "declined", note=str(problem)
            )
        if in_hand is None:
            learned = await asyncio.to_thread(self._forgotten)
            if self._allowance is not None:
                self._allowance.participated()
            # It counts as taken part from here on, whatever comes of it, and once.
            in_hand = RoundInHand(lease.lease_id, expires)
            state = replace(state, usage=state.usage.one_more(), learned=learned)
        in_hand = replace(in_hand, expires=expires, begun=in_hand.begun + 1)
        state = replace(state, training=in_hand)
        self._folder.save(state)
        return await self._train(state, _Joined(lease, plan, start, shapes, in_hand))

    async def _train(self, state: DeviceState, joined: _Joined) -> Step:
        lease, plan, in_hand = joined.lease, joined.plan, joined.in_hand
        shapes, expires, began = joined.shapes, in_hand.expires, self._clock.read()
        left_s = max(plan.max_seconds - in_hand.spent_s, 1.0)
        try:
            trained = await asyncio.to_thread(
                self._trainer, replace(plan, max_seconds=left_s), joined.start
            )
            check_tensors(trained.change, shapes)
            counts = trained.row_counts
            if plan.rows and not counts.size:
                counts = np.zeros(plan.head_rows(shapes), np.int64)
            change = clip_to_norm(trained.change, min(plan.clip_norm, self._limits.clip_norm))
            if plan.masked is not None:
                return await self._begin_masking(
                    state, lease, to_mask(plan, change, counts), expires
                )
            payload = encode_payload(plan, change, counts, self._rounding())
        except Paused as problem:
            spent_s = in_hand.spent_s + passed_s(began, self._clock.read())
            in_hand = replace(in_hand, spent_s=spent_s, begun=0)
            state = replace(state, training=in_hand)
            return await self._paused(state, in_hand, str(problem))
        except NoGain as problem:
            return await self._give_back(
                state, lease.lease_id, AbortReason.NO_GAIN, "no_gain", note=str(problem)
            )
        except CascadeError as problem:
            return await self._give_back(
                state, lease.lease_id, AbortReason.FAILED, "failed", note=str(problem)
            )
        examples = max(1, min(trained.examples, plan.max_examples))
        pending = PendingUpload(self._header(lease, payload, examples), expires)
        self._folder.save_payload(pending.header, payload)
        state = replace(state, request_id="", training=None, pending=pending)
        self._folder.save(state)
        return await self._held(state) or await self._send(state, pending, fresh=True)

    async def _paused(self, state: DeviceState, in_hand: RoundInHand, why: str) -> Step:
        """Keep the lease for as long as something may come of it."""
        if in_hand.expires.left_s(self._clock.read()) < _GIVE_BACK_S:
            return await self._give_back(
                state, in_hand.lease_id, AbortReason.CONDITIONS, "failed", note=why
            )
        self._folder.save(state)
        return Step("paused", _UNSAID_WAIT_S, why)

    def _header(self, of: Lease | Masking, payload: bytes, examples: int) -> UploadHeader:
        digest = sha256_bytes(payload)
        statement = UpdateStatement(of.lease_id, of.round, of.base_digest, digest)
        return UploadHeader(
            device_id=self.device_id,
            lease_id=of.lease_id,
            payload_bytes=len(payload),
            payload_sha256=digest,
            offset=0,
            base_digest=of.base_digest,
            adapter_version=of.adapter_version,
            examples=examples,
            signature=sign_update(self._key, statement),
        )

    async def _begin_masking(
        self, state: DeviceState, lease: Lease, update: Doubles, expires: Timer
    ) -> Step:
        """Tell that this device has trained, and by which keys it takes part in the masks."""
        turn = masking.ready(
            lease_id=lease.lease_id,
            round_number=lease.round,
            base_digest=lease.base_digest,
            adapter_version=lease.adapter_version,
            plan=lease.plan,
            least=self._limits.cohort,
            vector_sha256=self._folder.save_vector(update),
            expires=expires,
        )
        state = replace(state, request_id="", training=None, masking=turn)
        self._folder.save(state)
        return await self._held(state) or await self._mask(state, turn)

    async def _mask(self, state: DeviceState, turn: Masking) -> Step:
        """Say what is due in the round under masks, and go on as far as the others have come."""
        try:
            while turn.expires.left_s(self._clock.read()) > 0:
                reply = await self._open().exchange(self._said(turn))
                now = Timer(reply.expires_in_s, self._clock.read())
                turn = replace(turn, expires=now)
                if not reply.complete:
                    waiting = replace(state, masking=turn)
                    why = f"the others, in the phase {turn.phase}"
                    return self._later(waiting, "masking", reply.retry, why)
                if turn.phase == "unmask" or (turn.phase == "survivors" and not reply.result):
                    return self._later(replace(state, masking=None), "sent", reply.retry)
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
        statement = statements.exchange(self.device_id, turn.lease_id, turn.phase, turn.message)
        return PhaseMessage(
            self.device_id,
            turn.lease_id,
            turn.phase,
            turn.message,
            self._key.sign_raw(statement),
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
        service = self._open()
        try:
            if not fresh:
                kept = await service.upload_state(header.device_id, header.lease_id)
                if kept.receipt is not None:
                    done = replace(state, pending=None)
                    if done.masking is not None:
                        return await self._mask(done, done.masking)
                    return self._later(done, "sent", kept.retry, "its receipt had been lost")
                if kept.payload_sha256 == header.payload_sha256:
                    header = replace(header, offset=kept.offset)
            reply = await service.upload(header, payload)
        except RemoteError as problem:
            return self._unsent(state, problem)
        done = replace(state, pending=None)
        # A masked update is not yet part of a sum.
        return self._later(done, "sent" if done.masking is None else "masking", reply.retry)

    def _unsent(self, state: DeviceState, problem: RemoteError) -> Step:
        keep = problem.status in _KEEP
        wait_s = problem.retry_after_s or _UNSAID_WAIT_S
        window = RetryWindow(wait_s, wait_s * (1 + _SPREAD))
        left = state if keep else replace(state, pending=None, masking=None)
        return self._later(left, "unsent" if keep else "failed", window, str(problem))

    async def _give_back(
        self,
        state: DeviceState,
        lease_id: str,
        reason: AbortReason,
        outcome: Outcome,
        *,
        note: str,
        least_s: float = 0.0,
    ) -> Step:
        state = replace(self._left(state), request_id="")
        self._folder.save(state)
        signature = self._key.sign_raw(statements.abort(self.device_id, lease_id))
        retry = await self._open().abort(Abort(self.device_id, lease_id, signature, reason))
        return self._later(state, outcome, retry, note, least_s)

    def _later(
        self,
        state: DeviceState,
        outcome: Outcome,
        window: RetryWindow,
        note: str = "",
        least_s: float = 0.0,
    ) -> Step:
        """Keep the coordinator's word on when to come back, and wait ``least_s`` at the least."""
        wait_s = max(window.draw(self._random), least_s)
        self._folder.save(replace(state, wait=Timer(wait_s, self._clock.read())))
        return Step(outcome, wait_s, note)

    def _open(self) -> GrpcFederation:
        from cascade.wire import GrpcFederation

        if self._service is None:
            self._service = (self._connect or GrpcFederation)(self._profile)
        return self._service

    @property
    def _key(self) -> SigningKey:
        return SigningKey.load_or_create(self._folder.key_path)

    def _told(self) -> TrainingConditions:
        if self._allowance is None:
            return TrainingConditions()
        now = self._allowance.conditions.read()
        known = now.connectivity in ("metered", "unmetered")
        return TrainingConditions(
            idle=now.idle,
            charging=now.charging,
            unmetered=now.connectivity == "unmetered" if known else None,
            temperature_c=now.temperature_c,
            battery=now.battery_share,
        )

    def _described(self) -> TrainingProfile:
        return TrainingProfile(
            sdk_version=metadata.version("edge-cloud-cascade"),
            architecture=platform.machine(),
            examples=self._examples(),
        )
