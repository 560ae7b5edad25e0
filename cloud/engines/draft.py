"""Drafts: how far a model agrees with tokens that another one proposed, and how it goes on.

A draft is read many tokens at a time, a token is written one at a time: that is the whole gain. The
rule is the third token-specific one of speculative cascades (arXiv 2405.19261, section 4.4), for a
draft that comes without its distribution: with p the model's probabilities, a proposed token v is
kept while

    p(v) ≥ (1 − tolerance) · max p.

Tolerance 0 keeps a token only where greedy decoding would have written it: lossless, as far as
logits of a pass over many tokens and of one over a single token agree. They differ in their last
bits, so that two tokens whose logits are that close may change places.

A device's draft (``DraftProposal``) is taken by its token ids where both have one tokenizer file,
and else by its text, tokenised anew. What follows a text that breaks off may change the tokens of
its last word, which is then left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput
from cascade.local import CancelToken
from cascade.remote import Speed
from cascade.sampling import Sampling
from edge.parts import Decodes, Row, Sampler, Step

# Tokens of a draft that are read in one pass: what a cancelled request still computes.
_PASS_TOKENS: Final = 64


@dataclass(frozen=True, slots=True)
class Draft:
    """The beginning of an answer, as somebody else proposes it.

    Arguments:
        content: token ids of the same tokenizer, or text, which is tokenised anew.
        tolerance: in [0, 1): how much less probable than the best one a token may be.
    """

    content: tuple[int, ...] | str
    tolerance: float = 0.0

    def check(self) -> None:
        """Raise ``InvalidInput`` where the tolerance is out of range."""
        if not 0 <= self.tolerance < 1:
            raise InvalidInput("draft.tolerance", f"{self.tolerance:g} is not in 0 … 1, 1 excluded")


@dataclass(frozen=True, slots=True)
class DraftScore:
    """How far a model agrees with a draft.

    Arguments:
        tokens: of the draft, in this model's tokenizer.
        kept: how many of them, from the first on, are kept.
        text: of those.
        logprobs: natural log probabilities of the kept tokens and of the first that is not.
        gap: difference of the two largest logits where the first one is not kept; ``None`` where
            all are. Below about 10⁻³ the other choice was as good.
    """

    tokens: tuple[int, ...]
    kept: int
    text: str
    logprobs: tuple[float, ...]
    gap: float | None


class ReadsAhead(Decodes, Protocol):
    """A decoder that reads several tokens behind what it holds, and forgets them again."""

    def extend(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits after each of ``tokens``: float32, shape ``[tokens, vocab]``."""
        ...

    def keep(self, tokens: int) -> None:
        """Remember the first ``tokens`` of what was read, and not the rest."""
        ...


def keeps(logits: Row, token: int, tolerance: float) -> bool:
    """Whether a proposed token is kept.

    Arguments:
        logits: float32, shape ``[vocab]``, −inf for impossible tokens.
        tolerance: in [0, 1).
    """
    if tolerance == 0:
        return int(logits.argmax()) == token
    return bool(logits[token] >= logits.max() + math.log1p(-tolerance))


def score(
    decoder: ReadsAhead,
    prompt: Sequence[int],
    draft: Sequence[int],
    tolerance: float,
    cancel: CancelToken | None = None,
) -> tuple[int, tuple[float, ...], float | None]:
    """``kept``, ``logprobs`` and ``gap`` of a ``DraftScore``."""
    reader = DraftReader(decoder, draft)
    row = reader.read(prompt, cancel)
    logprobs: list[float] = []
    for index, token in enumerate(draft):
        top = float(row.max())
        log_z = top + math.log(float(np.exp(row - np.float32(top)).sum(dtype=np.float64)))
        logprobs.append(min(0.0, float(row[token]) - log_z))
        if not keeps(row, token, tolerance):
            second, first = np.partition(row, -2)[-2:]
            return index, tuple(logprobs), float(first - second)
        if reader.free_tokens == 0:
            return index + 1, tuple(logprobs), None
        if index + 1 < len(draft):
            row = reader.push(token)
    return len(draft), tuple(logprobs), None


