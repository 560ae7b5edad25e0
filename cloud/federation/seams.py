"""What the coordinator is given from outside, beside the strategy: who lets an adapter through, and
which devices are believed."""

from __future__ import annotations

from importlib import import_module
from typing import Literal, Protocol

from cascade.errors import InvalidInput
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


def attestor_named(name: str) -> Attestor:
    """What ``module:callable`` gives, called without arguments.

    Raises:
        InvalidInput: there is no such thing where the gateway runs, or it is no ``Attestor``.
    """
    module, _, attribute = name.partition(":")
    try:
        made = getattr(import_module(module), attribute)()
    except Exception as problem:  # whatever an operator's module raises
        raise InvalidInput(
            "federation.attestor",
            f"{name} cannot be made ({type(problem).__name__}: {problem}); the module must be "
            "importable where gateways run",
        ) from None
    if not callable(getattr(made, "accepts", None)):
        raise InvalidInput(
            "federation.attestor", f"{name} gives a {type(made).__name__}, which has no `accepts`"
        )
    attestor: Attestor = made
    return attestor
