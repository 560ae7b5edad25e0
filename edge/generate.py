"""The loop that writes a free answer: choose a token, give its text out, decode the next row.

What a token's choice depends on is elsewhere: the distribution in ``edge.sampling``, a grammar in
``edge.structured``, the text in ``edge.text``. Signals are those of the model's own distribution,
before any penalty, grammar, filter or temperature: they say how sure the model is, not how it was
asked to draw.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from cascade.errors import BundleError
from cascade.local import CancelToken, Finish, LocalAnswer
from edge.decoder import Row
from edge.measure import RowStats, SignalLog, row_stats
from edge.sampling import Sampler
from edge.structured import Matcher
from edge.text import TokenStream


class Decodes(Protocol):
    """What writing needs of a decoder; see ``edge.decoder.Decoder``."""

    def read(self, tokens: Sequence[int], cancel: CancelToken | None = None) -> Row: ...

    def push(self, token: int) -> Row: ...

    @property
    def free_tokens(self) -> int: ...


class Step(NamedTuple):
    """One token as it was chosen.

    Arguments:
        token: its id.
        logprob: its natural log probability by the model's own distribution, ≤ 0.
        entropy: of that distribution, in nats, ≥ 0.
        margin: difference of its two largest probabilities, in [0, 1].
    """

    token: int
    logprob: float
    entropy: float
    margin: float


OnText = Callable[[str], bool | None]
"""Told each new piece of text; returning true ends the answer behind that piece."""
OnToken = Callable[[Step], bool | None]
"""Told each token before its text; returning true ends the answer behind that token."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What ends an answer.

    Arguments:
        max_tokens: upper bound on its tokens, ≥ 1.
        stop: strings before whose first it ends.
        tokens: ids at which it ends; they are not part of it.
    """

    max_tokens: int
    stop: tuple[str, ...]
    tokens: frozenset[int]


def generate(
    decoder: Decodes,
    prompt: list[int],
    *,
    text: TokenStream,
    sampler: Sampler,
    ending: Ending,
    matcher: Matcher | None = None,
    on_text: OnText | None = None,
    on_token: OnToken | None = None,
    cancel: CancelToken | None = None,
) -> LocalAnswer:
    """Read ``prompt`` and write the answer; see ``OnnxModel.generate``.

    Raises:
        InvalidInput: the prompt does not fit the context.
        Cancelled: ``cancel`` was used before the prompt was read.
        BundleError: the logits are not numbers.
    """
    started = time.perf_counter()
    logits = decoder.read(prompt, cancel)
    read_at = time.perf_counter()
    writer = _Writer(text, ending.stop, on_text)
    log = SignalLog()
    finish = _write(
        decoder,
        logits,
        sampler=sampler,
        matcher=matcher,
        ending=ending,
        writer=writer,
        log=log,
        on_token=on_token,
        cancel=cancel,
    )
    return LocalAnswer(
        text=writer.finish(),
        signals=log.signals(),
        options=None,
        prompt_tokens=len(prompt),
        tokens=len(log.logprobs),
        prefill_s=read_at - started,
        decode_s=time.perf_counter() - read_at,
        finish=finish,
    )


def _write(
    decoder: Decodes,
    logits: Row,
    *,
    sampler: Sampler,
    matcher: Matcher | None,
    ending: Ending,
    writer: _Writer,
    log: SignalLog,
    on_token: OnToken | None,
    cancel: CancelToken | None,
) -> Finish:
    while True:
        if cancel is not None and cancel.cancelled:
            return "cancelled"
        stats = row_stats(logits)
        if not math.isfinite(stats.log_z):
            raise BundleError("the model's logits are not finite numbers; its weights are damaged")
        token = _choose(logits, stats, sampler, matcher)
        if token in ending.tokens:
            return "stop"
        logprob = min(0.0, float(logits[token]) - stats.log_z)
        log.add(logprob, stats)
        step = Step(token, logprob, stats.entropy, stats.margin)
        if on_token is not None and on_token(step):
            writer.push(token)
            return "callback"
        ended = writer.push(token)
        if ended is not None:
            return ended
        if matcher is not None and matcher.push(token):
            return "stop"
        if len(log.logprobs) == ending.max_tokens or decoder.free_tokens == 0:
            return "length"
        logits = decoder.push(token)


def _choose(logits: Row, stats: RowStats, sampler: Sampler, matcher: Matcher | None) -> int:
    if sampler.plain and matcher is None:
        return stats.argmax
    allowed = matcher.allowed() if matcher is not None else None
    return sampler.draw(logits, allowed, stats.log_z)


class _Writer:
    """Text of one answer: streams it, and ends it before the first stop string."""

    def __init__(self, stream: TokenStream, stop: tuple[str, ...], on_text: OnText | None) -> None:
        self._stream = stream
        self._stop = stop
        self._on_text = on_text
        self._sent: list[str] = []
        self._held = ""
        self._enough = False

    def push(self, token: int) -> Finish | None:
        """Add a token; why the answer ends here, if it does."""
        self._held += self._stream.push(token)
        ends = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if ends:
            self._send(min(ends))
            self._held = ""
            return "stop"
        self._send(len(self._held) - self._possible_stop())
        if self._enough:
            # The reader wanted no more than it got: what was held back is not sent after it.
            self._held = ""
            return "callback"
        return None

    def finish(self) -> str:
        """Send what was held back, and give the whole text."""
        self._send(len(self._held))
        return "".join(self._sent)

    def _possible_stop(self) -> int:
        """Length of the longest end of the held text that may begin a stop string."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest

    def _send(self, length: int) -> None:
        if length:
            text, self._held = self._held[:length], self._held[length:]
            self._sent.append(text)
            if self._on_text is not None and self._on_text(text):
                self._enough = True
