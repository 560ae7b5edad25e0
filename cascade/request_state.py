"""What one request has gathered on its way, and the answers that can be made of it.

Bookkeeping alone: nothing is asked, waited for or decided here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cascade.draft import Drafting, DraftTape
from cascade.errors import InvalidInput, RemoteError
from cascade.events import DEVICE, Answer, Event, Latency, Superseded, Token
from cascade.local import LocalAnswer, ModelInfo
from cascade.policy import Decision, Policy, Reason
from cascade.remote import DeviceReport, Finished, Transfer
from cascade.request import Request
from cascade.signals import EMPTY_SIGNALS, ScoreBounds

if TYPE_CHECKING:
    from cascade.decision_record import DecisionRecord
    from cascade.local_decode import LocalDecode

RETURN_MARGIN_S: Final = 0.05
"""Kept back from what may still be waited for, so that a local answer can be returned in time."""


@dataclass(slots=True)
class Reply:
    """What the cluster has said of the answer that it is at; ``calls`` counts the tiers so far."""

    source: str = ""
    model: str = ""
    text: list[str] = field(default_factory=list)
    tokens: int = 0
    calls: int = 0
    draft_kept: int | None = None

    def add(self, piece: str, count: int) -> None:
        """One more piece, of ``count`` tokens."""
        self.text.append(piece)
        self.tokens += count


@dataclass(slots=True)
class RequestState:
    """One request under way.

    Arguments:
        model: what answers on the device, if anything does.
        reasons: why the device has no answer.
        local: its answer, or a part of one; see ``LocalAnswer.whole``.
        fired: the policy's rule for stopping early says that it will not be kept.
        saved: tokens that stopping saved, as far as that is known.
        thrown_away: tokens that the device decoded for nothing.
        shown: source of the text that the application holds.
        answer: the cluster's answer.
        decode: the device's decode, where it may be proposed to the cluster or still goes on.
        proposed: it, as it went along with the call.
        untold: the decision, until somebody is told of it.
    """

    request: Request
    model: ModelInfo | None = None
    started: float = field(default_factory=time.perf_counter)
    reasons: list[Reason] = field(default_factory=list)
    local: LocalAnswer | None = None
    local_problem: InvalidInput | None = None
    fired: bool = False
    saved: float | None = None
    thrown_away: int = 0
    transfer: Transfer = field(default_factory=Transfer)
    remote_s: float = 0.0
    remote_error: RemoteError | None = None
    shown: str | None = None
    answer: Answer | None = None
    decode: LocalDecode | None = None
    proposed: DraftTape | None = None
    untold: DecisionRecord | None = None

    @property
    def drafted(self) -> int:
        """Tokens that were sent as a draft."""
        return self.proposed.sent if self.proposed is not None else 0

    @property
    def cut(self) -> bool:
        """Whether the device has a part of an answer."""
        return self.local is not None and not self.local.whole

    @property
    def went_on(self) -> bool:
        """Whether a decode that was to be stopped went on as a draft."""
        return self.decode is not None and self.decode.went_on

    @property
    def raw_score(self) -> float | None:
        """Of the device's answer. That of a part would say nothing of the whole."""
        return self.local.raw_score if self.local and self.local.whole else None

    def reported(self, policy: Policy | None, decision: Decision) -> DeviceReport:
        """The same, with what the policy adds to it."""
        report = self.report(decision)
        return report if policy is None else policy.reported(report, self.local, decision)

    def drafting(self, policy: Policy | None) -> Drafting | None:
        """How the device's answer may be proposed to the cluster; ``None`` where it may not."""
        if self.request.options or self.request.tensors:
            return None
        drafting = self.request.drafting or (policy.drafting if policy is not None else None)
        return drafting if drafting is not None and drafting.on else None

    def draft(self, decision: Decision) -> DraftTape | None:
        """The draft that goes along; none of an answer that failed a check."""
        draft = self.decode.draft if self.decode is not None else None
        if draft is None or any(reason.startswith("veto:") for reason in decision.reasons):
            return None
        at_hand = draft.drafting.worth_sending(draft.tokens) > 0
        return draft if at_hand or not draft.ended else None

    def stop_drafting(self) -> None:
        """A tier goes on without waiting: what the device writes from here on is of no use."""
        if self.decode is not None:
            self.decode.stop_drafting()

    def remaining_s(self) -> float:
        """What is left of the deadline."""
        return self.request.constraints.deadline_s - (time.perf_counter() - self.started)

    def spare_s(self) -> float:
        """What may be waited for without missing it."""
        return self.remaining_s() - (RETURN_MARGIN_S if self.local is not None else 0.0)

    def report(self, decision: Decision) -> DeviceReport:
        """What the cluster is told of the device's answer."""
        if self.model is None or self.local is None:
            return DeviceReport()
        return DeviceReport(
            confidence=decision.confidence,
            raw_score=self.raw_score,
            base_digest=self.model.base_digest,
            adapter_digest=self.local.adapter_digest,
            tokenizer_digest=self.model.tokenizer_digest,
            signals=self.local.signals if self.local.whole else EMPTY_SIGNALS,
        )

    def finish(self, reply: Reply, finished: Finished, decision: Decision) -> list[Event]:
        """Set ``answer``; the events before it, where it is the device's own that is to be taken.
        Such a one that the device does not have is no answer."""
        shown: list[Event] = []
        if finished.tier == DEVICE:
            if self.local is None:
                return shown
            model = self.model.name if self.model else ""
            reply = Reply(DEVICE, model, [self.local.text], self.local.tokens, calls=2)
            shown = self.show_locally(self.local.text)
        self.answer = self._remote_answer(reply, finished, decision)
        return shown

    def show_locally(self, text: str) -> list[Event]:
        """What brings the device's own text to the application, where it does not hold it yet."""
        events: list[Event] = []
        if self.shown not in (None, DEVICE):  # a broken remote answer
            events.append(Superseded(DEVICE))
        if self.shown != DEVICE and text:
            events.append(Token(text, DEVICE, provisional=False))
        self.shown = DEVICE
        return events

    def _remote_answer(self, reply: Reply, finished: Finished, decision: Decision) -> Answer:
        """The answer that the cluster gave."""
        return Answer(
            request_id=self.request.request_id,
            text="".join(reply.text),
            source=finished.tier,
            model=finished.model or reply.model,
            confidence=finished.confidence,
            raw_score=self.raw_score,
            verified=True,
            reasons=(*decision.reasons, *finished.reasons),
            latency=self._latency(),
            # Of several tiers, the cluster counts the tokens together.
            tokens=reply.tokens if reply.calls > 1 else finished.completion_tokens,
            local_tokens=self._local_tokens(),
            cloud_prompt_tokens=finished.prompt_tokens,
            cloud_completion_tokens=finished.completion_tokens,
            bytes_up=self.transfer.bytes_up,
            bytes_down=self.transfer.bytes_down,
            cost_usd=finished.cost_usd,
            device_confidence=decision.confidence,
            finish=finished.reason,
            bounds=self._bounds(),
            expected_gain=decision.gain,
            local_tokens_saved=self.saved if self.cut and not self.went_on else None,
            draft_tokens=self.drafted,
            draft_kept=reply.draft_kept,
        )

    def local_answer(self, local: LocalAnswer, decision: Decision) -> Answer:
        """The answer that the device gives."""
        error = self.remote_error
        failed = (Reason.REMOTE_FAILED,) if error is not None else ()
        return Answer(
            request_id=self.request.request_id,
            text=local.text,
            source=DEVICE,
            model=self.model.name if self.model else "",
            confidence=decision.confidence,
            raw_score=self.raw_score,
            verified=decision.accept,
            reasons=(*decision.reasons, *failed),
            latency=self._latency(),
            tokens=local.tokens,
            local_tokens=self._local_tokens(),
            bytes_up=self.transfer.bytes_up,
            bytes_down=self.transfer.bytes_down,
            device_confidence=decision.confidence,
            remote_error=error.message if error else None,
            remote_status=error.status if error else None,
            finish="stop" if local.finish == "stop" else "length",
            bounds=self._bounds(),
            expected_gain=decision.gain,
            draft_tokens=self.drafted,
        )

    def _latency(self) -> Latency:
        prefill_s, decode_s = (
            (self.local.prefill_s, self.local.decode_s) if self.local else (0.0, 0.0)
        )
        return Latency(time.perf_counter() - self.started, prefill_s, decode_s, self.remote_s)

    def _local_tokens(self) -> int:
        written = self.local.tokens + self.local.check_tokens if self.local else 0
        return self.thrown_away + written

    def _bounds(self) -> ScoreBounds | None:
        return self.local.options.bounds if self.local and self.local.options else None
