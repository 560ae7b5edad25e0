"""What becomes of an audited answer's second opinion: a label, or nothing and why not.

An answer of a closed set is right where the tier gives the same one. Two free texts hardly ever are
the same, so those take a grader (``cascade.graders``), for which the tier's answer is the
reference; one that needs no reference labels by itself, and nobody is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from cascade.errors import CascadeError, InvalidInput, RemoteError
from cascade.monitor.health import Source
from cascade.request import Request

if TYPE_CHECKING:
    from cascade.graders import Grader

Ask = Callable[[], Awaitable[str]]
"""Asks the cluster the same, and gives its answer."""


class Unlabelled(Exception):
    """There is no label; the text says why, and nothing of input or answers."""


class Opinions:
    """Labels audited answers.

    Arguments:
        grader: spec of what compares free text; empty where none does.

    Raises:
        InvalidInput: the spec cannot be used, or not for this.
    """

    def __init__(self, grader: str = "") -> None:
        self._grader = _comparing(grader) if grader else None

    def source(self, request: Request, *, can_ask: bool) -> Source | None:
        """Who would label an answer to ``request``; ``None`` where nobody can.

        Arguments:
            can_ask: the request may leave the device, and there is a cluster.
        """
        grader = None if request.options else self._grader
        if grader is not None and not _compares(grader):
            return "grader"
        return "tier" if can_ask and (request.options or grader is not None) else None

    async def wrong(self, request: Request, text: str, ask: Ask | None) -> bool:
        """Whether an answer is labelled as wrong.

        Arguments:
            text: the answer.
            ask: needed where ``source`` is the tier.

        Raises:
            Unlabelled: the cluster could not be asked, or its answer cannot be compared.
        """
        if request.options:
            other = await _asked(ask)
            if other not in request.options:
                raise Unlabelled("the tier gave none of the options")
            return other != text
        if self._grader is None:
            raise Unlabelled("no grader compares free text")
        reference = await _asked(ask) if _compares(self._grader) else None
        return await _graded(self._grader, request, text, reference) == 0


def _comparing(spec: str) -> Grader:
    # Not needed on devices that audit no free text.
    from cascade.graders import grader

    found = grader(spec)
    name = spec.partition(":")[0]
    if found.grade is None or name == "choice" or spec == "regex":
        raise InvalidInput(
            "grader",
            f"{spec} cannot compare two free texts; give exact, normalised, numeric[:TOLERANCE], "
            "regex:EXPRESSION or python:MODULE:FUNCTION",
        )
    return found


def _compares(grader: Grader) -> bool:
    """Whether it takes the tier's answer; a function of the user's may."""
    return grader.needs_reference or not grader.pure


async def _asked(ask: Ask | None) -> str:
    if ask is None:
        raise Unlabelled("nobody to ask")
    try:
        return await ask()
    except RemoteError as problem:
        raise Unlabelled(problem.status) from None
    except CascadeError as problem:
        # Not the message, which may quote the input.
        raise Unlabelled(type(problem).__name__) from None


async def _graded(grader: Grader, request: Request, text: str, reference: str | None) -> float:
    from cascade.graders import Answered

    answered = Answered(request.text, text, reference)
    try:
        # A function of the user's may take its time.
        grade = grader(answered) if grader.pure else await asyncio.to_thread(grader, answered)
    except InvalidInput:
        raise Unlabelled(f"the grader {grader.spec} cannot grade it") from None
    if grade not in (0, 1):
        raise Unlabelled(f"the grader {grader.spec} says neither right nor wrong")
    return grade
