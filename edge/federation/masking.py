"""A device's turns in a round under masks, as a value that outlives its process: what it says now,
and what the cluster's answer makes of that.

    ready (keys) → deal shares → send the masked update → who survived? → reveal shares

``Masking`` is stored whole before its message is sent. It holds secrets of this round alone, which
are gone with it; the update that is not masked yet lies beside it until it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Self, cast, get_args

import numpy as np

from cascade.errors import InvalidInput
from cascade.federation.masking import Delivered, Member, Roster, Survivors
from cascade.federation.plan import RoundPlan
from cascade.federation.tensors import Doubles
from cascade.federation.terms import Phase
from cascade.strict import Fields
from edge.federation.timer import Timer

PHASES: Final[tuple[Phase, ...]] = get_args(Phase)


@dataclass(frozen=True, slots=True)
class Masking:
    """Where a device is in a round under masks.

    Arguments:
        lease_id, round, base_digest, adapter_version: of its lease.
        plan: the lease's, as it was sent.
        phase, message: what it says now, again and again until the phase is complete.
        member: its secrets; see ``Member.to_bytes``.
        vector_sha256: of the update that is not masked yet, beside the state.
        expires: the lease's time.
    """

    lease_id: str
    round: int
    base_digest: str
    adapter_version: int
    plan: bytes
    phase: Phase
    message: bytes
    member: bytes
    vector_sha256: str
    expires: Timer

    def to_json(self) -> dict[str, object]:
        """As it is stored."""
        return {
            "lease_id": self.lease_id,
            "round": self.round,
            "base_digest": self.base_digest,
            "adapter_version": self.adapter_version,
            "plan": self.plan.decode(),
            "phase": self.phase,
            "message": self.message.hex(),
            "member": self.member.decode(),
            "vector_sha256": self.vector_sha256,
            "expires": self.expires.to_json(),
        }

    @classmethod
    def from_json(cls, value: object, where: str) -> Self:
        """Read what ``to_json`` gave.

        Raises:
            InvalidInput: a field is missing or unusable.
        """
        fields = Fields(value, where)
        try:
            message = bytes.fromhex(fields.text("message"))
        except ValueError:
            raise InvalidInput(f"{where}.message", "is not hex") from None
        masking = cls(
            lease_id=fields.text("lease_id"),
            round=fields.integer("round", 1, 2**53),
            base_digest=fields.text("base_digest"),
            adapter_version=fields.integer("adapter_version", 1, 2**53),
            plan=fields.text("plan").encode(),
            phase=cast(Phase, fields.choice("phase", PHASES)),
            message=message,
            member=fields.text("member").encode(),
            vector_sha256=fields.sha256("vector_sha256"),
            expires=Timer.from_json(fields.take("expires"), f"{where}.expires"),
        )
        fields.end()
        return masking

    def after_roster(self, result: bytes) -> Masking:
        """With shares dealt to those who take part.

        Raises:
            InvalidInput: the roster is not the plan's, or lets too few be summed.
        """
        member, roster = Member.from_bytes(self.member), Roster.from_bytes(result)
        masked = RoundPlan.from_bytes(self.plan).masked
        if masked is None or roster.threshold != masked.threshold:
            raise InvalidInput("roster.threshold", "is not the one of the plan")
        if len(roster.members) > masked.cohort:
            raise InvalidInput("roster.members", "are more than the plan says")
        dealt = member.deal(roster).to_bytes()
        return self._turn("share_keys", dealt, member)

    def after_delivery(
        self, result: bytes, values: Doubles, rng: np.random.Generator
    ) -> tuple[Masking, bytes]:
        """With the shares of the others held; and the masked update, to be uploaded.

        Raises:
            InvalidInput: too few have dealt, or one of them a wrong share.
        """
        member, plan = Member.from_bytes(self.member), RoundPlan.from_bytes(self.plan)
        if plan.masked is None:
            raise InvalidInput("plan.masked", "is missing")
        fixed = plan.masked.fixed(plan.clip_norm)
        payload = member.masked(Delivered.from_bytes(result), values, fixed, rng)
        return self._turn("survivors", b"", member), payload

    def after_survivors(self, result: bytes) -> Masking:
        """With the shares that unmask the sum, and nothing else.

        Raises:
            InvalidInput: too few survived, or it was asked before.
        """
        member = Member.from_bytes(self.member)
        revealed = member.reveal(Survivors.from_bytes(result)).to_bytes()
        return self._turn("unmask", revealed, member)

    def _turn(self, phase: Phase, message: bytes, member: Member) -> Masking:
        return replace(self, phase=phase, message=message, member=member.to_bytes())


def ready(
    *,
    lease_id: str,
    round_number: int,
    base_digest: str,
    adapter_version: int,
    plan: bytes,
    least: int,
    vector_sha256: str,
    expires: Timer,
) -> Masking:
    """The first turn: this device has trained, and tells its keys.

    Arguments:
        least: devices, fewer than which it is not summed with.
    """
    member = Member(least)
    return Masking(
        lease_id,
        round_number,
        base_digest,
        adapter_version,
        plan,
        "advertise_keys",
        member.keys().to_bytes(),
        member.to_bytes(),
        vector_sha256,
        expires,
    )
