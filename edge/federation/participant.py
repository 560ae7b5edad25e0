"""The participating device, one step at a time: send what is unsent, else check in, train, send.

What a round may ask of the device, and what ends it, is decided here; ``sending`` brings what was
learned to the cluster. The seams are the trainer, the allowance and the clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from cascade.clock import Clock, SystemClock, passed_s
from cascade.errors import CascadeError, RemoteError
from cascade.federation import Shapes, check_tensors, clip_to_norm, flatten, statements
from cascade.federation.payload import encode_payload
from cascade.federation.plan import RoundPlan
from cascade.federation.terms import (
    Abort,
    AbortReason,
    Attestation,
    CheckIn,
    Lease,
    MetricsReport,
    RetryWindow,
    TrainingConditions,
)
from cascade.home import trust_dir
from cascade.signing import TrustStore
from edge.federation.contact import Contact
from edge.federation.counting import AdapterCounts
from edge.federation.lease import (
    Declined,
    accepted_plan,
    of_own_rank,
    starting_point,
    update_shapes,
)
from edge.federation.limits import Limits
from edge.federation.sending import Sending
from edge.federation.state import DeviceFolder, DeviceState, RoundInHand
from edge.federation.step import UNSAID_WAIT_S, Outcome, Pace, Step
from edge.federation.timer import Timer
from edge.federation.trainer import NoGain, Paused, StartingPoint, Trained, Trainer
from edge.training.allowance import TrainingAllowance
from edge.training.policy import Hold

if TYPE_CHECKING:  # gRPC takes a quarter of a second
    from cascade.wire import ClientProfile, GrpcFederation

_BEGUN: Final = 3
"""Processes that may end while they train for a round: a kill is no verdict."""
_GIVE_BACK_S: Final = 120.0
"""Of a lease's time: with less left, a round that is paused is given back."""
_UNFIT_S: Final = 3_600.0
"""Until the next lease, where nothing can be learned for the one at hand."""
_STOP_S: Final = 1.0
"""Between two words to a trainer that is to stop."""
_GOODBYE_S: Final = 2.0
"""In which a round is given back by a step that was cancelled."""


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
        ready: why training cannot begin on what there is, in a line; "" where it can. Asked before
            a lease is: a round that is joined counts against the allowance, whatever comes of it.
        fit: the same of a lease's plan and adapter, before it is joined.
        consented: whether what was learned may leave the device. Asked each time before it does:
            an update that waits while consent is withdrawn is dropped.
        forgotten: another word whenever its owner had an example forgotten, or gave other terms of
            consent: what was learned before that and was not sent yet is dropped.
        discard: called when a round has been trained for, or is not gone on with: what its training
            keeps is of no more use.
        stop: called when a step is cancelled while it trains: the trainer is to raise ``Paused``
            soon. The step ends once it has.
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
        ready: Callable[[], str] = lambda: "",
        fit: Callable[[RoundPlan, StartingPoint], str] = lambda plan, start: "",
        consented: Callable[[], bool] = lambda: True,
        forgotten: Callable[[], str] = lambda: "",
        discard: Callable[[], None] = lambda: None,
        stop: Callable[[], None] = lambda: None,
        attest: Callable[[bytes], Attestation] | None = None,
        clock: Clock | None = None,
        root: Path | None = None,
        connect: Callable[[ClientProfile], GrpcFederation] | None = None,
        rounding: Callable[[], np.random.Generator] = lambda: np.random.default_rng(
            secrets.randbits(128)
        ),
    ) -> None:
        self._base_digest = base_digest
        self._trainer = trainer
        self._limits = limits or Limits()
        self._adapter = adapter
        self._trust = trust or TrustStore(trust_dir())
        self._allowance = allowance
        self._ready, self._fit = ready, fit
        self._consented = consented
        self._forgotten = forgotten
        self._discard, self._stop = discard, stop
        self._clock = clock or SystemClock()
        self._rounding = rounding
        self._folder = DeviceFolder(profile.address, root)
        self._contact = Contact(profile, self._folder, attest=attest, connect=connect)
        self._pace = Pace(self._folder, self._clock)
        self._sending = Sending(
            self._folder,
            self._contact,
            self._clock,
            self._pace,
            cohort=self._limits.cohort,
            rounding=rounding,
        )

    @property
    def device_id(self) -> str:
        """This device's name in every federation; its key is made when it is first asked for."""
        return self._contact.device_id

    @property
    def unsent(self) -> bool:
        """Whether an update waits on disk to be sent, or its masks to be taken off their sum; the
        next step does that first."""
        return self._folder.load().unsent

    async def run(self) -> None:
        """Take part until this is cancelled."""
        while True:
            done = await self.step()
            await asyncio.sleep(done.wait_s)

    async def step(self) -> Step:
        """Do what is due now; may take as long as training does.

        Raises:
            DeviceBusy: another process of this device takes part.
            InvalidInput: its state on disk is damaged; the message says what to do.
        """
        try:
            with self._folder.alone():
                return await self._stepped()
        except OSError as problem:  # the disk is full, or the like
            return Step("failed", UNSAID_WAIT_S, str(problem))

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
                await self._contact.enrolled(self._folder.load())
        statement = statements.metrics(
            self.device_id, counted.report_id, counted.counters, counted.histograms
        )
        await self._contact.service().report(
            MetricsReport(
                self.device_id,
                counted.report_id,
                counted.counters,
                counted.histograms,
                self._contact.key.sign_raw(statement),
            )
        )
        counts.sent(counted)
        return True

    async def close(self) -> None:
        """Close the connection."""
        await self._contact.close()

    async def _stepped(self) -> Step:
        try:
            return await self._step(self._folder.load())
        except RemoteError as problem:
            wait_s = problem.retry_after_s or UNSAID_WAIT_S
            window = RetryWindow(wait_s, wait_s * 2)
            return self._pace.later(self._folder.load(), "failed", window, str(problem))

    async def _step(self, state: DeviceState) -> Step:
        reading = self._clock.read()
        if state.wait is not None and (left_s := state.wait.left_s(reading)) > 0:
            return Step("waiting", left_s)
        if state.unsent:
            return await self._held(state) or await self._sending.go_on(state)
        if state.training is not None and state.training.expires.left_s(reading) <= 0:
            state = self._left(state)  # its lease is void
        if state.training is not None and (ended := await self._ended(state, state.training)):
            return ended
        state = replace(state, usage=state.usage.at(reading))
        if (not_yet := await self._not_yet(state)) is not None:
            return not_yet
        state = await self._contact.enrolled(state)
        lease, state, done = await self._lease(state)
        if lease is None:
            return done
        return await self._take_part(state, lease)

    async def _not_yet(self, state: DeviceState) -> Step | None:
        """What stands in the way of training, if anything does now."""
        in_hand, wait_s = state.training, UNSAID_WAIT_S
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
            return Step("withdrawn", UNSAID_WAIT_S, f"{why}: the update is dropped")
        if self._allowance is not None and not self._allowance.may_send():
            return Step("unsent", UNSAID_WAIT_S, Hold.NOT_UNMETERED.value)
        return None

    async def _lost(self, state: DeviceState) -> str:
        """Why nothing may come any more of what was learned; "" where it may."""
        if not await asyncio.to_thread(self._consented):
            return "consent was withdrawn"
        if await asyncio.to_thread(self._forgotten) != state.learned:
            return "examples were forgotten, or the terms of consent changed"
        return ""

    def _left(self, state: DeviceState) -> DeviceState:
        """Without the round that it was in."""
        if state.training is not None:
            self._discard()
        return replace(state, training=None)

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
            reply = await self._contact.service().check_in(
                CheckIn(
                    device_id=self.device_id,
                    request_id=request,
                    base_digest=self._base_digest,
                    adapter_digest=digest,
                    adapter_version=version,
                    signature=self._contact.key.sign_raw(statement),
                    profile=self._contact.described(),
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
            done = self._pace.later(state, "not_needed", reply.retry, reply.no_lease or "")
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
            start = await starting_point(
                lease,
                base_digest=self._base_digest,
                folder=self._folder.root / "adapters",
                trust=self._trust,
                artifacts=self._contact.service().artifacts(),
            )
            state = state.having_seen(self._base_digest, lease.adapter_version)
            start = of_own_rank(plan, start, self._limits)
            shapes = update_shapes(lease, plan, start, self._limits)
            if in_hand is None and (why := await asyncio.to_thread(self._fit, plan, start)):
                raise Declined(AbortReason.NO_GAIN, why, retry_s=_UNFIT_S)
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
        began = self._clock.read()
        left_s = max(plan.max_seconds - in_hand.spent_s, 1.0)
        work = asyncio.ensure_future(
            asyncio.to_thread(self._trainer, replace(plan, max_seconds=left_s), joined.start)
        )
        cancelled = await self._ended_or_stopped(work)
        try:
            trained = work.result()
            state = self._on_disk(state, joined, trained)
        except Paused as problem:
            spent_s = in_hand.spent_s + passed_s(began, self._clock.read())
            in_hand = replace(in_hand, spent_s=spent_s, begun=0)
            state = replace(state, training=in_hand)
            if cancelled:
                self._folder.save(state)
                raise asyncio.CancelledError from None
            return await self._paused(state, in_hand, str(problem))
        except (CascadeError, OSError) as problem:
            no_gain = isinstance(problem, NoGain)
            reason = AbortReason.NO_GAIN if no_gain else AbortReason.FAILED
            outcome: Outcome = "no_gain" if no_gain else "failed"
            given = self._give_back(state, lease.lease_id, reason, outcome, note=str(problem))
            if not cancelled:
                return await given
            with contextlib.suppress(RemoteError, TimeoutError):
                await asyncio.wait_for(given, _GOODBYE_S)
            raise asyncio.CancelledError from None
        self._discard()
        if cancelled:
            raise asyncio.CancelledError
        return await self._held(state) or await self._sending.go_on(state, fresh=True)

    async def _ended_or_stopped(self, work: asyncio.Future[Trained]) -> bool:
        """Wait for the trainer. If this is cancelled meanwhile it is told to stop, and waited for:
        nobody else would hear what came of it. Returns whether it was."""
        cancelled = False
        while not work.done():
            try:
                await asyncio.wait({work}, timeout=_STOP_S if cancelled else None)
            except asyncio.CancelledError:
                cancelled = True
            if cancelled and not work.done():
                self._stop()  # again and again: it may not have begun
        return cancelled

    def _on_disk(self, state: DeviceState, joined: _Joined, trained: Trained) -> DeviceState:
        """With what was learned, to be sent."""
        lease, plan, expires = joined.lease, joined.plan, joined.in_hand.expires
        check_tensors(trained.change, joined.shapes)
        change = clip_to_norm(trained.change, min(plan.clip_norm, self._limits.clip_norm))
        if plan.masked is not None:
            return self._sending.begin_masking(state, lease, flatten(change), expires)
        counts = trained.row_counts
        if plan.rows and not counts.size:
            counts = np.zeros(plan.head_rows(joined.shapes), np.int64)
        payload = encode_payload(plan, change, counts, self._rounding())
        examples = max(1, min(trained.examples, plan.max_examples))
        return self._sending.queue(state, lease, payload, examples, expires)

    async def _paused(self, state: DeviceState, in_hand: RoundInHand, why: str) -> Step:
        """Keep the lease for as long as something may come of it."""
        if in_hand.expires.left_s(self._clock.read()) < _GIVE_BACK_S:
            return await self._give_back(
                state, in_hand.lease_id, AbortReason.CONDITIONS, "failed", note=why
            )
        self._folder.save(state)
        return Step("paused", UNSAID_WAIT_S, why)

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
        signature = self._contact.key.sign_raw(statements.abort(self.device_id, lease_id))
        retry = await self._contact.service().abort(
            Abort(self.device_id, lease_id, signature, reason)
        )
        return self._pace.later(state, outcome, retry, note, least_s)

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
