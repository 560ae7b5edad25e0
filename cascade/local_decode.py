"""One decode on the device: in a worker thread, streamed, ended in time, stopped by a policy.

Whether what came of it is kept is not decided here; see ``cascade.policy``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from cascade.draft import Drafting, DraftTape
from cascade.errors import Cancelled, CascadeError, DeadlineExceeded
from cascade.local import (
    CancelToken,
    LocalAnswer,
    LocalClassifier,
    LocalModel,
    TokenSignals,
    Unreadable,
)
from cascade.policy import Policy
from cascade.request import Request
from cascade.request_state import RETURN_MARGIN_S
from cascade.self_check import self_checked
from cascade.signals import EMPTY_SIGNALS
from cascade.task import generic


@dataclass(frozen=True, slots=True)
class _Left:
    """A decode under way, and what ends it in time."""

    decode: asyncio.Task[LocalAnswer]
    timers: tuple[asyncio.TimerHandle, ...]
    tokens: tuple[CancelToken, ...]

    async def end(self) -> None:
        """End it, and wait for that: the thread ends within one token, and no decode is to outlive
        its request."""
        for timer in self.timers:
            timer.cancel()
        for token in self.tokens:
            token.cancel()
        if not self.decode.done():
            with contextlib.suppress(CascadeError):
                await asyncio.shield(self.decode)


class LocalDecode:
    """The device's answer to one request. Read ``pieces`` to its end, then ``answer``.

    Arguments:
        policy: says how a closed set is worded and scored, and when to stop free text; ``None``
            takes a generic wording and writes to the end.
        stops: whether the policy's rule ends the decode. Where nobody else can answer it only
            takes note, for the rule's verdict is part of what was certified.
        drafting: how the answer may be proposed to the cluster; ``None`` where it may not.
        goes_on: whether it may be written on as a draft where the rule stops it. ``pieces`` ends
            there all the same; ``leave`` ends the decode.
    """

    def __init__(
        self,
        model: LocalModel | LocalClassifier,
        request: Request,
        policy: Policy | None,
        *,
        stops: bool,
        drafting: Drafting | None = None,
        goes_on: bool = False,
    ) -> None:
        self._model = model
        self._request = request
        self._policy = policy
        self._stops = stops
        rule = policy.early_stop if policy is not None and not request.options else None
        self._watch = rule.watch(request.max_tokens) if rule is not None else None
        self._goes_on = goes_on
        self._began = self._first_token_at = 0.0
        self._drafts_on = False
        self._enough = False  # of a draft
        self._left: _Left | None = None
        self.draft = DraftTape(drafting) if drafting is not None else None
        """The answer as it may be proposed; ``None`` where it may not."""
        self.answer: LocalAnswer | None = None
        """What there is of it; not ``whole`` where it was stopped, or time ran out."""

    @property
    def fired(self) -> bool:
        """Whether the policy's rule says that this answer will not be kept."""
        return self._watch is not None and self._watch.fired

    @property
    def went_on(self) -> bool:
        """Whether it was written on as a draft where the rule stops it."""
        return self._drafts_on

    @property
    def saved(self) -> float | None:
        """Tokens that stopping saved; see ``Answer.local_tokens_saved``."""
        return self._watch.saved if self._watch is not None and self._stops else None

    async def pieces(self, remaining_s: float) -> AsyncGenerator[str, None]:
        """The text while it is written. Closing this stops the decode.

        Arguments:
            remaining_s: how long it may take.

        Raises:
            InvalidInput: the model cannot read the request, or a field of it is unusable.
            DeadlineExceeded: time ran out; ``answer`` may hold what there was by then.
        """
        cancel = CancelToken()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self._began = time.perf_counter()

        def on_text(text: str) -> None:
            if self.draft is not None:
                self.draft.add_text(text)
            loop.call_soon_threadsafe(pieces.put_nowait, text)

        def hand_over() -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, None)

        enough = CancelToken()
        decode = asyncio.create_task(
            asyncio.to_thread(self._answer, on_text, hand_over, cancel, enough)
        )
        decode.add_done_callback(lambda _: pieces.put_nowait(None))
        expiry = loop.call_later(max(0.0, remaining_s), cancel.cancel)
        # An answer that time does not allow to check is an answer still.
        patience = loop.call_later(max(0.0, remaining_s - RETURN_MARGIN_S), enough.cancel)
        try:
            said: list[str] = []
            while (text := await pieces.get()) is not None:
                said.append(text)
                yield text
            if not decode.done() and self.draft is not None:
                self.answer = self._part("".join(said), time.perf_counter() - self._began)
                self._left = _Left(decode, (expiry, patience), (cancel, enough))
                return
            while not pieces.empty():  # it ended while it was handed over
                if (text := pieces.get_nowait()) is not None:
                    yield text
            self.answer = await decode
            if self.answer.finish == "cancelled":
                raise Cancelled("the local decode was stopped")
        except Cancelled:
            if not cancel.cancelled:
                raise
            raise DeadlineExceeded(
                f"the deadline of {self._request.constraints.deadline_s:g} s passed before the "
                "device had an answer; allow more time"
            ) from None
        finally:
            if self._left is None:
                await _Left(decode, (expiry, patience), (cancel, enough)).end()

    def stop_drafting(self) -> None:
        """Let a decode that goes on as a draft end behind its next token."""
        self._enough = True

    async def leave(self) -> None:
        """End a decode that goes on, and take what it has written by now as the answer; nothing
        to do for any other."""
        left, self._left = self._left, None
        if left is None:
            return
        self.stop_drafting()
        try:
            # The callback ends it behind a token, with all that was measured.
            with contextlib.suppress(CascadeError):
                self.answer = await asyncio.shield(left.decode)
        finally:
            await left.end()

    def _answer(
        self,
        on_text: Callable[[str], None],
        hand_over: Callable[[], None],
        cancel: CancelToken,
        enough: CancelToken,
    ) -> LocalAnswer:
        """Runs in a worker thread. ``enough`` ends the checks of an answer, not the answer."""
        request, whole = self._request, False
        try:
            answer = self._decode(on_text, hand_over, cancel)
            whole = answer.finish == "stop"
        finally:
            if self.draft is not None:
                self.draft.end(complete=whole)
        checks = self._policy.self_checks if self._policy is not None else ()
        judged = not self._drafts_on
        if not (checks and judged and answer.whole and isinstance(self._model, LocalModel)):
            return answer
        bare = not (request.options or request.json_schema or request.regex)
        return self_checked(
            self._model,
            answer,
            checks,
            question=request.text,
            prompt=request.messages if bare else None,
            max_tokens=request.max_tokens,
            stop=request.stop,
            cancel=enough,
        )

    def _part(self, text: str, seconds: float) -> LocalAnswer:
        """What is known of an answer that is still written; ``leave`` finds out the rest."""
        first_s = max(0.0, min(seconds, self._first_token_at - self._began))
        return LocalAnswer(
            text=text,
            signals=EMPTY_SIGNALS,
            options=None,
            prompt_tokens=0,
            tokens=self.draft.tokens if self.draft is not None else 0,
            prefill_s=first_s,
            decode_s=seconds - first_s,
            finish="callback",
            adapter_digest=self._model.info.adapter_digest,
        )

    def _decode(
        self, on_text: Callable[[str], None], hand_over: Callable[[], None], cancel: CancelToken
    ) -> LocalAnswer:
        model, request = self._model, self._request
        if request.tensors:
            if not isinstance(model, LocalClassifier):
                raise Unreadable("tensors", f"{model.info.name} on this device reads text alone")
            return model.classify(request.tensors, options=request.options, cancel=cancel)
        if not isinstance(model, LocalModel):
            raise Unreadable(
                "prompt", f"{model.info.name} on this device reads tensors alone; call classify"
            )
        if request.options:
            return self._choose(model, cancel)
        return model.generate(
            request.messages,
            max_tokens=request.max_tokens,
            stop=request.stop,
            sampling=request.sampling,
            json_schema=request.json_schema,
            regex=request.regex,
            on_text=on_text,
            on_token=functools.partial(self._look, hand_over)
            if self._watch is not None or self.draft is not None
            else None,
            cancel=cancel,
        )

    def _look(self, hand_over: Callable[[], None], token: TokenSignals) -> bool:
        """Whether the decode ends behind this token. Runs in the worker thread."""
        if self.draft is not None:
            self.draft.add_token(token.token)
            if self._first_token_at == 0.0:
                self._first_token_at = time.perf_counter()
        if self._drafts_on:
            return self._enough or not self._worth_more()
        if self._watch is None or not self._watch(token) or not self._stops:
            return False
        if self._goes_on and self._worth_more():
            self._drafts_on = True
            hand_over()
            return False
        return True

    def _worth_more(self) -> bool:
        """Whether the cluster had better wait for another token of the draft."""
        draft = self.draft
        if draft is None or draft.tokens < 2:
            return False  # nobody knows yet how long a token takes
        token_s = (time.perf_counter() - self._first_token_at) / (draft.tokens - 1)
        return draft.drafting.worth_waiting(draft.tokens, token_s)

    def _choose(self, model: LocalModel, cancel: CancelToken) -> LocalAnswer:
        """In the task's own order and wording: a calibration holds for nothing else."""
        request, policy = self._request, self._policy
        task = policy.task if policy else generic(request.options)
        return model.choose(
            task.for_device(request.text),
            task.options,
            prior_prompt=task.prior_prompt(),
            option_prefix=task.option_prefix,
            mode=request.mode or (policy.confidence.mode if policy else None),
            cancel=cancel,
        )
