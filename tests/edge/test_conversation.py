"""Turns build on each other, fit the context, and leave nothing behind when they fail."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator

import pytest

from cascade.errors import InvalidInput
from cascade.events import Answer, Event, Final, Latency
from cascade.request import Message
from edge import Device
from edge.conversation import AsyncConversation
from edge.decoder import Decoder


async def said(events: AsyncGenerator[Event, None]) -> str:
    return "".join([event.answer.text async for event in events if isinstance(event, Final)])


class Parrot:
    """Answers with the number of the messages it was sent; a word is a token."""

    def __init__(self) -> None:
        self.prompts: list[tuple[Message, ...]] = []

    async def ask(
        self, messages: tuple[Message, ...], max_tokens: int
    ) -> AsyncGenerator[Event, None]:
        self.prompts.append(messages)
        if messages[-1].content.startswith("fail"):
            raise InvalidInput("prompt", "cannot be answered")
        yield Final(
            Answer(
                request_id="r",
                text=f"heard {len(messages)}",
                source="device",
                model="parrot",
                confidence=None,
                raw_score=None,
                verified=False,
                reasons=(),
                latency=Latency(total_s=0.0),
                tokens=2,
            )
        )

    @staticmethod
    def count(messages: tuple[Message, ...]) -> int:
        return sum(len(message.content.split()) for message in messages)


@pytest.fixture
def parrot():
    return Parrot()


async def test_turns_build_on_each_other(parrot):
    talk = AsyncConversation(parrot.ask, parrot.count, 100, system="Be brief.")
    assert await said(talk.ask("one")) == "heard 2"
    assert await said(talk.ask("two")) == "heard 4"
    assert [message.role for message in parrot.prompts[-1]] == [
        "system", "user", "assistant", "user",
    ]  # fmt: skip
    assert talk.messages[-1] == Message("assistant", "heard 4")


async def test_a_failed_turn_is_forgotten(parrot):
    talk = AsyncConversation(parrot.ask, parrot.count, 100)
    await said(talk.ask("one"))
    with pytest.raises(InvalidInput):
        await said(talk.ask("fail"))
    assert await said(talk.ask("two")) == "heard 3"


async def test_the_oldest_turns_are_dropped_and_the_system_message_stays(parrot):
    talk = AsyncConversation(parrot.ask, parrot.count, 20, system="Be brief.")
    for _ in range(6):
        await said(talk.ask("a question of five words", max_tokens=4))
    # 16 tokens are for the prompt: 2 of the system, 7 of the last turn, 5 of the question.
    assert [len(prompt) for prompt in parrot.prompts] == [2, 4, 4, 4, 4, 4]
    assert all(prompt[0].content == "Be brief." for prompt in parrot.prompts)
    assert talk.dropped == 8
    assert len(talk.messages) == 13  # nothing that was said is lost to the app


async def test_a_turn_that_fails_drops_nothing(parrot):
    talk = AsyncConversation(parrot.ask, parrot.count, 20)
    await said(talk.ask("one two"))
    with pytest.raises(InvalidInput):
        await said(talk.ask("fail " * 30))
    assert talk.dropped == 0
    await said(talk.ask("three"))
    assert [message.content for message in parrot.prompts[-1]] == ["one two", "heard 1", "three"]


async def test_a_conversation_may_refuse_to_forget(parrot):
    talk = AsyncConversation(parrot.ask, parrot.count, 20, overflow="refuse")
    await said(talk.ask("a question of five words", max_tokens=10))
    with pytest.raises(InvalidInput, match="conversation: has 12 tokens"):
        await said(talk.ask("a question of five words", max_tokens=10))
    assert len(talk.messages) == 2


async def test_one_turn_at_a_time(parrot):
    talk = AsyncConversation(parrot.ask, parrot.count, 100)
    first = talk.ask("one")
    await anext(first)
    with pytest.raises(InvalidInput, match="is answering another question"):
        await said(talk.ask("two"))
    await first.aclose()
    assert await said(talk.ask("three")) == "heard 3"


def test_a_turn_costs_its_own_tokens_and_conversations_do_not_disturb_each_other(
    bundle, trust, monkeypatch
):
    read: list[int] = []
    extend = Decoder._extend

    def count(self, tokens, start, cancel):
        read.append(len(tokens) - start)
        extend(self, tokens, start, cancel)

    monkeypatch.setattr(Decoder, "_extend", count)
    with Device.open(bundle.path, trust=trust) as device:
        talks = [device.conversation(system="You answer in one word.") for _ in range(2)]
        for talk, text in zip(talks, ("Colours: red, blue, ", "Animals: cat, dog, "), strict=True):
            list(talk.ask(8 * text + "and?", max_tokens=4))
        whole = read[0]
        read.clear()
        for talk in talks:
            list(talk.ask("Another.", max_tokens=4))
        assert all(len(talk.messages) == 5 for talk in talks)
    # "Another." in its turn's frame, and what closes the turn before; nothing of the first turn.
    assert len(read) == 2
    assert whole > 60
    assert max(read) < whole / 2


def test_two_threads_cannot_talk_in_one_conversation(bundle, trust):
    with Device.open(bundle.path, trust=trust) as device:
        talk = device.conversation()
        events = talk.ask("Count to twenty.", max_tokens=40)
        problems: list[Exception] = []

        def intrude() -> None:
            try:
                list(talk.ask("Stop.", max_tokens=2))
            except InvalidInput as problem:
                problems.append(problem)

        started = threading.Thread(target=lambda: list(events))
        started.start()
        while not talk._conversation._turn.locked():
            time.sleep(0.001)
        intruder = threading.Thread(target=intrude)
        intruder.start()
        intruder.join()
        started.join()
        assert len(problems) == 1
        assert len(talk.messages) == 2
