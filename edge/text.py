"""Text to token ids and back: the bundle's tokenizer and its chat template.

Text that a user wrote never becomes a control token: only the template may write those.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Protocol

import minijinja
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from cascade.errors import BundleError, InvalidInput
from cascade.local import Prompt
from cascade.request import Message, is_unicode
from edge.bundle import CHAT_TEMPLATE, TOKENIZER

# Private-use characters that stand for a message while the template is rendered around it.
_OPEN, _CLOSE = "\ue000", "\ue001"


class TextFiles(Protocol):
    """Where ``tokenizer.json`` and ``chat_template.jinja`` are: a ``Bundle``, or a folder's."""

    def file(self, name: str, /) -> Path:
        """The path of a file."""
        ...


class TextCodec:
    """Tokenizer and chat template of one bundle.

    Raises:
        BundleError: a file cannot be read by this version of the libraries.
    """

    def __init__(self, bundle: TextFiles) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(bundle.file(TOKENIZER)))
        except Exception as problem:  # tokenizers raises bare Exception
            raise BundleError(f"{TOKENIZER}: cannot be read ({problem})") from None
        # ``encode_special_tokens`` is a switch on the shared tokenizer.
        self._switch = threading.Lock()
        self._control_tokens = frozenset(
            index
            for index, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special
        )
        try:
            template = bundle.file(CHAT_TEMPLATE).read_text(encoding="utf-8")
            self._templates = compiled(template)
        except UnicodeDecodeError as problem:
            raise BundleError(f"{CHAT_TEMPLATE}: cannot be read ({problem})") from None
        except InvalidInput as problem:
            raise BundleError(f"{CHAT_TEMPLATE}: {problem.problem}") from None

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a completion prompt, or of a conversation up to the answer's first token.

        Raises:
            InvalidInput: the prompt is empty, or not valid Unicode.
        """
        contents = [prompt] if isinstance(prompt, str) else [m.content for m in prompt]
        if not all(map(is_unicode, contents)):
            raise InvalidInput("prompt", "is not valid Unicode (lone surrogate)")
        if isinstance(prompt, str):
            return self.encode_plain(prompt)
        if not prompt:
            raise InvalidInput("prompt", "is empty; write what you want to ask")
        # As a whole is how models are trained to read it. That must not find control tokens which
        # the template did not write: not in a message, nor where a message meets the template.
        whole = self._encode(self._render(prompt), control_tokens=True)
        apart = self._encode_apart(prompt)
        return whole if self._control(whole) == self._control(apart) else apart

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of a text in which nothing is a control token."""
        return self._encode(text, control_tokens=False)

    def encode_stable(self, text: str) -> list[int]:
        """Token ids of the beginning of ``text`` that stay the same however it goes on: without the
        last word, as the tokenizer splits words, and without white space at the end, whose split
        depends on what follows. None where the tokenizer knows no words.
        """
        with self._switch:
            self._tokenizer.encode_special_tokens = True
            read = self._tokenizer.encode(text, add_special_tokens=False)
        words, count = read.word_ids, len(read.ids)
        if any(word is None for word in words):
            return []

        def drop() -> None:
            nonlocal count
            last = words[count - 1]
            while count and words[count - 1] == last:
                count -= 1

        if count:
            drop()
        while count and not text[slice(*read.offsets[count - 1])].strip():
            drop()
        return list(read.ids[:count])

    def decode(self, tokens: list[int]) -> str:
        """Text of ``tokens`` without control tokens."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def stream(self) -> TokenStream:
        """A decoder of one answer, token by token."""
        return TokenStream(self._tokenizer)

    def _encode(self, text: str, *, control_tokens: bool) -> list[int]:
        with self._switch:
            self._tokenizer.encode_special_tokens = not control_tokens
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _control(self, ids: list[int]) -> list[int]:
        return [token for token in ids if token in self._control_tokens]

    def _encode_apart(self, messages: tuple[Message, ...]) -> list[int]:
        """Encode template and messages apart, so that a written ``<|im_end|>`` stays text."""
        marked = tuple(
            Message(message.role, f"{_OPEN}{index}{_CLOSE}")
            for index, message in enumerate(messages)
        )
        ids: list[int] = []
        for piece in self._render(marked).split(_OPEN):
            index, mark, rest = piece.partition(_CLOSE)
            if mark:
                ids += self.encode_plain(messages[int(index)].content)
                ids += self._encode(rest, control_tokens=True)
            else:
                ids += self._encode(piece, control_tokens=True)
        return ids

    def _render(self, messages: tuple[Message, ...]) -> str:
        try:
            return self._templates.render_template(
                "chat",
                messages=[{"role": m.role, "content": m.content} for m in messages],
                add_generation_prompt=True,
            )
        except minijinja.TemplateError as problem:
            raise BundleError(
                f"{CHAT_TEMPLATE}: cannot render this conversation ({_first_line(problem)})"
            ) from None


def compiled(template: str) -> minijinja.Environment:
    """The chat template, as ``"chat"`` of an environment that renders as transformers does.

    Raises:
        InvalidInput: ``template`` is no Jinja template.
    """
    environment = minijinja.Environment(trim_blocks=True, lstrip_blocks=True, pycompat=True)
    try:
        environment.add_template("chat", template)
    except minijinja.TemplateError as problem:
        raise InvalidInput(
            "chat_template", f"is no Jinja template ({_first_line(problem)})"
        ) from None
    return environment


def _first_line(problem: minijinja.TemplateError) -> str:
    """What is wrong and where, without the source that follows."""
    return str(problem).splitlines()[0]


class TokenStream:
    """Turns tokens into text as they come; holds back incomplete characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def push(self, token: int) -> str:
        """Text that ``token`` completes; may be empty."""
        return self._stream.step(self._tokenizer, token) or ""
