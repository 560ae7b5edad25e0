"""Drafts: the device's own answer, proposed to the cluster, which keeps what it agrees with.

A tier reads many tokens of a draft in the time in which it writes a few. Whether that is worth what
it takes is arithmetic on four numbers (``Drafting``); a draft on its way is a ``DraftTape``, one
that has arrived a ``DraftProposal``. Which tokens a tier keeps is decided by the tier's engine.
"""

from __future__ import annotations

import asyncio
import threading
from bisect import bisect_right
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal, Protocol, Self, cast, get_args

from cascade.errors import InvalidInput
from cascade.strict import Fields

DraftMode = Literal["off", "lossless", "threshold"]
"""``"lossless"``: the tier's answer is the one without a draft. ``"threshold"``: tokens are kept
that are nearly as probable as the best one; see ``Drafting.tolerance``."""

MAX_DRAFT_TOKENS: Final = 1 << 15
MAX_DRAFT_BYTES: Final = 1 << 18
"""Bytes of text of the longest draft that a gateway reads."""


@dataclass(frozen=True, slots=True)
class Drafting:
    """Whether the device proposes its answer to the cluster, and what that is expected to bring.

    The model: each token of a draft is kept with probability a (``acceptance``) if all before it
    are. A kept token saves the tier c seconds of writing (``write_s``), and each token of the draft
    costs r seconds of reading (``read_s``), kept or not. So a draft of n tokens saves

        c · (a + a² + … + aⁿ) − r · n   seconds,

    which grows as long as aⁿ · c > r: longer drafts are cut there. While the device still writes,
    at d seconds a token, the cluster waits for it, so that one more token behind n is worth it
    while

        aⁿ⁺¹ · c > r + d.

    Otherwise the device stops: a tier that writes no slower than the device reads nothing sooner.

    Arguments:
        mode: see ``DraftMode``.
        tolerance: for ``"threshold"``, in (0, 1): how much less probable than the most probable
            token, in the tier's own eyes, a token of the draft may be; 0 otherwise.
        acceptance: a, in (0, 1).
        write_s, read_s: c and r, > 0, of the tiers that are expected to answer.
    """

    mode: DraftMode = "lossless"
    tolerance: float = 0.0
    acceptance: float = 0.8
    write_s: float = 0.1
    read_s: float = 0.02

    @classmethod
    def parse(cls, text: str, where: str = "draft") -> Self:
        """``off``, ``lossless`` or ``threshold=T``.

        Arguments:
            where: how it is called in messages.

        Raises:
            InvalidInput: it is something else.
        """
        mode, _, value = text.partition("=")
        try:
            given = float(value) if value else 0.0
        except ValueError:
            given = -1.0
        if mode not in get_args(DraftMode) or bool(value) != (mode == "threshold"):
            raise InvalidInput(where, f"{text!r} is none of off, lossless, threshold=T")
        drafting = cls(cast(DraftMode, mode), given)
        drafting.check(where)
        return drafting

    @property
    def words(self) -> str:
        """Its mode, as ``parse`` reads it."""
        return f"{self.mode}={self.tolerance:g}" if self.mode == "threshold" else self.mode

    @property
    def on(self) -> bool:
        """Whether there are drafts at all."""
        return self.mode != "off"

    def check(self, where: str = "draft") -> None:
        """Raise ``InvalidInput`` naming the first field that is out of range."""
        if self.mode not in get_args(DraftMode):
            known = ", ".join(get_args(DraftMode))
            raise InvalidInput(f"{where}.mode", f"{self.mode!r} is none of {known}")
        threshold = self.mode == "threshold"
        if threshold and not 0 < self.tolerance < 1:
            raise InvalidInput(f"{where}.tolerance", f"{self.tolerance:g} is not between 0 and 1")
        if not threshold and self.tolerance != 0:
            raise InvalidInput(f"{where}.tolerance", "is for the mode threshold alone")
        if not 0 < self.acceptance < 1:
            raise InvalidInput(f"{where}.acceptance", f"{self.acceptance:g} is not between 0 and 1")
        for name, seconds in (("write_s", self.write_s), ("read_s", self.read_s)):
            if not 0 < seconds < float("inf"):
                raise InvalidInput(f"{where}.{name}", f"{seconds} is not a time above 0 s")

    def saved_s(self, tokens: int) -> float:
        """Seconds that a draft of so many tokens is expected to save; negative where it costs."""
        a = self.acceptance
        return self.write_s * a * (1 - a**tokens) / (1 - a) - self.read_s * tokens

    def worth_sending(self, tokens: int) -> int:
        """How many of the first ``tokens`` are worth their reading; 0 for none, and never more than
        a gateway reads."""
        worth, gained = 0, self.acceptance
        while worth < min(tokens, MAX_DRAFT_TOKENS) and gained * self.write_s > self.read_s:
            worth, gained = worth + 1, gained * self.acceptance
        return worth

    def worth_waiting(self, tokens: int, token_s: float) -> bool:
        """Whether one more token behind ``tokens`` is worth the wait.

        Arguments:
            token_s: d, seconds in which the device writes a token.
        """
        return float(self.acceptance ** (tokens + 1)) * self.write_s > self.read_s + token_s

    def to_json(self) -> dict[str, object]:
        """A plain dict for ``json.dumps``; ``from_json`` gives back an equal one."""
        return {
            "mode": self.mode,
            "tolerance": self.tolerance,
            "acceptance": self.acceptance,
            "write_s": self.write_s,
            "read_s": self.read_s,
        }

    @classmethod
    def from_json(cls, value: object, where: str = "policy.drafting") -> Self:
        """What ``to_json`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or out of range; it is named.
        """
        fields = Fields(value, where)
        drafting = cls(
            cast(DraftMode, fields.choice("mode", get_args(DraftMode))),
            fields.number("tolerance"),
            fields.number("acceptance"),
            fields.number("write_s"),
            fields.number("read_s"),
        )
        fields.end()
        drafting.check(where)
        return drafting


