"""The lowest rung of a ladder, on a device: judged as a policy of two sides is, and what the
cluster is told where the device's answer is not sure enough.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

from cascade.errors import InvalidInput
from cascade.files import sha256_bytes
from cascade.ladder.policy import LadderPolicy
from cascade.ladder.step import Heard, next_step
from cascade.local import LocalAnswer
from cascade.policy import Decision, Policy, Reason
from cascade.remote import DeviceReport
from cascade.request import Request


@dataclass(frozen=True, slots=True)
class DeviceRung(Policy):
    """What ``decide`` goes by on the device; its bytes and digest are those of the ladder.

    There is no certificate of the rung alone: the ladder's is about the whole.
    """

    ladder: LadderPolicy | None = None
    digest: str = ""

    @classmethod
    def of(cls, ladder: LadderPolicy) -> Self:
        """The device's rung of a ladder.

        Raises:
            InvalidInput: it does not begin with the device, or does not say what to ask whom.
        """
        first = ladder.ladder.tiers[0]
        infos = {tier.name: tier for tier in ladder.tiers}
        if infos[first].kind != "device":
            raise InvalidInput(
                "ladder", f"begins with {first}, so no device takes part; its cluster follows it"
            )
        if len(ladder.ladder.tiers) == 1:
            raise InvalidInput("ladder", "has no tier above the device")
        if first not in ladder.confidence:
            raise InvalidInput("ladder.confidence", f"has no model for {first}")
        if ladder.wording is None:
            raise InvalidInput("ladder.wording", "is missing: a device follows it for a closed set")
        if not infos[first].base_digest:
            raise InvalidInput("ladder.tiers", f"do not say which model {first} was (base_digest)")
        return cls(
            task=ladder.wording,
            base_digest=infos[first].base_digest,
            adapter_digest=infos[first].adapter_digest,
            confidence=ladder.confidence[first],
            threshold=ladder.ladder.thresholds[0],
            certificate=None,
            ladder=ladder,
            digest=sha256_bytes(ladder.to_bytes()),
        )

    def to_bytes(self) -> bytes:
        """The bytes of the ladder, which are signed."""
        return b"" if self.ladder is None else self.ladder.to_bytes()

    def onward(self, request: Request, answer: LocalAnswer | None) -> Request:
        """The same for the tiers alone that the ladder would still ask; as it is where the request
        allows none of them. See ``Policy.onward``."""
        if self.ladder is None:
            return request
        tiers = self.ladder.ladder.tiers
        said = Heard("", answer.raw_score) if answer else Heard()
        step = next_step(self.ladder, {tiers[0]: said})
        left = frozenset(tiers[tiers.index(step.tier) if step.ask else 1 :])
        allowed = request.constraints.allowed_tiers
        left = left if allowed is None else left & allowed
        if not left:
            return request
        constraints = dataclasses.replace(request.constraints, allowed_tiers=left)
        return dataclasses.replace(request, constraints=constraints)

    def reported(
        self, report: DeviceReport, answer: LocalAnswer | None, decision: Decision
    ) -> DeviceReport:
        """The report with the device's answer as a rung, where it was merely not sure enough: one
        that failed a check, or was judged by nothing, is not to be compared or taken."""
        counts = decision.reasons == (Reason.UNSURE,)
        return dataclasses.replace(
            report,
            ladder_digest=self.digest,
            answer_sha256=sha256_bytes(answer.text.encode()) if answer and counts else "",
        )
