"""A simulated device's connection, which may be lost at a moment that the simulation chooses."""

from __future__ import annotations

from typing import Final, Literal

from cascade.errors import RemoteError
from cascade.federation.terms import Committed, Phase, PhaseMessage, PhaseReply, UploadHeader
from cascade.wire import ClientProfile, GrpcFederation

Absence = Literal["none", "off", "cut_off", "after_keys", "after_update"]
"""``off``: does nothing in this round. ``cut_off``: loses its connection before its update is sent.
Under masks, ``after_keys``: before it has dealt its shares; ``after_update``: before it has
revealed what unmasks the sum, which its update is in."""

_SILENT: Final[dict[Absence, tuple[Phase, ...]]] = {
    "after_keys": ("share_keys", "survivors", "unmask"),
    "after_update": ("survivors", "unmask"),
}
"""Phases of which such a device says nothing any more."""


class Connection(GrpcFederation):
    """A device's connection.

    Attributes:
        lost: how it was, in this round; ``none`` as long as nothing was to be sent since.
        bytes_up: of payloads that were sent to the end, and of messages under masks. What is said
            again, because the others have not come yet, counts once a round: how often that is
            depends on who comes first.
        messages_up: of them, the messages.
    """

    def __init__(self, profile: ClientProfile) -> None:
        super().__init__(profile, deadline_s=120.0)
        self.lost: Absence = "none"
        self.bytes_up = self.messages_up = 0
        self._absence: Absence = "none"
        self._joined = False
        self._said: set[tuple[str, Phase]] = set()

    def absent(self, absence: Absence) -> None:
        """How it is lost in the round that begins."""
        self._absence, self._joined = absence, False
        self._said.clear()
        self.lost = "off" if absence == "off" else "none"

    async def upload(
        self, header: UploadHeader, payload: bytes, *, quiet_s: float = 120.0
    ) -> Committed:
        """See ``GrpcFederation``."""
        if self._absence == "cut_off":
            raise self._gone("the update")
        self.bytes_up += len(payload) - header.offset
        return await super().upload(header, payload, quiet_s=quiet_s)

    async def exchange(self, message: PhaseMessage) -> PhaseReply:
        """See ``GrpcFederation``."""
        # What is left of an earlier round is still told.
        if self._joined and message.phase in _SILENT.get(self._absence, ()):
            raise self._gone(f"the phase {message.phase}")
        said = message.lease_id, message.phase
        if said not in self._said:
            self._said.add(said)
            self.bytes_up += len(message.payload)
            self.messages_up += len(message.payload)
        reply = await super().exchange(message)
        self._joined = self._joined or message.phase == "advertise_keys"
        return reply

    def _gone(self, before: str) -> RemoteError:
        self.lost = self._absence
        return RemoteError("UNAVAILABLE", f"the connection was lost before {before}")
