"""Keeps text that a user wrote text, in front of llama.cpp, which takes it for more.

llama.cpp renders a conversation into one string and reads every control token in it as one, whoever
wrote it. Here template and messages are tokenised apart; where that gives other tokens than the
string as a whole, the conversation has to be sent as these tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from cascade.request import Message

Post = Callable[[str, Mapping[str, object]], dict[str, Any]]
"""Sends a JSON object to a path of llama.cpp's server and gives back its reply."""

# Private-use characters that stand for a message while the template is rendered around it.
_OPEN, _CLOSE = "\ue000", "\ue001"
_TEMPLATES_KEPT: Final = 64


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of the template, and the message that follows it; ``None`` at the end."""

    text: str
    ids: tuple[int, ...]
    message: int | None


class ConversationTokens:
    """How conversations are tokenised for one model.

    Arguments:
        post: reaches the server that runs it.
    """

    def __init__(self, post: Post) -> None:
        self._post = post
        # The same for all conversations with the same turns.
        self._template = lru_cache(_TEMPLATES_KEPT)(self._rendered)

    def where_needed(self, messages: tuple[Message, ...]) -> list[int] | None:
        """Token ids of the conversation up to the answer's first token, or ``None`` where
        llama.cpp's own reading of it is the same."""
        template = self._template(tuple(turn.role for turn in messages))
        whole = ""
        apart: list[int | str] = []
        for piece in template:
            whole += piece.text
            apart += piece.ids
            if piece.message is not None:
                whole += messages[piece.message].content
                apart.append(messages[piece.message].content)
        ids = self._tokens(apart, control_tokens=False)
        return None if ids == self._tokens(whole, control_tokens=True, start=True) else ids

    def _rendered(self, roles: tuple[str, ...]) -> tuple[_Piece, ...]:
        marked = [
            {"role": role, "content": f"{_OPEN}{index}{_CLOSE}"} for index, role in enumerate(roles)
        ]
        prompt = str(self._post("/apply-template", {"messages": marked})["prompt"])
        first, *others = prompt.split(_OPEN)
        texts = [first]
        order: list[int | None] = []
        for part in others:
            index, _, text = part.partition(_CLOSE)
            order.append(int(index))
            texts.append(text)
        return tuple(
            _Piece(text, tuple(self._tokens(text, control_tokens=True, start=at == 0)), message)
            for at, (text, message) in enumerate(zip(texts, [*order, None], strict=True))
        )

    def _tokens(
        self, content: str | list[int | str], *, control_tokens: bool, start: bool = False
    ) -> list[int]:
        """Tokens of a text, or of texts between tokens.

        Arguments:
            start: whether the model's start token comes first, if it has one.
        """
        body = {"content": content, "parse_special": control_tokens, "add_special": start}
        return [int(token) for token in self._post("/tokenize", body)["tokens"]]