@dataclass(frozen=True, slots=True)
class DraftProposal:
    """A draft that has arrived.

    Arguments:
        tokens: in the device's vocabulary; may be empty, and the text alone is there.
        lengths: bytes of ``text`` that each token completes.
        text: of all tokens.
        complete: it is a whole answer; otherwise its last word may be a part of one.
        tolerance: in [0, 1): how much less probable than the best one a token may be.
        tokenizer_digest: sha256 of the device's tokenizer file; empty where it is not known.
    """

    tokens: tuple[int, ...]
    lengths: tuple[int, ...]
    text: str
    complete: bool
    tolerance: float = 0.0
    tokenizer_digest: str = ""

    @property
    def most_tokens(self) -> int:
        """An upper bound on its tokens in any vocabulary: a token holds at least one byte."""
        return max(len(self.tokens), len(self.text.encode()))

    def __bool__(self) -> bool:
        return bool(self.tokens or self.text)


class IncomingDraft(Protocol):
    """A draft that is still arriving."""

    async def whole(self) -> DraftProposal:
        """All of it, or what has come when the time that a draft may take is over.

        Raises:
            InvalidInput: the device sends something that is no draft.
        """
        ...


def tokens_within(lengths: Sequence[int], kept_bytes: int) -> int:
    """How many leading tokens lie in the first ``kept_bytes`` of their text. A token that completes
    no character belongs to the next one that does.

    Arguments:
        lengths: bytes that each token completes, ≥ 0.
    """
    ends = list(accumulate(lengths))
    count = bisect_right(ends, kept_bytes)
    if count == len(ends):
        return count
    while count and lengths[count - 1] == 0:
        count -= 1
    return count


@dataclass(frozen=True, slots=True)
class DraftPiece:
    """Tokens of a draft that follow each other; ``offset`` is the place of the first one."""

    offset: int
    text: str
    tokens: tuple[int, ...]
    lengths: tuple[int, ...]


class DraftTape:
    """A draft on the device: written by the thread that decodes, read by the call that sends it.

    It is kept from its beginning, so that a call which is made again sends all of it again.

    Arguments:
        drafting: how it is to be judged, and how much of it is worth sending.
    """

    def __init__(self, drafting: Drafting) -> None:
        self.drafting = drafting
        self.sent = 0
        """Tokens that the last call has taken."""
        self._lock = threading.Lock()
        self._tokens: list[int] = []
        self._texts: list[list[str]] = []
        self._ended = False
        self._complete = False
        self._readers: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    @property
    def ended(self) -> bool:
        """Whether nothing more is written."""
        return self._ended

    @property
    def tokens(self) -> int:
        """Tokens so far."""
        return len(self._tokens)

    @property
    def text(self) -> str:
        """Text of all tokens so far."""
        with self._lock:
            return "".join(piece for pieces in self._texts for piece in pieces)

    def add_token(self, token: int) -> None:
        """One more token; what ``add_text`` adds from now on is its text."""
        with self._lock:
            self._tokens.append(token)
            self._texts.append([])
            self._wake()

    def add_text(self, text: str) -> None:
        """Text that the last token completes."""
        with self._lock:
            if self._texts:
                self._texts[-1].append(text)

    def end(self, *, complete: bool) -> None:
        """Nothing more is written; may be called again.

        Arguments:
            complete: what is there is a whole answer.
        """
        with self._lock:
            if not self._ended:
                self._ended, self._complete = True, complete
            self._wake()

    @property
    def complete(self) -> bool:
        """Whether what is sent is a whole answer."""
        return self._complete and self.drafting.worth_sending(len(self._tokens)) == len(
            self._tokens
        )

    async def pieces(self) -> AsyncGenerator[DraftPiece]:
        """All of it from the beginning, as far as it is worth sending, and more as it is written;
        ends when nothing more comes."""
        self.sent = 0
        event = asyncio.Event()
        with self._lock:
            self._readers[event] = asyncio.get_running_loop()
        try:
            while True:
                event.clear()
                piece, last = self._after(self.sent)
                if piece is not None:
                    self.sent += len(piece.tokens)
                    yield piece
                if last:
                    return
                await event.wait()
        finally:
            with self._lock:
                del self._readers[event]

    def _after(self, offset: int) -> tuple[DraftPiece | None, bool]:
        """Tokens from ``offset`` on whose text is known, and whether no others follow."""
        with self._lock:
            # The text of the last token may still be growing.
            known = len(self._tokens) if self._ended else max(0, len(self._tokens) - 1)
            end = self.drafting.worth_sending(known)
            last = self._ended or end < known
            if end <= offset:
                return None, last
            texts = ["".join(pieces) for pieces in self._texts[offset:end]]
            piece = DraftPiece(
                offset,
                "".join(texts),
                tuple(self._tokens[offset:end]),
                tuple(len(text.encode()) for text in texts),
            )
        return piece, last

    def _wake(self) -> None:
        """The lock is held."""
        for event, loop in self._readers.items():
            loop.call_soon_threadsafe(event.set)
