"""Conversations: turns that build on each other, kept within the model's context.

The device remembers what it computed for a conversation's earlier turns, so that a turn costs only
its own tokens; that is ``edge.cache``'s doing. Here are the words, and what happens when they grow
too many.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import Literal

from cascade.errors import InvalidInput
from cascade.events import Event, Final
from cascade.request import Message
from edge.portal import Portal

Overflow = Literal["drop_oldest", "refuse"]

AskAll = Callable[[tuple[Message, ...], int], AsyncGenerator[Event, None]]
"""Asks a whole conversation for at most so many tokens: ``AsyncDevice.run``, the rest filled in."""

CountTokens = Callable[[tuple[Message, ...]], int]


class AsyncConversation:
    """A conversation with an ``AsyncDevice``; make one with ``AsyncDevice.conversation``.

    Attributes:
        messages: what was said, with the system message first. A turn that failed or was left
            early is not in it.
        dropped: messages that no longer fit into the context and are not sent any more.
    """

    def __init__(
        self,
        ask: AskAll,
        count_tokens: CountTokens | None,
        context_tokens: int,
        *,
        system: str = "",
        overflow: Overflow = "drop_oldest",
    ) -> None:
        self.messages: list[Message] = [Message("system", system)] if system else []
        self.dropped = 0
        self._kept_first = len(self.messages)
        self._ask_all = ask
        self._count_tokens = count_tokens
        self._context_tokens = context_tokens
        self._overflow = overflow
        self._turn = threading.Lock()

    async def ask(self, text: str, *, max_tokens: int = 256) -> AsyncGenerator[Event, None]:
        """Ask the next question; see ``AsyncDevice.ask`` for the events.

        Raises:
            InvalidInput: another turn is under way, or the text does not fit.
        """
        if not self._turn.acquire(blocking=False):
            raise InvalidInput(
                "conversation",
                "is answering another question; wait for its end, or open one for each thread",
            )
        try:
            question = Message("user", text)
            prompt, dropped = self._fitting(question, max_tokens)
            async with aclosing(self._ask_all(prompt, max_tokens)) as events:
                async for event in events:
                    if isinstance(event, Final):
                        reply = Message("assistant", event.answer.text)
                        self.messages += [question, reply]
                        self.dropped = dropped
                    yield event
        finally:
            self._turn.release()

    def _fitting(self, question: Message, max_tokens: int) -> tuple[tuple[Message, ...], int]:
        """What is sent: the system message and as many last turns as leave room for an answer; and
        how many messages that leaves out. A turn that fails drops nothing for good."""
        first, dropped = self._kept_first, self.dropped
        while True:
            prompt = (*self.messages[:first], *self.messages[first + dropped :], question)
            if self._count_tokens is None or len(prompt) == first + 1:
                return prompt, dropped
            # A long answer may be cut by the context; half of it is for what was said.
            room = self._context_tokens - min(max_tokens, self._context_tokens // 2)
            tokens = self._count_tokens(prompt)
            if tokens <= room:
                return prompt, dropped
            if self._overflow == "refuse":
                raise InvalidInput(
                    "conversation",
                    f"has {tokens} tokens, which leaves no room for an answer in a context of "
                    f"{self._context_tokens}; start a new one, or let it drop its oldest turns",
                )
            dropped += 2


class Conversation:
    """A conversation with a ``Device``; make one with ``Device.conversation``. One thread uses it
    at a time; any number of conversations share a device."""

    def __init__(self, portal: Portal, conversation: AsyncConversation) -> None:
        self._portal = portal
        self._conversation = conversation

    @property
    def messages(self) -> tuple[Message, ...]:
        """What was said, with the system message first."""
        return tuple(self._conversation.messages)

    @property
    def dropped(self) -> int:
        """Messages that no longer fit into the context and are not sent any more."""
        return self._conversation.dropped

    def ask(self, text: str, *, max_tokens: int = 256) -> Iterator[Event]:
        """Ask the next question; see ``Device.ask`` for the events."""
        return self._portal.iterate(self._conversation.ask(text, max_tokens=max_tokens))