class DraftReader:
    """Decodes along a draft: rows of logits come from one pass over many of its tokens, for as long
    as what is written follows it. Whoever chooses the tokens never notices, so the answer is the
    one without a draft.

    Arguments:
        decoder: reads; what it holds afterwards is what was written.
        draft: token ids of the decoder's vocabulary.
    """

    def __init__(self, decoder: ReadsAhead, draft: Sequence[int]) -> None:
        self._decoder = decoder
        self._draft = draft
        self._followed = 0  # tokens written that are the draft's
        self.rejected = 0
        """Tokens of the draft that were read and are no part of the answer."""
        self._length = 0  # tokens of prompt and answer
        self._ahead: list[Row] = []  # rows after draft tokens that are read and not yet written
        self._read_tokens = self._written_tokens = 0
        self._read_s = self._written_s = 0.0

    @property
    def free_tokens(self) -> int:
        """How many more tokens fit into the context."""
        return self._decoder.free_tokens + len(self._ahead)

    def read(self, tokens: Sequence[int], cancel: CancelToken | None = None) -> Row:
        """Logits that follow ``tokens``."""
        row = self._decoder.read(tokens, cancel)
        self._length, self._followed, self._ahead = len(tokens), 0, []
        return row

    @property
    def speed(self) -> Speed:
        """Of the decoder so far, the prompt aside."""
        return Speed(self._read_tokens, self._read_s, self._written_tokens, self._written_s)

    def end(self) -> None:
        """The answer is complete: forget what was read ahead of it."""
        if self._ahead:
            self.rejected += len(self._ahead)
            self._ahead = []
            self._decoder.keep(self._length)

    def push(self, token: int) -> Row:
        """Logits after one more token."""
        draft = self._draft
        follows = self._followed < len(draft) and draft[self._followed] == token
        if follows and not self._ahead:
            room = min(_PASS_TOKENS, self._decoder.free_tokens)
            more = draft[self._followed : self._followed + room]
            began = time.perf_counter()
            self._ahead = list(self._decoder.extend(more))
            self._read_s += time.perf_counter() - began
            self._read_tokens += len(more)
        self._length += 1
        if follows:
            self._followed += 1
            return self._ahead.pop(0)
        if self._ahead:
            self.rejected += len(self._ahead)
            self._ahead = []
            self._decoder.keep(self._length - 1)
        self._draft = ()  # never again
        began = time.perf_counter()
        row = self._decoder.push(token)
        self._written_s += time.perf_counter() - began
        self._written_tokens += 1
        return row


class KeptTokens:
    """Counts the draft's tokens that are a part of the answer, and tells once how many they are:
    as soon as another one is written, or when the answer ends.

    Arguments:
        draft: token ids.
        tell: is told their number.
    """

    def __init__(self, draft: Sequence[int], tell: Callable[[int], None]) -> None:
        self._draft = draft
        self._tell = tell
        self._kept = 0
        self._told = False

    def __call__(self, step: Step) -> None:
        """One more token of the answer."""
        if self._told:
            return
        follows = self._kept < len(self._draft) and self._draft[self._kept] == step.token
        self._kept += follows
        if not follows or self._kept == len(self._draft):
            self.end()

    def end(self) -> None:
        """The answer is complete."""
        if not self._told:
            self._told = True
            self._tell(self._kept)


class DraftSampler(Sampler):
    """Takes the draft's tokens while the model tolerates them, then chooses by itself.

    The rule looks at the logits behind penalty and grammar, so that a draft can break neither.

    Arguments:
        draft: token ids.
        tolerance: in (0, 1).
        sampling, vocab_size, seen: see ``Sampler``.
    """

    def __init__(
        self,
        draft: Sequence[int],
        tolerance: float,
        sampling: Sampling,
        vocab_size: int,
        seen: Iterable[int] = (),
    ) -> None:
        super().__init__(sampling, vocab_size, seen)
        self._draft = draft
        self._tolerance = tolerance
        self._position = 0

    @property
    def plain(self) -> bool:
        """Only behind the draft is the choice the largest logit as it is."""
        return self._position >= len(self._draft) and super().plain

    def pick(self, logits: Row, log_z: float | None) -> int:
        """The draft's token, or one that is drawn; see ``Sampler.pick``."""
        if self._position < len(self._draft):
            token = self._draft[self._position]
            if keeps(logits, token, self._tolerance):
                self._position += 1
                return token
            self._position = len(self._draft)
        return super().pick(logits, log_z)
