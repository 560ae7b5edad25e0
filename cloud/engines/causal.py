"""What a decoder of any runtime needs to answer: text, grammars, closed sets and drafts around it.

Decoding is the device's (``edge.parts``), so that a tier and a device with the same logits give the
same answers and scores.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cascade.draft import DraftProposal, tokens_within
from cascade.errors import InvalidInput
from cascade.files import sha256_file
from cascade.local import CancelToken, LocalAnswer, Prompt
from cascade.remote import Speed
from cascade.request import Message, is_unicode
from cascade.sampling import GREEDY, Sampling
from cascade.signals import EMPTY_SIGNALS
from cloud.engines.draft import (
    Draft,
    DraftReader,
    DraftSampler,
    DraftScore,
    KeptTokens,
    ReadsAhead,
    score,
)
from edge.parts import (
    CHAT_TEMPLATE,
    PLAIN_TEMPLATE,
    TOKENIZER,
    Chooser,
    Ending,
    FolderText,
    Grammars,
    OnText,
    Row,
    Sampler,
    TextCodec,
    TreeNode,
    generate,
)


class CausalDecoder(ReadsAhead, Protocol):
    """Token ids in, rows of logits out; see ``edge.decoder.Decoder`` for what each promises."""

    @property
    def vocab_size(self) -> int:
        """Length of a row."""
        ...

    def read_tree(
        self,
        tokens: Sequence[int],
        nodes: Sequence[TreeNode],
        cancel: CancelToken | None = None,
        *,
        known: int = 0,
    ) -> NDArray[np.float32]:
        """Logits after ``tokens`` and the path to each of ``nodes[known:]``."""
        ...

    def read(self, tokens: Sequence[int], cancel: CancelToken | None = None) -> Row:
        """Logits that follow ``tokens``."""
        ...

    def forget(self) -> int:
        """Hold nothing any more; returns the number of tokens forgotten."""
        ...


class FolderFiles:
    """Tokenizer and template of a Hugging Face folder, as a bundle has them.

    Arguments:
        folder: with ``tokenizer.json``.
        scratch: where the two files are written.

    Raises:
        InvalidInput: the tokenizer is missing or unusable.
    """

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.file = scratch.joinpath
        text = FolderText(folder)
        self.end_tokens = text.stop_token_ids()
        raw = sha256_file(folder / TOKENIZER)
        try:
            template = text.chat_template()
        except InvalidInput:  # a model that was never taught to chat
            template = PLAIN_TEMPLATE
        self.file(TOKENIZER).write_text(text.tokenizer(), encoding="utf-8")
        self.file(CHAT_TEMPLATE).write_text(template, encoding="utf-8")
        self.tokenizer_digests = frozenset((raw, sha256_file(self.file(TOKENIZER))))
        """sha256 of the tokenizer's file, as it is in the folder and as a bundle of it has it."""


