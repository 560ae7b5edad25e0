"""What the coordinator is given from outside, beside the strategy: who lets an adapter through, and
which devices are believed."""

from __future__ import annotations

from typing import Literal, Protocol

from cascade.federation.terms import Attestation
from cloud.federation.rounds import Round

Verdict = Literal["approved", "rejected", "undecided"]


class Gate(Protocol):
    """Decides whether a candidate may become what devices start from, and later what they run."""

    async def judge(self, candidate: Round) -> tuple[Verdict, str]:
        """The verdict, and why in a line; asked again while it is ``"undecided"``."""
        ...


class NeedsApproval:
    """The gate of an operator who decides: ``cascade federation approve``."""

    async def judge(self, candidate: Round) -> tuple[Verdict, str]:
        """Never decides by itself."""
        return "undecided", "waits for `cascade federation approve` or `reject`"


class Attestor(Protocol):
    """Says which devices are believed."""

    async def accepts(self, public_key: bytes, statement: Attestation | None) -> bool:
        """Whether the platform's statement, or none, is enough for this key."""
        ...


class AnyDevice:
    """Believes every device that the gateway lets in."""

    async def accepts(self, public_key: bytes, statement: Attestation | None) -> bool:
        """Always."""
        return True
