"""One decode on the device: in a worker thread, streamed, ended in time, stopped by a policy.

Whether what came of it is kept is not decided here; see ``cascade.policy``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

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
from cascade.task import generic


class LocalDecode:
    """The device's answer to one request. Read ``pieces`` to its end, then ``answer``.

    Arguments:
        policy: says how a closed set is worded and scored, and when to stop free text; ``None``
            takes a generic wording and writes to the end.
        stops: whether the policy's rule ends the decode. Where nobody else can answer it only
            takes note, for the rule's verdict is part of what was certified.
    """

    def __init__(
        self,
        model: LocalModel | LocalClassifier,
        request: Request,
        policy: Policy | None,
        *,
        stops: bool,
    ) -> None:
        self._model = model
        self._request = request
        self._policy = policy
        self._stops = stops
        rule = policy.early_stop if policy is not None and not request.options else None
        self._watch = rule.watch(request.max_tokens) if rule is not None else None
        self.answer: LocalAnswer | None = None
        """What there is of it; not ``whole`` where it was stopped, or time ran out."""

    @property
    def fired(self) -> bool:
        """Whether the policy's rule says that this answer will not be kept."""
        return self._watch is not None and self._watch.fired

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

        def on_text(text: str) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, text)

        enough = CancelToken()
        decode = asyncio.create_task(asyncio.to_thread(self._answer, on_text, cancel, enough))
        decode.add_done_callback(lambda _: pieces.put_nowait(None))
        expiry = loop.call_later(max(0.0, remaining_s), cancel.cancel)
        # An answer that time does not allow to check is an answer still.
        patience = loop.call_later(max(0.0, remaining_s - RETURN_MARGIN_S), enough.cancel)
        try:
            while (text := await pieces.get()) is not None:
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
            for timer, token in ((expiry, cancel), (patience, enough)):
                timer.cancel()
                token.cancel()
            if not decode.done():
                # The thread ends within one token; wait so that no decode outlives its request.
                with contextlib.suppress(CascadeError):
                    await asyncio.shield(decode)

    def _answer(
        self, on_text: Callable[[str], None], cancel: CancelToken, enough: CancelToken
    ) -> LocalAnswer:
        """Runs in a worker thread. ``enough`` ends the checks of an answer, not the answer."""
        answer, request = self._decode(on_text, cancel), self._request
        checks = self._policy.self_checks if self._policy is not None else ()
        if not checks or not answer.whole or not isinstance(self._model, LocalModel):
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

    def _decode(self, on_text: Callable[[str], None], cancel: CancelToken) -> LocalAnswer:
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
            on_token=self._look if self._watch is not None else None,
            cancel=cancel,
        )

    def _look(self, token: TokenSignals) -> bool:
        return self._watch is not None and self._watch(token) and self._stops

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