class CausalModel:
    """Answers with one decoder. Not thread-safe, but for ``count_tokens``.

    Arguments:
        decoder: of the same vocabulary as the tokenizer.
        files: tokenizer and chat template, and the ids that end an answer.
    """

    def __init__(self, decoder: CausalDecoder, files: FolderFiles) -> None:
        self._decoder = decoder
        self._codec = TextCodec(files)
        self._end_tokens = frozenset(files.end_tokens)
        self._grammars = Grammars(files.file(TOKENIZER), decoder.vocab_size, files.end_tokens)
        self._chooser = Chooser(self._codec, decoder)
        self._tokenizer_digests = files.tokenizer_digests

    def count_tokens(self, prompt: Prompt) -> int:
        """Tokens of a prompt with its template."""
        return len(self._codec.encode(prompt))

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        stop: tuple[str, ...] = (),
        sampling: Sampling = GREEDY,
        json_schema: str | None = None,
        regex: str | None = None,
        draft: Draft | DraftProposal | None = None,
        on_kept: Callable[[int], None] | None = None,
        on_speed: Callable[[Speed], None] | None = None,
        on_text: OnText | None = None,
        cancel: CancelToken | None = None,
    ) -> LocalAnswer:
        """Answer freely, or within a grammar; see ``LocalModel.generate``.

        Arguments:
            draft: with tolerance 0 the answer is the one without it, only sooner; else its tokens
                stand for as long as they are tolerated.
            on_kept: told once how many of the draft's tokens the answer begins with: of a
                proposal's as the device counts them, else as this model does. Not where there are
                none.
            on_speed: told at the end how fast the draft was read, and the rest written.

        Raises:
            InvalidInput: an argument is out of its range; it is named.
            CascadeError: a grammar is given, and llguidance is not installed.
        """
        if max_tokens < 1:
            raise InvalidInput("max_tokens", f"{max_tokens} is below 1")
        if not all(stop):
            raise InvalidInput("stop", "contains an empty string")
        if stop and (json_schema is not None or regex is not None):
            raise InvalidInput("stop", "cannot be combined with json_schema or regex; leave it out")
        sampling.check()
        matcher = self._grammars.matcher(json_schema, regex)
        ids = self._codec.encode(prompt)
        proposed: DraftProposal | None = None
        if isinstance(draft, DraftProposal):
            proposed, draft = draft, self.fitted(draft)
        drafted = () if draft is None else self.draft_tokens(draft)

        def tell(kept: int) -> None:
            if on_kept is not None:
                on_kept(kept if proposed is None else self._kept_of(proposed, drafted[:kept]))

        vocab, reader = self._decoder.vocab_size, DraftReader(self._decoder, drafted)
        kept = KeptTokens(drafted, tell) if draft is not None else None
        answer = generate(
            reader,
            ids,
            text=self._codec.stream(),
            sampler=(
                Sampler(sampling, vocab, ids)
                if draft is None or draft.tolerance == 0
                else DraftSampler(drafted, draft.tolerance, sampling, vocab, ids)
            ),
            ending=Ending(max_tokens, stop, self._end_tokens),
            matcher=matcher,
            on_text=on_text,
            on_token=kept,
            cancel=cancel,
        )
        reader.end()
        if kept is not None:
            kept.end()
            if on_speed is not None:
                on_speed(reader.speed)
        return dataclasses.replace(answer, prompt_tokens=answer.prompt_tokens + reader.rejected)

    def prefill(self, prompt: Prompt, cancel: CancelToken | None = None) -> LocalAnswer:
        """Read all of a prompt but its last token, whose logits nobody asks for yet, so that what
        answers it next goes on from there. The answer is empty.

        Raises:
            InvalidInput: the prompt does not fit the context.
            Cancelled: ``cancel`` was used; what was read by then is held.
        """
        ids = self._codec.encode(prompt)
        began = time.perf_counter()
        if len(ids) > 1:
            self._decoder.read(ids[:-1], cancel)
        seconds = time.perf_counter() - began
        return LocalAnswer("", EMPTY_SIGNALS, None, len(ids), 0, seconds, 0.0, "stop")

    def choose(
        self, prompt: Prompt, options: tuple[str, ...], *, cancel: CancelToken | None = None
    ) -> LocalAnswer:
        """Answer with one of ``options``; see ``LocalModel.choose``."""
        return self._chooser.choose(prompt, options, cancel=cancel)

    def score_draft(
        self, prompt: tuple[Message, ...], draft: Draft, cancel: CancelToken | None = None
    ) -> DraftScore:
        """How far this model agrees with ``draft`` after ``prompt``.

        Raises:
            InvalidInput: an id is not in the vocabulary, or the tolerance is out of range.
            Cancelled: ``cancel`` was used.
        """
        tokens = self.draft_tokens(draft)
        ids = self._codec.encode(prompt)
        kept, logprobs, gap = score(self._decoder, ids, tokens, draft.tolerance, cancel)
        stream = self._codec.stream()
        text = "".join(map(stream.push, tokens[:kept]))
        return DraftScore(tokens, kept, text, logprobs, gap)

    def draft_tokens(self, draft: Draft) -> tuple[int, ...]:
        """The draft in this model's tokens.

        Raises:
            InvalidInput: see ``score_draft``.
        """
        draft.check()
        if isinstance(draft.content, str):
            if not is_unicode(draft.content):
                raise InvalidInput("draft", "is not valid Unicode (lone surrogate)")
            return tuple(self._codec.encode_plain(draft.content))
        last = self._decoder.vocab_size - 1
        if not all(0 <= token <= last for token in draft.content):
            raise InvalidInput("draft", f"has ids that are not in 0 … {last}")
        return draft.content

    def fitted(self, proposal: DraftProposal) -> Draft:
        """A device's draft for this model.

        Raises:
            InvalidInput: the text is not valid Unicode.
        """
        if self._same_tokens(proposal):
            return Draft(proposal.tokens, proposal.tolerance)
        if not is_unicode(proposal.text):
            raise InvalidInput("draft", "is not valid Unicode (lone surrogate)")
        encode = self._codec.encode_plain if proposal.complete else self._codec.encode_stable
        return Draft(tuple(encode(proposal.text)), proposal.tolerance)

    def _same_tokens(self, proposal: DraftProposal) -> bool:
        same = bool(proposal.tokens) and proposal.tokenizer_digest in self._tokenizer_digests
        return same and max(proposal.tokens) < self._decoder.vocab_size

    def _kept_of(self, proposal: DraftProposal, kept: Sequence[int]) -> int:
        """How many of the device's tokens lie in the text of those that are kept."""
        if self._same_tokens(proposal):
            return len(kept)
        stream = self._codec.stream()
        text = "".join(map(stream.push, kept))
        return tokens_within(proposal.lengths, len(text.encode()))

    def forget_prefix(self) -> int:
        """Forget what was read; returns the number of tokens forgotten."""
        return self._decoder.forget()
