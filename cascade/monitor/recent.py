"""The last answers that a device kept under a policy, for those who judge them later."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from cascade.errors import NotFound
from cascade.policy import Policy

RECENT = 1024
"""So many are remembered."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """An accepted answer.

    Arguments:
        generation: of the policy's monitor when it was accepted.
        drawn: the probability with which it was drawn for an audit, or ``None`` where it was not.
        graded: needs no grader any more.
        reported: a user has spoken.
    """

    policy: Policy
    generation: int
    drawn: float | None
    graded: bool
    reported: bool = False


class Recent:
    """Answers by request id, the oldest first. Each is reported on once, and graded once."""

    def __init__(self) -> None:
        self._answers: OrderedDict[str, Accepted] = OrderedDict()

    def add(self, request_id: str, answer: Accepted) -> None:
        """Remember one, and forget the oldest where there are too many."""
        self._answers[request_id] = answer
        self._answers.move_to_end(request_id)
        while len(self._answers) > RECENT:
            self._answers.popitem(last=False)

    def report(self, request_id: str) -> Accepted:
        """The answer that a user speaks of.

        Raises:
            NotFound: no such answer is remembered: not accepted, reported already, or too long ago.
        """
        answer = self._answers.get(request_id)
        if answer is None or answer.reported:
            raise NotFound(
                f"request {request_id}: none of the last {RECENT} answers that this device kept "
                "under a policy, or reported already"
            )
        self._answers[request_id] = replace(answer, reported=True)
        return answer

    def waiting(self) -> list[str]:
        """Request ids of the answers that were drawn and have no grade."""
        return [name for name, answer in self._answers.items() if _waits(answer)]

    def grade(self, request_id: str) -> tuple[Accepted, float]:
        """The answer that a grader speaks of, and the probability with which it was drawn.

        Raises:
            NotFound: it does not wait for one.
        """
        answer = self._answers.get(request_id)
        if answer is None or answer.drawn is None or answer.graded:
            raise NotFound(f"request {request_id}: does not wait for a grader (Monitor.to_grade)")
        self._answers[request_id] = replace(answer, graded=True)
        return answer, answer.drawn


def _waits(answer: Accepted) -> bool:
    return answer.drawn is not None and not answer.graded
