"""The front desk's part in rounds under masks: takes a device's message, and tells it what came of
its phase. What a closed phase says never changes, so it is made once in a gateway and remembered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from cascade.errors import InvalidInput
from cascade.federation.masked_plan import MaskedPlan
from cascade.federation.masking import FixedPoint
from cascade.federation.plan import RoundPlan
from cascade.federation.terms import Phase, PhaseMessage, PhaseReply, RetryWindow
from cloud.federation import leases, masked_rounds
from cloud.federation.database import Database, Transaction
from cloud.federation.masked_rounds import Heard, Said
from cloud.federation.phases import standing
from cloud.federation.refusals import Reason, Refused, count
from cloud.federation.rounds import Round, round_numbered
from cloud.federation.unmasking import check_form, check_reveal, told

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

_REMEMBERED: Final = 8
_POLLS: Final = 24
"""How often a device may ask in one phase's time, so that it misses none."""
_POLLS_FOR_KEYS: Final = 8


@dataclass(frozen=True, slots=True)
class _Masked:
    """A round's words for it."""

    plan: MaskedPlan
    fixed: FixedPoint


class MaskedDesk:
    """Answers devices of rounds under masks; their signatures were looked at before.

    Arguments:
        now: seconds since 1970.
    """

    def __init__(self, database: Database, now: Callable[[], float]) -> None:
        self._database = database
        self._now = now
        self._told: dict[tuple[int, Phase], dict[str, bytes]] = {}
        self._frozen: dict[int, Said] = {}

    async def exchange(self, message: PhaseMessage, then: RetryWindow) -> PhaseReply:
        """Take a message.

        Arguments:
            then: when a device whose round is over comes back.

        Raises:
            Refused: it does not belong there, and why.
        """
        try:
            check_form(message.phase, message.payload)
            checked = message.phase == "unmask" and await self._check_reveal(message)
        except InvalidInput:
            await self._database.do(lambda tx: count(tx, f"refused.{Reason.MALFORMED}"))
            raise Refused(Reason.MALFORMED) from None
        now = self._now()
        heard = await self._database.do(
            lambda tx: masked_rounds.put(tx, message, now, checked=checked)
        )
        masked = _masked(heard.round)
        left_s = max(0.0, heard.expires_at - now)
        over = heard.complete and message.phase == "unmask"
        if over or masked is None:
            return PhaseReply(True, b"", left_s, then)
        result = b""
        if heard.complete:
            result = await self._result(heard, masked, message)
            if message.phase == "survivors" and not result:
                return PhaseReply(True, b"", left_s, then)
        waits_for_keys = message.phase == "advertise_keys" and not heard.complete
        then = window(masked.plan, keys=waits_for_keys)
        return PhaseReply(heard.complete, result, left_s, then)

    async def _result(self, heard: Heard, masked: _Masked, message: PhaseMessage) -> bytes:
        number = heard.round.number
        known = self._told.get((number, message.phase))
        if known is None:
            said = await self._database.do(lambda tx: masked_rounds.everything(tx, number))
            if said is None or not said.keys:  # its messages are gone: the sum is unmasked
                return b""
            known = await asyncio.to_thread(told, masked.plan, masked.fixed, said, message.phase)
            _remember(self._told, (number, message.phase), known)
        return known.get(message.device_id, b"")

    async def _check_reveal(self, message: PhaseMessage) -> bool:
        """Raise ``InvalidInput`` for shares that are not those which the survivors call for.
        Returns whether they could be looked at: before there are survivors, nothing says which."""

        def look(tx: Transaction) -> tuple[Round, Said] | None:
            lease = leases.lease(tx, message.lease_id)
            of = None if lease is None else round_numbered(tx, lease.round)
            at = None if of is None else standing(tx, of.number)
            if of is None or at is None or not at.beyond("vectors"):
                return None  # `put` says what is wrong
            if of.state != "collecting":
                return None
            said = self._frozen.get(of.number) or masked_rounds.everything(tx, of.number)
            return None if said is None else (of, said)

        found = await self._database.do(look)
        if found is None or (masked := _masked(found[0])) is None:
            return False
        of, said = found
        _remember(self._frozen, of.number, said)
        if message.device_id in said.senders:
            await asyncio.to_thread(
                check_reveal,
                masked.plan,
                masked.fixed,
                said,
                message.device_id,
                message.payload,
            )
        return True


def window(plan: MaskedPlan, *, keys: bool = False) -> RetryWindow:
    """When a device in the middle of a phase asks again: often enough to be late for none.

    Arguments:
        keys: that it waits for others to have trained, which may take long: it need only come in
            time for the phase that follows.
    """
    shortest_s = plan.phase_s / (_POLLS_FOR_KEYS if keys else _POLLS)
    return RetryWindow(shortest_s, 3 * shortest_s)


def _masked(of: Round) -> _Masked | None:
    plan = RoundPlan.from_bytes(of.plan.encode())
    return None if plan.masked is None else _Masked(plan.masked, plan.masked.fixed(plan.clip_norm))


def _remember(known: dict[_Key, _Value], key: _Key, value: _Value) -> None:
    known.pop(key, None)
    while len(known) >= _REMEMBERED:
        del known[next(iter(known))]
    known[key] = value
