"""Keeps an answer within a grammar: which tokens may come next, one mask a token.

What grammars there are, and why llguidance keeps them, is said in ``cascade.structured``.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput
from cascade.structured import check_json_schema, check_regex, grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer


class Grammars:
    """Makes matchers for one tokenizer, which is read on first use (about half a second).

    Arguments:
        tokenizer_file: ``tokenizer.json``.
        vocab_size: length of the rows of logits.
        end_tokens: ids with which the model ends an answer; a grammar allows them where the answer
            may end.
    """

    def __init__(self, tokenizer_file: Path, vocab_size: int, end_tokens: Sequence[int]) -> None:
        self._file = tokenizer_file
        self._vocab_size = vocab_size
        self._end_tokens = list(end_tokens)
        self._tokenizer: LLTokenizer | None = None
        self._lock = threading.Lock()

    def matcher(self, json_schema: str | None, regex: str | None) -> Matcher | None:
        """A matcher at the start of an answer, or ``None`` where neither is given.

        Raises:
            InvalidInput: both are given, or the one that is cannot be kept.
            CascadeError: llguidance is not installed.
        """
        if json_schema is None and regex is None:
            return None
        if json_schema is not None and regex is not None:
            raise InvalidInput("regex", "cannot be combined with json_schema; give one of them")
        if regex is not None:
            check_regex(regex)
        else:
            check_json_schema(json_schema or "")
        text = grammar(json_schema, regex)
        from llguidance import LLMatcher

        field = "regex" if regex is not None else "json_schema"
        return Matcher(LLMatcher(self._read(), text, log_level=0), self._vocab_size, field)

    def _read(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = LLTokenizer(
                    str(self._file), n_vocab=self._vocab_size, eos_token=self._end_tokens
                )
            return self._tokenizer


class Matcher:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, field: str) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._field = field
        self._check()

    def allowed(self) -> NDArray[np.bool_]:
        """Tokens that may come next: bool, shape ``[vocab]``, at least one.

        Raises:
            InvalidInput: the grammar is too complex here.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)

    def push(self, token: int) -> bool:
        """Go on by an allowed token; true where the answer is complete and nothing can follow.

        Raises:
            InvalidInput: the grammar is too complex here.
        """
        self._matcher.consume_token(token)
        self._check()
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InvalidInput(self._field, "is too complex to be kept while decoding; simplify it")
